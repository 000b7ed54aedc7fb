"""The exceptions of the library: what was expected, what was got, in one line."""

from numbers import Integral
from operator import index
from typing import Any


class SoftlookupError(ValueError):
    """Input that cannot be used as it is. The message is one line: what was wrong, what was expected, what was got."""


class UnsupportedError(SoftlookupError, NotImplementedError):
    """A request that is meaningful but that nothing here can serve."""


def within(x: Any, low: float, high: float) -> bool:
    """low < x < high; False of what is no number."""
    try:
        return bool(low < x < high)
    except TypeError:
        return False


def whole(name: str, x: Any) -> int:
    """`x`, or an error where it is no whole number."""
    try:
        return index(x)
    except TypeError:
        raise SoftlookupError(f"{name}: expected a whole number, got {x!r}") from None


def at_least_one(whose: str, **sizes: int) -> None:
    """Raise unless every size is a whole number of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise SoftlookupError(f"{whose}: expected {name} of at least 1, got {size!r}")
