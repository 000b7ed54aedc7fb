"""Watching: what was seen of a model's attention, folded into a few numbers per head. Knows torch, no model library."""

from .alarms import RULES, Alarm, Alarms, Rule
from .call import Call, Probe
from .layer import LayerSeen
from .recorders import Callback, TensorBoard
from .records import JSONLines, read_records
from .seen import Seen
from .table import Table

__all__ = [
    "Alarm",
    "Alarms",
    "Call",
    "Callback",
    "JSONLines",
    "LayerSeen",
    "Probe",
    "RULES",
    "Rule",
    "Seen",
    "Table",
    "TensorBoard",
    "read_records",
]
