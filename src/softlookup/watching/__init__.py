"""Watching: what was seen of a model's attention, folded into a few numbers per head. Knows torch, no model library."""

from .call import Call, Probe
from .layer import LayerSeen
from .seen import Seen
from .table import Table

__all__ = ["Call", "LayerSeen", "Probe", "Seen", "Table"]
