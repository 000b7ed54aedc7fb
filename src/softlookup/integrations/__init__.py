"""Integrations: how a model's attention calls reach the operator. Model libraries are imported only on use."""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name == "huggingface":
        return import_module(".huggingface", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
