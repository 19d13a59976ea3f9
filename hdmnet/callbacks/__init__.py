"""Lightning callbacks (pictures of fixed episodes, curves, scores per class, speed, progress bar), and the loggers."""

from hdmnet.callbacks.class_scores import ClassScores
from hdmnet.callbacks.curves import TrainingCurves, plot_curves
from hdmnet.callbacks.progress import StageProgressBar
from hdmnet.callbacks.throughput import Throughput
from hdmnet.callbacks.visualise import EpisodePictures, draw_episode

__all__ = [
    "ClassScores",
    "EpisodePictures",
    "StageProgressBar",
    "Throughput",
    "TrainingCurves",
    "draw_episode",
    "plot_curves",
]
