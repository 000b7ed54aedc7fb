"""How scores become weights."""

from .base import Normalizer as Normalizer
from .entmax import Entmax as Entmax
from .entmax import Sparsemax as Sparsemax
from .hard import Hard as Hard
from .sigmoid import Sigmoid as Sigmoid
from .softmax import Softmax as Softmax
from .threshold import Threshold as Threshold
from .top_k import TopK as TopK
