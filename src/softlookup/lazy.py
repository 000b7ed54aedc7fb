"""Public names of a package that load on first use, so that the command line answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def loaded_on_use(
    package: str, names: Mapping[str, str], modules: Iterable[str] = ()
) -> tuple[list[str], Callable[[str], Any]]:
    """`__all__` and `__getattr__` of a package. names: its modules and the names of each, with spaces between; modules: its
    public modules that are reached as attributes."""
    home = {name: module for module, some in names.items() for name in some.split()}
    known = {*modules}

    def get(name: str) -> Any:
        if name in home:
            value = getattr(import_module(f"{package}.{home[name]}"), name)
            setattr(sys.modules[package], name, value)
            return value
        if name in known:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return sorted(home), get
