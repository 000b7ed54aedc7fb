"""A model and an input in; findings, a terminal table and a report out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inspection import Inspection
    from .looking import look

__all__ = ["Inspection", "look"]


def __getattr__(name: str) -> Any:
    """Loaded on use: the command line checks its arguments before torch is there."""
    from importlib import import_module

    if name == "look":
        return import_module(f"{__name__}.looking").look
    if name == "Inspection":
        return import_module(f"{__name__}.inspection").Inspection
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
