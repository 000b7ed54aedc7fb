"""Encoder-decoders: the fixed vector, the attention that replaced it, and the transformer, all on `softlookup.attend`."""

from .alignment import Alignment as Alignment
from .attentive import Attentive as Attentive
from .fixed_vector import FixedVector as FixedVector
from .model import Model as Model
from .search import Ensemble as Ensemble
from .search import Hypothesis as Hypothesis
from .search import search as search
from .transformer import Transformer as Transformer

__all__ = ["Alignment", "Attentive", "Ensemble", "FixedVector", "Hypothesis", "Model", "Transformer", "search"]
