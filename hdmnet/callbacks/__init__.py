"""Lightning callbacks: pictures of fixed episodes, and the training curves."""

from hdmnet.callbacks.curves import TrainingCurves, plot_curves
from hdmnet.callbacks.visualise import EpisodePictures, draw_episode

__all__ = ["EpisodePictures", "TrainingCurves", "draw_episode", "plot_curves"]
