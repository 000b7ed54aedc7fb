"""Files are written whole or not at all, and never over somebody else's."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from ..errors import SoftlookupError

MARKS = ('<meta name="generator" content="softlookup', '"generator": "softlookup"')
"""What the first lines of our own reports and JSON files contain."""


def check_target(path: str | Path, option: str) -> Path:
    """The path to write to later, checked now: a long run should not end in an error that was there from the start.
    ``option``: what an error calls it."""
    target = Path(path).expanduser()
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


def write_text(path: str | Path, text: str) -> None:
    """Write beside the target, then rename: an interrupted or failed write leaves what was there before."""
    target = Path(path).expanduser()
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}-", suffix=".part", dir=target.parent)
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise SoftlookupError(f"cannot write {target}: {reason(error)}") from error
    finally:  # also on Ctrl-C
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """What is wrong, in a few words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission"
    return (error.strerror or str(error)).lower()


def _is_ours(path: Path) -> bool:
    """An empty file belongs to nobody: ``touch``, or a shell's redirection."""
    try:
        with path.open("rb") as file:
            begin = file.read(2048).decode("utf-8", "replace")
    except OSError:
        return False
    return begin.strip() == "" or any(mark in begin for mark in MARKS)


def _umask() -> int:
    """``mkstemp`` makes files private; a report should get the permissions that any new file gets."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
