"""Attention as a kernel smoother: Nadaraya-Watson regression and classification on the operator, as scikit-learn estimators."""

from .estimators import NadarayaWatson as NadarayaWatson
from .estimators import NadarayaWatsonClassifier as NadarayaWatsonClassifier
from .leave_one_out import leave_one_out as leave_one_out
from .metric import learned_metric as learned_metric
from .smooth import Smoothed as Smoothed
from .smooth import smooth as smooth

__all__ = ["NadarayaWatson", "NadarayaWatsonClassifier", "Smoothed", "learned_metric", "leave_one_out", "smooth"]
