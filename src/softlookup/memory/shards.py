"""Where a table's vectors lie: in .npy files that only grow, mapped into memory, or in tensors.

A shard's rows beyond those that the ledger counts do not exist, whatever the file holds: they were written before a commit that
never came. Rows that exist are never written over, so a reader may keep what it has mapped.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..files import reason
from .ledger import Chunk

HEADER = 128
"""Bytes before the first row; numpy leaves room for the number of rows to grow in it."""
KINDS = ("keys", "values")


@dataclass(frozen=True, eq=False)
class Part:
    """Rows at positions from `first` on: keys (S, d) and values (S, m), None where m is 0."""

    first: int
    keys: Tensor
    values: Tensor | None


class FileShards:
    """keys-000000.npy, values-000000.npy … in a folder, float32, none of values where their width is 0."""

    def __init__(self, folder: Path, key_width: int, value_width: int, shard_rows: int):
        self._folder, self._widths, self.shard_rows = folder, {"keys": key_width, "values": value_width}, shard_rows
        self._mapped: dict[int, tuple[int, list[Tensor | None]]] = {}

    dtype = torch.float32

    def forget(self) -> None:
        """What is mapped: rows that never were may be written over."""
        self._mapped = {}

    def path(self, kind: str, number: int) -> Path:
        return self._folder / f"{kind}-{number:06d}.npy"

    def append(self, number: int, at: int, keys: Tensor, values: Tensor | None) -> Chunk:
        """Write rows from `at` on, where no row exists, and wait until they are on the disk."""
        sums = [self._write(kind, number, at, x) for kind, x in zip(KINDS, (keys, values), strict=True)]
        return Chunk(number, at, len(keys), *sums)

    def _write(self, kind: str, number: int, at: int, rows: Tensor | None) -> int:
        if rows is None:
            return 0
        width, path = self._widths[kind], self.path(kind, number)
        content = rows.detach().to("cpu", torch.float32).contiguous().numpy().reshape(-1).view(np.uint8).data
        try:
            fresh = not path.exists()
            with open(path, "w+b" if fresh else "r+b") as file:
                file.truncate(0 if at == 0 else HEADER + 4 * width * at)
                file.seek(HEADER + 4 * width * at)
                file.write(content)
                file.seek(0)
                file.write(header(at + len(rows), width))
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                sync_folder(self._folder)
        except OSError as error:
            raise SoftlookupError(f"{path}: {reason(error)}") from error
        return zlib.crc32(content)

    def parts(self, shards: Iterable[tuple[int, int]]) -> list[Part]:
        """The rows of each shard, mapped; raises FileNotFoundError where one is gone."""
        before, self._mapped, first, found = self._mapped, {}, 0, []
        for number, rows in shards:
            known = before.get(number)
            if known is None or known[0] != rows:
                known = rows, [self._map(kind, number, rows) for kind in KINDS]
            self._mapped[number] = known
            keys, values = known[1]
            assert keys is not None
            found.append(Part(first, keys, values))
            first += rows
        return found

    def _map(self, kind: str, number: int, rows: int) -> Tensor | None:
        width, path = self._widths[kind], self.path(kind, number)
        if not width:
            return None
        if path.stat().st_size < HEADER + 4 * width * rows:
            raise SoftlookupError(f"{path}: expected {rows:,} rows of {width}, the file is shorter")
        # Copy-on-write: torch knows no tensors that cannot be written, and nothing ever reaches the file.
        return torch.from_numpy(np.memmap(path, "<f4", "c", HEADER, (rows, width)))

    def damage(self, chunks: Iterable[Chunk]) -> list[str]:
        """Headers and rows that are not what was written."""
        wrong = []
        counts: dict[int, int] = {}
        for chunk in chunks:
            counts[chunk.shard] = counts.get(chunk.shard, 0) + chunk.rows
            for kind, expected in zip(KINDS, (chunk.keys, chunk.values), strict=True):
                width = self._widths[kind]
                if not width:
                    continue
                try:
                    with open(self.path(kind, chunk.shard), "rb") as file:
                        file.seek(HEADER + 4 * width * chunk.first)
                        got, left = 0, 4 * width * chunk.rows
                        while left and (block := file.read(min(left, 2**24))):
                            got, left = zlib.crc32(block, got), left - len(block)
                except OSError as error:
                    wrong.append(f"{self.path(kind, chunk.shard)}: {reason(error)}")
                    continue
                if left or got != expected:
                    rows = f"rows {chunk.first:,} to {chunk.first + chunk.rows - 1:,}"
                    wrong.append(f"{self.path(kind, chunk.shard)}: {rows} are not what was written")
        return wrong + [said for number, rows in counts.items() for kind in KINDS if (said := self._header(kind, number, rows))]

    def _header(self, kind: str, number: int, rows: int) -> str | None:
        path, width = self.path(kind, number), self._widths[kind]
        if not width:
            return None
        try:
            with open(path, "rb") as file:
                got, size = file.read(HEADER), os.fstat(file.fileno()).st_size
        except OSError:
            return None  # told already
        # A commit that never came may have left a header that counts its rows.
        there = max(rows, (size - HEADER) // (4 * width))
        if any(got == header(n, width) for n in {rows, there}):
            return None
        return f"{path}: its header is not that of {rows:,} rows of {width}"

    def tidy(self, shards: Iterable[tuple[int, int]]) -> None:
        """Remove what commits that never came, or were followed by a compaction, have left."""
        rows = dict(shards)
        for kind, width in self._widths.items():
            for path in self._folder.glob(f"{kind}-*.npy"):
                number = path.stem.removeprefix(f"{kind}-")
                if not number.isdigit():
                    continue
                if int(number) not in rows:
                    path.unlink(missing_ok=True)
                elif path.stat().st_size > (end := HEADER + 4 * width * rows[int(number)]):
                    with open(path, "r+b") as file:
                        file.write(header(rows[int(number)], width))
                        file.truncate(end)


class TensorShards:
    """One shard, in tensors of any device and dtype that keep their graph."""

    shard_rows = 2**62

    def __init__(self, keys: Tensor, values: Tensor | None):
        self._empty = Part(0, keys[:0], None if values is None else values[:0])
        self._kept: dict[int, Part] = {}

    @property
    def dtype(self) -> torch.dtype:
        return self._empty.keys.dtype

    def forget(self) -> None:
        """Nothing: rows that never were are cut off when others are added."""

    def append(self, number: int, at: int, keys: Tensor, values: Tensor | None) -> Chunk:
        """Rows at the end of those of the shard."""
        empty = self._empty
        before = self._kept.get(number, empty)
        keys = torch.cat([before.keys[:at], keys.to(empty.keys)])
        if values is not None:
            assert before.values is not None and empty.values is not None
            values = torch.cat([before.values[:at], values.to(empty.values)])
        self._kept[number] = Part(0, keys, values)
        return Chunk(number, at, len(keys) - at, 0, 0)

    def parts(self, shards: Iterable[tuple[int, int]]) -> list[Part]:
        """The rows of each shard."""
        found = [(self._kept[number], rows) for number, rows in shards]
        return [Part(0, x.keys[:rows], None if x.values is None else x.values[:rows]) for x, rows in found]

    def damage(self, chunks: Iterable[Chunk]) -> list[str]:
        return []

    def tidy(self, shards: Iterable[tuple[int, int]]) -> None:
        """Forget what is no shard any more."""
        kept = {number for number, _ in shards}
        self._kept = {number: part for number, part in self._kept.items() if number in kept}


def header(rows: int, width: int) -> bytes:
    """Of a .npy file of float32 in rows."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
    assert file.tell() == HEADER
    return file.getvalue()


def sync_folder(folder: Path) -> None:
    """Wait until the names of new files are on the disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
