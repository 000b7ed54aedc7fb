"""Packages that the lab needs and the operator does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UnsupportedError


@contextmanager
def extra() -> Iterator[None]:
    """What is imported inside may be missing: one line says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"the lab: expected {error.name}, found none; pip install 'softlookup[lab]'") from None
