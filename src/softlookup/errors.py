"""The exceptions of the library: what was expected, what was got, in one line."""

from numbers import Integral


class SoftlookupError(ValueError):
    """Input that cannot be used as it is. The message is one line: what was wrong, what was expected, what was got."""


class UnsupportedError(SoftlookupError, NotImplementedError):
    """A request that is meaningful but that nothing here can serve."""


def at_least_one(whose: str, **sizes: int) -> None:
    """Raise unless every size is a whole number of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise SoftlookupError(f"{whose}: expected {name} of at least 1, got {size!r}")
