"""Lightning callbacks: pictures of fixed episodes, the training curves, the progress bar."""

from hdmnet.callbacks.curves import TrainingCurves, plot_curves
from hdmnet.callbacks.progress import StageProgressBar
from hdmnet.callbacks.visualise import EpisodePictures, draw_episode

__all__ = ["EpisodePictures", "StageProgressBar", "TrainingCurves", "draw_episode", "plot_curves"]
