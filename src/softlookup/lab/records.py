"""Run records: what a long training found, kept with a checksum, so that an experiment can be measured again without it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import SoftlookupError
from ..files import write_text


class Records:
    """The records of one claim, in one file: {key: {"sha256": of "found" as JSON, "found": what the training returned}}.

    kept: where they are read. new: where each training that has to be made is added as soon as it is over, so that the next
    run goes on from there. None for nowhere."""

    def __init__(self, kept: Path | None, new: Path | None = None):
        self.kept, self.made, self.new = _read(kept), _read(new), new

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """The record of this key, made if there is none. make: returns what JSON can hold."""
        for some in (self.made, self.kept):
            if key in some:
                return some[key]["found"]
        found = json.loads(json.dumps(make()))
        self.made[key] = {"sha256": checksum(found), "found": found}
        if self.new is not None:
            self.new.parent.mkdir(parents=True, exist_ok=True)
            lines = (f"{json.dumps(name)}: {json.dumps(each)}" for name, each in self.made.items())
            write_text(self.new, "{\n" + ",\n".join(lines) + "\n}\n")
        return found


def checksum(found: Any) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _read(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    try:
        records: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wrong = [key for key, each in records.items() if checksum(each["found"]) != each["sha256"]]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise SoftlookupError(f"{path}: expected run records in JSON, found something else") from None
    if wrong:
        raise SoftlookupError(f"{path}: expected records as they were written, the checksum of {wrong[0]!r} differs")
    return records
