"""softlookup: attention that you can see through.

`attend` gives the output of attention *and* what its distribution looked like, per query, in the same pass, with gradients.
"""

from typing import TYPE_CHECKING, Any

from .biases import ALiBi, RelativeTable
from .drop_in import scaled_dot_product_attention
from .errors import SoftlookupError, UnsupportedError
from .masks import Causal, Dilated, Documents, Lengths, Mask, MaskFunction, Padding, Prefix, Window
from .normalizers import Softmax
from .operator import Plan, attend, divergence, engine, explain, lookup, merge, received
from .scores import Additive, Bilinear, Cosine, Dot, Gaussian, Hyperbolic, Product, ScaledDot, Score
from .summary import CHEAP, Stats, Summary

if TYPE_CHECKING:
    from .inspection import Inspection, look
    from .integrations.any_model import watch

__version__ = "0.1.0"

_ON_USE = {"watch": "integrations.any_model", "look": "inspection", "Inspection": "inspection"}


def __getattr__(name: str) -> Any:
    """Floors above the operator load on use, so that `import softlookup` loads torch and numpy only."""
    from importlib import import_module

    if name in _ON_USE:
        return getattr(import_module(f"{__name__}.{_ON_USE[name]}"), name)
    if name == "integrations":
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ALiBi",
    "Additive",
    "Bilinear",
    "CHEAP",
    "Causal",
    "Cosine",
    "Dilated",
    "Documents",
    "Dot",
    "Gaussian",
    "Hyperbolic",
    "Inspection",
    "Lengths",
    "Mask",
    "MaskFunction",
    "Padding",
    "Plan",
    "Prefix",
    "Product",
    "RelativeTable",
    "ScaledDot",
    "Score",
    "SoftlookupError",
    "Softmax",
    "Stats",
    "Summary",
    "UnsupportedError",
    "Window",
    "attend",
    "divergence",
    "engine",
    "explain",
    "look",
    "lookup",
    "merge",
    "received",
    "scaled_dot_product_attention",
    "watch",
]
