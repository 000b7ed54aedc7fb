"""Watching: what was seen of a model's attention, folded into a few numbers per head. Knows torch, no model library."""

from .call import Call, Probe
from .layer import LayerSeen
from .records import JSONLines, read_records
from .seen import Seen
from .table import Table

__all__ = ["Call", "JSONLines", "LayerSeen", "Probe", "Seen", "Table", "read_records"]
