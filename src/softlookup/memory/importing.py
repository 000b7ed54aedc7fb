"""Rows from files: .npy, .jsonl, .parquet."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..files import expanded, reason

FIELDS = ("key", "value", "payload", "id")
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class Imported:
    """Rows to add: keys (n, d), values (n, m), payloads and ids, None where the file has none."""

    keys: Tensor
    values: Tensor | None = None
    payloads: list[Any] | None = None
    ids: list[int] | None = None


def read_rows(path: str | Path, values: str | Path | None = None) -> Imported:
    """Rows of a file: .npy holds keys (n, d), and `values` is another (n, m); a line of .jsonl is
    {"key": […], "value": […], "payload": …, "id": …}, of which only the key must be there; .parquet has such columns."""
    file = expanded(path)
    kind = file.suffix.lower()
    if kind == ".npy":
        return Imported(read_array(file), None if values is None else read_array(expanded(values)))
    if values is not None:
        raise SoftlookupError(f"--values: expected with keys in .npy, got {file.name}, whose rows hold their values")
    if kind == ".jsonl":
        return _of_columns(file, _lines(file))
    if kind == ".parquet":
        return _of_columns(file, _parquet(file))
    raise SoftlookupError(f"{file}: expected .npy, .jsonl or .parquet")


def read_array(path: Path) -> Tensor:
    """(n, d) of a .npy file, mapped into memory where it is float32 already."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except OSError as error:
        raise SoftlookupError(f"{path}: {reason(error)}") from error
    except (ValueError, EOFError):
        raise SoftlookupError(f"{path}: expected a .npy file of numbers") from None
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2) or not array.size or array.dtype.kind not in "fiu":
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise SoftlookupError(f"{path}: expected numbers (n, width), got {got}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is told when it is added
        return torch.from_numpy(array.astype("<f4", copy=False)).reshape(-1, array.shape[-1])


def _lines(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    raise SoftlookupError(f"{path}, line {number}: expected JSON, got {line.strip()[:40]!r}") from None
                if not isinstance(row, dict) or not set(row) <= set(FIELDS) or "key" not in row:
                    raise SoftlookupError(
                        f"{path}, line {number}: expected an object of key and perhaps {', '.join(FIELDS[1:])}"
                    )
                if rows and set(row) != set(rows[0]):
                    want, got = (", ".join(sorted(x)) for x in (rows[0], row))
                    raise SoftlookupError(f"{path}, line {number}: expected {want}, as in the first row, got {got}")
                for name in ("key", "value"):
                    if name in row and not _numbers(row[name], len(rows[0].get(name, ())) if rows else None):
                        like = f"{len(rows[0].get(name, ()))} " if rows else ""
                        raise SoftlookupError(
                            f"{path}, line {number}: expected a {name} of {like}numbers, got {str(row[name])[:40]}"
                        )
                rows.append(row)
    except OSError as error:
        raise SoftlookupError(f"{path}: {reason(error)}") from error
    except UnicodeDecodeError:
        raise SoftlookupError(f"{path}: expected UTF-8") from None
    return rows


def _numbers(x: Any, width: int | None) -> bool:
    good = isinstance(x, list) and all(
        isinstance(n, int | float) and not isinstance(n, bool) and abs(n) <= LARGEST for n in x
    )
    return good and (len(x) > 0 if width is None else len(x) == width)


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise SoftlookupError(f"{path}: expected pyarrow to read .parquet, found none; pip install pyarrow") from None
    try:
        table = parquet.read_table(path)
    except FileNotFoundError:
        raise SoftlookupError(f"{path}: no such file or directory") from None
    except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of ValueError
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise SoftlookupError(f"{path}: expected a parquet file ({said})") from None
    if "key" not in table.column_names or not set(table.column_names) <= set(FIELDS):
        raise SoftlookupError(
            f"{path}: expected columns among {', '.join(FIELDS)}, key at least, got {', '.join(table.column_names)}"
        )
    rows = table.to_pylist()
    for number, row in enumerate(rows, 1):
        for name in {"key", "value"} & set(row):
            if not _numbers(row[name], len(rows[0][name]) if isinstance(rows[0][name], list) else None):
                raise SoftlookupError(f"{path}, row {number}: expected a {name} of numbers, as many in every row")
    return rows


def _of_columns(path: Path, rows: list[dict[str, Any]]) -> Imported:
    if not rows:
        raise SoftlookupError(f"{path}: expected rows, got none")
    column = {name: [row[name] for row in rows] for name in rows[0]}
    vectors = {name: torch.tensor(column[name], dtype=torch.float32) for name in ("key", "value") if name in column}
    return Imported(vectors["key"], vectors.get("value"), column.get("payload"), column.get("id"))
