"""Reports never replace somebody else's file, and their JSON is JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import SoftlookupError
from ..files import expanded

MARKS = ('<meta name="generator" content="softlookup', '"generator": "softlookup"')
"""What the first lines of our own reports and JSON files contain."""


def check_target(path: str | Path, option: str) -> Path:
    """The path to write to later, checked now: a long run should not end in an error that was there from the start.
    ``option``: what an error calls it."""
    target = expanded(path)
    folder = target.parent
    if target.is_dir():
        raise SoftlookupError(f"{option}: expected a file, got the folder {target}")
    if not folder.is_dir():
        raise SoftlookupError(f"{option}: expected a path in an existing folder, got {target} ({folder} is no folder)")
    if not os.access(folder, os.W_OK):
        raise SoftlookupError(f"{option}: expected a folder that can be written to, got {folder} (no permission)")
    if target.exists() and not _is_ours(target):
        raise SoftlookupError(f"{option}: {target} exists and was not written by softlookup; choose another path")
    return target


def _is_ours(path: Path) -> bool:
    """An empty file belongs to nobody: ``touch``, or a shell's redirection."""
    try:
        with path.open("rb") as file:
            begin = file.read(2048).decode("utf-8", "replace")
    except OSError:
        return False
    return begin.strip() == "" or any(mark in begin for mark in MARKS)


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null says "no number here"."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value
