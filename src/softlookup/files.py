"""Files are written whole or not at all: beside their place, then renamed."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from .errors import SoftlookupError


def write_text(path: str | Path, text: str) -> None:
    """UTF-8, as `write` writes."""
    write(path, text.encode("utf-8", errors="replace"))


def write(path: str | Path, content: bytes) -> None:
    """Write beside the target, then rename: an interrupted or failed write leaves what was there before."""
    target = expanded(path)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}-", suffix=".part", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise SoftlookupError(f"cannot write {target}: {reason(error)}") from error
    finally:  # also on Ctrl-C
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def expanded(path: str | Path) -> Path:
    """A path whose ~ and ~name are home folders."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise SoftlookupError(f"{path}: expected the home of a user, found none of that name") from None


def reason(error: OSError) -> str:
    """What is wrong, in a few words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission"
    return (error.strerror or str(error)).lower()


def _umask() -> int:
    """``mkstemp`` makes files private; a report should get the permissions that any new file gets."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
