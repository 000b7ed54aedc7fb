"""Rows that are added, changed and deleted, all or none of each call's: a ledger says which exist, shards hold their
vectors."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..files import expanded, reason
from .ledger import Ledger
from .shards import KINDS, FileShards, Part, TensorShards, sync_folder

DATABASE = "table.sqlite"
SHARD_BYTES = 2**28
"""Of the wider of a shard's two files, at most."""
MOST_IDS = 2**62
AT_ONCE = 2**16
"""Rows that a compaction moves at a time."""


@dataclass(frozen=True, eq=False)
class State:
    """What a table was when it was read: numbers of its shards and their parts, which of all positions hold
    a row (None: all do), how many rows are, and what was built over them, by name, kind, rows covered and checksum."""

    version: int
    shards: list[int]
    parts: list[Part]
    alive: Tensor | None
    count: int
    files: list[tuple[str, str, int, int]]

    @property
    def total(self) -> int:
        """Positions, of rows and deleted ones."""
        return sum(len(part.keys) for part in self.parts)


@dataclass(frozen=True, eq=False)
class Rows:
    """Of ids (n,): keys (n, d), values (n, m) or None, payloads."""

    ids: Tensor
    keys: Tensor
    values: Tensor | None
    payloads: list[Any]


class Store:
    """A table of rows (id, key vector, value vector, payload), in a folder or in memory. Several may read a folder while
    one writes. An object belongs to the thread and process that made it."""

    def __init__(self, ledger: Ledger, shards: FileShards | TensorShards, folder: Path | None, write: bool):
        self._ledger, self._shards, self.folder, self._write = ledger, shards, folder, write
        self.key_width, self.value_width, self.dtype = ledger.meta("key_width"), ledger.meta("value_width"), shards.dtype
        self._state: State | None = None
        self._built: dict[tuple[str, int], Any] = {}

    @classmethod
    def create(cls, folder: str | Path, key_width: int, value_width: int = 0, *, shard_rows: int | None = None) -> Self:
        """A new table in a folder that is made, or is empty. value_width: 0 for rows that hold payloads only. shard_rows: how
        many rows a file has at most; by default as many as 256 MB hold. Opened for writing."""
        for name, least, got in (("key_width", 1, key_width), ("value_width", 0, value_width), ("shard_rows", 1, shard_rows)):
            if got is not None and (not isinstance(got, int) or isinstance(got, bool) or not least <= got < 2**31):
                raise SoftlookupError(f"{name}: expected a whole number from {least} to 2^31 - 1, got {got!r}")
        rows = max(1, SHARD_BYTES // (4 * max(key_width, value_width))) if shard_rows is None else shard_rows
        path = expanded(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(not file.name.startswith(f".{DATABASE}.part") for file in path.iterdir()):  # a create that was killed
                raise SoftlookupError(f"{path}: expected a folder that is new or empty, got one with files")
        except OSError as error:
            raise SoftlookupError(f"{path}: {reason(error)}") from error
        ledger = Ledger.create(path / DATABASE, key_width=key_width, value_width=value_width, shard_rows=rows)
        sync_folder(path)
        return cls(ledger, FileShards(path, key_width, value_width, rows), path, True)

    @classmethod
    def open(cls, folder: str | Path, *, write: bool = False) -> Self:
        """A table that exists. Its vectors stay on the disk until they are asked."""
        path = expanded(folder)
        try:
            there = (path / DATABASE).is_file()
        except OSError as error:
            raise SoftlookupError(f"{path}: {reason(error)}") from error
        if not there:
            raise SoftlookupError(f"{path}: expected the folder of a table, found no {DATABASE} in it")
        ledger = Ledger.open(path / DATABASE, write)
        with ledger.reading():
            widths = ledger.meta("key_width"), ledger.meta("value_width")
            table = cls(ledger, FileShards(path, *widths, ledger.meta("shard_rows")), path, write)
        if write:
            table._tidy()
        return table

    @classmethod
    def of(
        cls, keys: Tensor, values: Tensor | None = None, payloads: Sequence[Any] | None = None, ids: Sequence[int] | None = None
    ) -> Self:
        """A table in memory of these rows, keys (S, d) and values (S, m), of any device and dtype; lookups have gradients to
        them."""
        _check("keys", keys, None, None)
        if values is not None:
            _check("values", values, None, None)
        width = 0 if values is None else values.shape[1]
        ledger = Ledger.create(None, key_width=keys.shape[1], value_width=width)
        table = cls(ledger, TensorShards(keys, values), None, True)
        table.add(keys, values, payloads, ids)
        return table

    def close(self) -> None:
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.state().count

    def __repr__(self) -> str:
        where = "in memory" if self.folder is None else repr(str(self.folder))
        return f"{type(self).__name__}({where}: {len(self):,} rows, keys of {self.key_width}, values of {self.value_width})"

    def add(
        self,
        keys: Tensor,
        values: Tensor | None = None,
        payloads: Sequence[Any] | None = None,
        ids: Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """Add rows: keys (n, d), values (n, m) if the table has any, payloads of bytes or of what JSON can say, ids of one's
        own (from 0 to 2^62 - 1, not in use) or the next free ones. Returns the ids (n,). When it returns, the rows are on the
        disk."""
        numbers = None if ids is None else _integers(ids)
        self._check_rows(keys, values, payloads, numbers)
        with self._writing():
            if numbers is None:
                first = self._ledger.meta("next_id")
                numbers = list(range(first, first + len(keys)))
            elif used := self._ledger.find(numbers):
                raise SoftlookupError(f"ids: expected ids that are not in use, got {', '.join(map(str, sorted(used)[:5]))}")
            self._append(keys, values, payloads, numbers)
        return torch.tensor(numbers, dtype=torch.int64)

    def update(
        self,
        ids: Sequence[int] | Tensor,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        payloads: Sequence[Any] | None = None,
    ) -> None:
        """Give the rows of these ids other keys, values or payloads; what is not given stays."""
        numbers = _integers(ids)
        if not numbers:
            return
        with self._writing():
            known = self._known(numbers)
            before = self._rows(known, numbers)
            keys = before.keys if keys is None else keys
            values = before.values if values is None else values
            payloads = before.payloads if payloads is None else payloads
            self._check_rows(keys, values, payloads, numbers)
            self._ledger.remove([known[i][0] for i in numbers])
            self._append(keys, values, payloads, numbers)

    def delete(self, ids: Sequence[int] | Tensor) -> None:
        """Delete the rows of these ids. Their place on the disk is free after `compact`."""
        numbers = _integers(ids)
        if len(set(numbers)) < len(numbers):
            raise SoftlookupError("ids: expected each once, got some twice")
        with self._writing():
            known = self._known(numbers)
            self._ledger.remove([known[i][0] for i in numbers])

    def get(self, ids: Sequence[int] | Tensor | None = None) -> Rows:
        """The rows of these ids, in their order; by default all, in the order in which they were written."""
        with self._ledger.reading():
            self._read()
            numbers = self._ledger.all_ids() if ids is None else _integers(ids)
            return self._rows(self._known(numbers), numbers)

    def compact(self) -> None:
        """Write all rows anew, without those that were deleted or replaced; what was built over them must be built again."""
        if self._ledger.busy:
            raise SoftlookupError("compact: expected to be called by itself, got a call together with other changes")
        with self._writing():
            state = self._read()
            positions = torch.arange(state.total) if state.alive is None else state.alive.nonzero()[:, 0].cpu()
            self._ledger.renumber()
            for some in positions.split(AT_ONCE) if len(positions) else ():
                self._grow(gathered(state.parts, some, "keys"), gathered(state.parts, some, "values"))
        self._tidy()

    def verify(self) -> list[str]:
        """What is not as it was written, a line each: every byte of rows and payloads is read and its checksum compared."""
        while True:
            with self._ledger.reading():
                version = self._ledger.meta("version")
                wrong = self._ledger.damage() or self._shards.damage(self._ledger.chunks()) + self._damaged_files()
            if not wrong or self._ledger.meta("version") == version:  # else a compaction may have moved rows meanwhile
                return wrong

    def stats(self) -> dict[str, Any]:
        """Numbers of a table: rows, deleted rows, widths, shards, bytes, what is built over it."""
        state = self.state()
        return {
            "rows": state.count,
            "deleted": state.total - state.count,
            "key_width": self.key_width,
            "value_width": self.value_width,
            "shards": len(state.parts),
            "bytes": 0 if self.folder is None else _bytes_of(self.folder),
            "index": [f"{kind} over {rows:,} rows" for _, kind, rows, _ in state.files],
        }

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read one and the same state of the table inside, whatever others write meanwhile; nothing is to be changed inside."""
        with self._ledger.reading():
            self._read()
            yield

    def state(self) -> State:
        """As it is now."""
        with self._ledger.reading():
            return self._read()

    def _read(self) -> State:
        """Inside of a transaction, and the first thing that is read in it."""
        while True:
            version = self._ledger.meta("version")
            if self._state is not None and self._state.version == version:
                return self._state
            shards = self._ledger.shards()
            try:
                parts = self._shards.parts(shards)
                break
            except FileNotFoundError as error:
                # A compaction removes files that were listed a moment before.
                self._ledger.renew()
                if self._ledger.meta("version") == version:
                    raise SoftlookupError(f"{error.filename}: {reason(error)}") from error
        total = sum(rows for _, rows in shards)
        alive, dead = None, self._ledger.dead()
        if len(dead) > total or any(p >= total for p in dead[-1:]) or any(rows < 1 for _, rows in shards):
            raise SoftlookupError(f"{self._ledger.name}: expected {total:,} positions, got others; its database is damaged")
        if dead:
            alive = torch.ones(total, dtype=torch.bool)
            alive[torch.tensor(dead)] = False
            alive = alive.to(parts[0].keys.device)
        self._state = State(version, [number for number, _ in shards], parts, alive, total - len(dead), self._ledger.files())
        return self._state

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make all changes inside at once, or none where an error leaves the block. What raises changes nothing by itself."""
        with self._writing():
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if not self._write:
            raise SoftlookupError(f"{self._ledger.name}: expected a table opened with write=True, got one for reading")
        try:
            with self._ledger.writing():
                yield
        except BaseException:
            self._state = None  # it may be one that never was
            self._shards.forget()
            raise

    def _append(self, keys: Tensor, values: Tensor | None, payloads: Sequence[Any] | None, ids: Sequence[int]) -> None:
        first = sum(rows for _, rows in self._ledger.shards())
        self._grow(keys, values)
        self._ledger.insert(first, ids, [None] * len(ids) if payloads is None else payloads)

    def _grow(self, keys: Tensor, values: Tensor | None) -> None:
        """Vectors into the last shard and new ones."""
        done = 0
        while done < len(keys):
            number, rows = ([(-1, self._shards.shard_rows)] + self._ledger.shards())[-1]
            if rows >= self._shards.shard_rows:
                number, rows = self._ledger.take("next_shard", 1), 0
            some = slice(done, done + min(self._shards.shard_rows - rows, len(keys) - done))
            self._ledger.grow(self._shards.append(number, rows, keys[some], None if values is None else values[some]))
            done = some.stop

    def _rows(self, found: dict[int, tuple[int, Any]], ids: list[int]) -> Rows:
        state = self._read()
        positions = torch.tensor([found[i][0] for i in ids], dtype=torch.int64)
        if bool((positions >= state.total).any()):
            raise SoftlookupError(f"{self._ledger.name}: expected rows at {state.total:,} positions, got others; it is damaged")
        keys, values = (gathered(state.parts, positions, kind) for kind in KINDS)
        if keys is None:
            keys = torch.empty(0, self.key_width)
            values = torch.empty(0, self.value_width) if self.value_width else None
        return Rows(torch.tensor(ids, dtype=torch.int64), keys, values, [found[i][1] for i in ids])

    def _known(self, ids: list[int]) -> dict[int, tuple[int, Any]]:
        """Position and payload of each."""
        found = self._ledger.find(ids)
        if missing := [i for i in ids if i not in found]:
            raise SoftlookupError(f"ids: expected ids of rows, found none of {', '.join(map(str, missing[:5]))}")
        return found

    def _check_rows(self, keys: Tensor, values: Tensor | None, payloads: Sequence[Any] | None, ids: list[int] | None) -> None:
        _check("keys", keys, self.key_width, self.dtype)
        if (values is None) != (self.value_width == 0):
            got = "none" if values is None else "some"
            raise SoftlookupError(f"values: expected {f'(n, {self.value_width})' if self.value_width else 'none'}, got {got}")
        if values is not None:
            _check("values", values, self.value_width, self.dtype)
        for name, given in (("values", values), ("payloads", payloads), ("ids", ids)):
            if given is not None and len(given) != len(keys):
                raise SoftlookupError(f"{name}: expected one for each of the {len(keys)} keys, got {len(given)}")
        if ids is not None and len(set(ids)) < len(ids):
            raise SoftlookupError("ids: expected each once, got some twice")

    def _damaged_files(self) -> list[str]:
        wrong = []
        for name, _, _, expected in self._ledger.files() if self.folder is not None else ():
            try:
                self._content(name, expected)
            except SoftlookupError as error:
                wrong.append(str(error))
        return wrong

    def _content(self, name: str, expected: int) -> bytes:
        """Of a file that was built over the rows."""
        assert self.folder is not None
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SoftlookupError(f"{path}: {reason(error)}") from error
        if zlib.crc32(content) != expected:
            raise SoftlookupError(f"{path}: expected what was written, got something else; index() builds it again")
        return content

    def _tidy(self) -> None:
        """Remove what commits that never came have left, and what is not known any more. Inside of a larger change nothing is:
        it may yet be undone."""
        if self._ledger.busy:
            return
        with self._ledger.writing():
            self._shards.tidy(self._ledger.shards())
            known = {name for name, _, _, _ in self._ledger.files()}
            for path in () if self.folder is None else (*self.folder.glob("index-*"), *self.folder.glob(".index-*")):
                if path.name not in known:
                    path.unlink(missing_ok=True)


def _bytes_of(folder: Path) -> int:
    """Of its files; some may go meanwhile."""
    size = 0
    for path in folder.iterdir():
        if not path.name.endswith(("-wal", "-shm")):
            with suppress(FileNotFoundError):
                size += path.stat().st_size
    return size


def gathered(parts: Sequence[Part], positions: Tensor, kind: str) -> Any:
    """The vectors, keys or values, at positions (…): (…, width); None where parts have none of that kind."""
    vectors, flat = [getattr(part, kind) for part in parts], positions.flatten()
    if not vectors or vectors[0] is None:
        return None
    if len(vectors) == 1:
        found = vectors[0].index_select(0, flat.to(vectors[0].device))
    else:
        found = vectors[0].new_empty(len(flat), vectors[0].shape[1])
        for part, some in zip(parts, vectors, strict=True):
            here = ((flat >= part.first) & (flat < part.first + len(some))).nonzero()[:, 0]
            if len(here):
                found[here] = some.index_select(0, flat[here] - part.first)
    return found.unflatten(0, positions.shape)


def _check(name: str, x: Any, width: int | None, dtype: torch.dtype | None) -> None:
    """Raise unless x is (n, width), and finite also when it is kept in a dtype."""
    shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
    if (
        not isinstance(x, Tensor)
        or x.ndim != 2
        or not x.is_floating_point()
        or (width or x.shape[1]) != x.shape[1]
        or not x.shape[1]
    ):
        raise SoftlookupError(f"{name}: expected a floating-point tensor (n, {width or 'width'}), got {shape}")
    if not bool(x.to(dtype).isfinite().all()):
        kind = "" if dtype in (None, x.dtype) else f" in {str(dtype).removeprefix('torch.')}"
        raise SoftlookupError(f"{name}: expected finite numbers{kind}, got NaN or infinity")


def _integers(ids: Sequence[int] | Tensor) -> list[int]:
    if isinstance(ids, Tensor):
        ids = ids.tolist()
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise SoftlookupError(f"ids: expected a list of whole numbers, got {ids!r}")
    found = []
    for i in ids:
        number = -1 if isinstance(i, bool) or not hasattr(i, "__index__") else operator.index(i)
        if not 0 <= number < MOST_IDS:
            raise SoftlookupError(f"ids: expected whole numbers from 0 to 2^62 - 1, got {i!r}")
        found.append(number)
    return found
