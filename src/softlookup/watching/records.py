"""What a watch has seen, step by step, as lines of JSON that survive a kill at any moment.

A line is one write to a file opened for appending, ended by its newline: whoever reads up to the last newline reads whole
records. What a kill or a full disk leaves behind that newline is cut off when the file is opened again.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import SoftlookupError
from ..files import expanded, reason
from .seen import Seen

SUMMARIES = ("mean", "min", "max")
QUANTILES = {"median": 0.5, "p95": 0.95}


def summary(seen: Seen) -> dict[str, Any]:
    """Per layer: `count`, queries per head, and of each statistic the mean, min, max, median and 95 % quantile of every
    head, lists of H numbers. Layers that were not called are left out."""
    layers = {}
    for name, layer in seen.layers.items():
        if not layer.count:
            continue
        layers[name] = {"count": layer.counts.tolist()} | {
            stat: {of: getattr(layer, of)(stat).tolist() for of in SUMMARIES}
            | {of: layer.quantile(stat, q).tolist() for of, q in QUANTILES.items()}
            for stat in layer.stats
        }
    return layers


class JSONLines:
    """A file of records, one line each, appended to.

        with sl.watch(model) as seen, JSONLines("watch.jsonl") as record:
            for step, batch in enumerate(batches):
                ...
                record(step, seen, loss=loss.item())
                seen.clear()

    A number that is not finite is written as the string "nan", "inf" or "-inf", as JSON has none; `float` reads it.
    Raises `SoftlookupError` where the file cannot be opened or written.
    """

    def __init__(self, path: str | Path):
        self.path = expanded(path)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            if not _OWN.startswith(os.pread(self._file, len(_OWN), 0)):  # what a kill leaves of a first record is a beginning
                os.close(self._file)
                raise SoftlookupError(f"{self.path}: expected a new file or one of records, got another, left as it is")
            os.ftruncate(self._file, _whole(self._file))
        except OSError as error:
            raise self._cannot(error) from error

    def __call__(self, step: int, seen: Seen, **numbers: float) -> None:
        """Append what was seen since it was last cleared, with numbers of your own beside it, such as the loss."""
        if not isinstance(seen, Seen):
            raise SoftlookupError(f"record: expected record(step, seen, …), got {type(seen).__name__} for seen")
        if taken := {"step", "layers"} & set(numbers):
            raise SoftlookupError(f"record: expected numbers under other names than step and layers, got {', '.join(taken)}")
        plain = {name: float(x) if hasattr(x, "__float__") else x for name, x in numbers.items()}
        line = json.dumps(_readable({"step": int(step), **plain, "layers": summary(seen)}), allow_nan=False) + "\n"
        content = line.encode()
        try:
            written = os.write(self._file, content)
            if written < len(content):  # the disk filled up within the line
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)
                raise SoftlookupError(f"cannot write {self.path}: the disk is full")
        except OSError as error:
            raise self._cannot(error) from error

    def close(self) -> None:
        """Also done by leaving `with`."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> JSONLines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def _cannot(self, error: OSError) -> SoftlookupError:
        return SoftlookupError(f"cannot write {self.path}: {reason(error)}")


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The whole records of a file that `JSONLines` wrote, also while it is being written. Raises `SoftlookupError` where it
    cannot be read, or holds something else."""
    try:
        content = expanded(path).read_bytes()
    except OSError as error:
        raise SoftlookupError(f"cannot read {path}: {reason(error)}") from error
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    for number, line in enumerate(lines, 1):
        if not line.startswith(_OWN):
            raise SoftlookupError(f"{path}: expected a file of records, got another in line {number}")
    return [json.loads(line) for line in lines]


_OWN = b'{"step": '
"""How every record begins."""


def _whole(file: int) -> int:
    """How many bytes lead up to and include the last newline, read from the end."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _readable(value: Any) -> Any:
    """Numbers that JSON lacks as the strings that `float` reads."""
    if isinstance(value, dict):
        return {key: _readable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_readable(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)  # statistics are float32
    return value
