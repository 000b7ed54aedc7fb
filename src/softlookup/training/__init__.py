"""Training encoder-decoders on real data: tasks, batches, a loop that can be killed, and what a trained model says."""

from .config import Config as Config
from .fit import fit as fit
from .runs import Run as Run
from .runs import load as load
from .scoring import Scores as Scores

__all__ = ["Config", "Run", "Scores", "fit", "load"]
