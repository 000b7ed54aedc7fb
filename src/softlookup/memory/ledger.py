"""What a table knows of its rows besides vectors: ids, payloads, deletes, checksums, and which rows exist. All of it in SQLite,
whose commit is the moment from which a row exists; a table in memory has a database in memory."""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import SoftlookupError

FORMAT = 1
PATIENCE = 10.0
"""Seconds to wait for another writer's transaction."""

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE shards (number INTEGER PRIMARY KEY, rows INTEGER NOT NULL);
CREATE TABLE chunks (shard INTEGER, first INTEGER, rows INTEGER NOT NULL, keys INTEGER NOT NULL, vals INTEGER NOT NULL,
    PRIMARY KEY (shard, first)) WITHOUT ROWID;
CREATE TABLE rows (position INTEGER PRIMARY KEY, id INTEGER NOT NULL, payload, checksum INTEGER NOT NULL);
CREATE UNIQUE INDEX by_id ON rows (id);
CREATE TABLE dead (position INTEGER PRIMARY KEY);
CREATE TABLE files (name TEXT PRIMARY KEY, kind TEXT NOT NULL, rows INTEGER NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
"""


# How a change begins, ends, and is undone: by itself, or as a part of another.
_TRANSACTION = ["BEGIN IMMEDIATE"], ["COMMIT"], ["ROLLBACK"]
_SAVEPOINT = ["SAVEPOINT inside"], ["RELEASE inside"], ["ROLLBACK TO inside", "RELEASE inside"]


@dataclass(frozen=True)
class Chunk:
    """Rows that were written at once, and the checksums of their vectors."""

    shard: int
    first: int
    rows: int
    keys: int
    values: int


class Committed(KeyboardInterrupt):
    """An interrupt that came when all had been written."""


class Ledger:
    """A connection. Reads see one state inside of `reading`, changes are made inside of `writing`."""

    def __init__(self, connection: sqlite3.Connection, name: str):
        self._db, self.name, self._writes = connection, name, False

    @classmethod
    def create(cls, path: Path | None, **meta: int) -> Ledger:
        """A new one, whole or not at all, in memory where there is no path; meta: what never changes, and counters."""
        name = "the table" if path is None else str(path.parent)
        part = None if path is None else path.with_name(f".{path.name}.part")
        with _told(name):
            if part is not None:
                part.unlink(missing_ok=True)
            db = sqlite3.connect(":memory:" if part is None else part, isolation_level=None)
            db.executescript("BEGIN IMMEDIATE;" + _SCHEMA)
            items = (meta | {"format": FORMAT, "next_id": 0, "next_shard": 0, "version": 0}).items()
            db.executemany("INSERT INTO meta VALUES (?, ?)", items)
            db.execute("COMMIT")
            if path is None or part is None:
                return cls(db, name)
            db.execute("PRAGMA journal_mode = WAL")
            db.close()
        os.replace(part, path)
        return cls.open(path, write=True)

    @classmethod
    def open(cls, path: Path, write: bool) -> Ledger:
        """One that exists."""
        name = str(path.parent)
        with _told(name):
            # Not read-only: a reader of a write-ahead log marks in it what it reads.
            ledger = cls(
                sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", timeout=PATIENCE, isolation_level=None, uri=True), name
            )
            ledger._db.execute("PRAGMA synchronous = FULL")
            if not write:
                ledger._db.execute("PRAGMA query_only = ON")
            if _schema_of(ledger._db) != _schema():
                raise SoftlookupError(f"{name}: expected the database of a table in {path.name}, found another (or damage)")
            found = ledger.meta("format")
        if found != FORMAT:
            raise SoftlookupError(f"{name}: expected a table of format {FORMAT}, got {found}")
        return ledger

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One state of the table, whatever others write."""
        with _told(self.name):
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("COMMIT")

    def renew(self) -> None:
        """Inside of `reading`: see the state of now."""
        if self._db.in_transaction and not self._writes:
            self._db.execute("COMMIT")
            self._db.execute("BEGIN")

    @property
    def busy(self) -> bool:
        """Whether a transaction is open."""
        return self._db.in_transaction

    @property
    def changing(self) -> bool:
        """Whether it is one of changes, which may yet be undone."""
        return self._writes

    @contextmanager
    def writing(self) -> Iterator[None]:
        """All of it or nothing; waits for another writer. Inside of another it is part of that."""
        with _told(self.name):
            inner = self._db.in_transaction
            if inner and not self._writes:
                raise SoftlookupError(f"{self.name}: expected changes outside of reading(), got one inside")
            begin, end, undo = _SAVEPOINT if inner else _TRANSACTION
            self._all(begin)
            self._writes = True
            try:
                yield
                self._db.execute("UPDATE meta SET value = value + 1 WHERE name = 'version'")
                self._all(end)
            except BaseException as error:
                if self._db.in_transaction:
                    self._all(undo)
                elif isinstance(error, KeyboardInterrupt):
                    raise Committed from error
                raise
            finally:
                self._writes = inner

    def _all(self, statements: Sequence[str]) -> None:
        for statement in statements:
            self._db.execute(statement)

    def meta(self, name: str) -> int:
        found = self._one("SELECT value FROM meta WHERE name = ?", name)
        return self._whole(found)[0]

    def take(self, counter: str, count: int) -> int:
        """The first of `count` fresh numbers."""
        first = self.meta(counter)
        self._db.execute("UPDATE meta SET value = ? WHERE name = ?", (first + count, counter))
        return first

    def shards(self) -> list[tuple[int, int]]:
        """Number and rows of each, in the order of their positions."""
        found = self._db.execute("SELECT number, rows FROM shards ORDER BY number").fetchall()
        return [(number, rows) for number, rows in (self._whole(*row) for row in found)]

    def grow(self, chunk: Chunk) -> None:
        """Rows at the end of a shard, which may be new."""
        self._db.execute(
            "INSERT INTO shards VALUES (?, ?) ON CONFLICT (number) DO UPDATE SET rows = rows + excluded.rows",
            (chunk.shard, chunk.rows),
        )
        values = (chunk.shard, chunk.first, chunk.rows, chunk.keys, chunk.values)
        self._db.execute("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", values)

    def chunks(self) -> list[Chunk]:
        return [Chunk(*self._whole(*row)) for row in self._db.execute("SELECT * FROM chunks ORDER BY shard, first")]

    def insert(self, first: int, ids: Sequence[int], payloads: Sequence[Any]) -> None:
        """Rows at positions from `first` on; ids are not in use."""
        packed = map(pack, payloads)
        rows = ((first + n, i, p, checksum(i, p)) for n, (i, p) in enumerate(zip(ids, packed, strict=True)))
        self._db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)
        self._db.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'next_id'", (max(ids, default=-1) + 1,))

    def remove(self, positions: Sequence[int]) -> None:
        self._db.executemany("DELETE FROM rows WHERE position = ?", ((p,) for p in positions))
        self._db.executemany("INSERT INTO dead VALUES (?)", ((p,) for p in positions))

    def find(self, ids: Sequence[int]) -> dict[int, tuple[int, Any]]:
        """Position and payload of each id that exists."""
        query = "SELECT rows.id, position, payload FROM rows JOIN json_each(?) AS asked ON rows.id = asked.value"
        return {i: (p, unpack(x)) for i, p, x in self._db.execute(query, (json.dumps(list(ids)),))}

    def ids(self, positions: Sequence[int]) -> dict[int, int]:
        """The id of each position that exists."""
        query = "SELECT position, rows.id FROM rows JOIN json_each(?) AS asked ON position = asked.value"
        return dict(self._db.execute(query, (json.dumps(list(positions)),)))

    def all_ids(self) -> list[int]:
        """In the order of their positions."""
        return [self._whole(i)[0] for (i,) in self._db.execute("SELECT id FROM rows ORDER BY position")]

    def rows(self) -> Iterator[tuple[int, int, Any, int]]:
        """Position, id, packed payload and checksum of all, by position."""
        return iter(self._db.execute("SELECT * FROM rows ORDER BY position"))

    def count(self) -> int:
        return self._one("SELECT count(*) FROM rows")

    def dead(self) -> list[int]:
        return [self._whole(p)[0] for (p,) in self._db.execute("SELECT position FROM dead ORDER BY position")]

    def renumber(self) -> None:
        """Give the rows positions from 0 on, in their order, and forget shards, deletes and files."""
        self._db.execute(
            "CREATE TEMP TABLE moved AS "
            "SELECT row_number() OVER (ORDER BY position) - 1 AS position, id, payload, checksum FROM rows"
        )
        for name in ("rows", "dead", "shards", "chunks", "files"):
            self._db.execute(f"DELETE FROM {name}")
        self._db.execute("INSERT INTO rows SELECT * FROM moved")
        self._db.execute("DROP TABLE moved")

    def files(self) -> list[tuple[str, str, int, int]]:
        """Name, kind, rows covered and checksum of what was built over the rows."""
        return self._db.execute("SELECT * FROM files ORDER BY name").fetchall()

    def replace_file(self, name: str, kind: str, rows: int, sum_of: int) -> None:
        """That of its kind."""
        self._db.execute("DELETE FROM files WHERE kind = ?", (kind,))
        self._db.execute("INSERT INTO files VALUES (?, ?, ?, ?)", (name, kind, rows, sum_of))

    def damage(self) -> list[str]:
        """What SQLite itself finds wrong, and rows whose checksum is another."""
        try:
            return self._damage()
        except (sqlite3.DatabaseError, ValueError, TypeError, AttributeError) as error:  # what is damaged may hold anything
            return [f"{self.name}: its database cannot be read ({error})"]

    def _damage(self) -> list[str]:
        wrong = [str(x) for (x,) in self._db.execute("PRAGMA integrity_check") if x != "ok"]
        if wrong:
            return wrong
        for position, i, payload, kept in self.rows():
            if checksum(i, payload) != kept:
                wrong.append(f"row {i} at position {position}: its id or payload is not what was written")
        everything = sum(rows for _, rows in self.shards())
        known = self._one(
            "SELECT count(*) FROM (SELECT position FROM rows UNION SELECT position FROM dead) WHERE position BETWEEN 0 AND ?",
            everything - 1,
        )
        if known != everything or self.count() + len(self.dead()) != everything:
            wrong.append(f"positions: expected each of {everything:,} to be a row or a deleted one, {known:,} are")
        return wrong

    def _whole(self, *numbers: Any) -> tuple[int, ...]:
        for number in numbers:
            if not isinstance(number, int) or number < 0:
                raise SoftlookupError(f"{self.name}: expected whole numbers in its database, got {number!r}; it is damaged")
        return numbers

    def _one(self, query: str, *values: Any) -> int:
        found = self._db.execute(query, values).fetchone()
        if found is None:
            raise SoftlookupError(f"{self.name}: expected {', '.join(map(str, values))} in its database, found none")
        return found[0]


@cache
def _schema() -> list[tuple[str]]:
    db = sqlite3.connect(":memory:")
    db.executescript(_SCHEMA)
    return _schema_of(db)


def _schema_of(db: sqlite3.Connection) -> list[tuple[str]]:
    return db.execute("SELECT sql FROM sqlite_schema WHERE sql NOT NULL ORDER BY name").fetchall()


def pack(payload: Any) -> Any:
    """Bytes as they are, anything else as JSON."""
    if payload is None or isinstance(payload, bytes):
        return payload
    try:
        packed = json.dumps(payload, ensure_ascii=False, allow_nan=False)
        packed.encode()
        return packed
    except (TypeError, ValueError, RecursionError) as error:
        raise SoftlookupError(f"payload: expected bytes or what JSON can say, got {type(payload).__name__} ({error})") from None


def unpack(packed: Any) -> Any:
    try:
        return json.loads(packed) if isinstance(packed, str) else packed
    except ValueError:
        raise SoftlookupError(f"payload: expected what was written, got {packed[:40]!r}; the database is damaged") from None


def checksum(i: int, packed: Any) -> int:
    """Of an id and a packed payload."""
    content = b"" if packed is None else packed if isinstance(packed, bytes) else packed.encode()
    kind = {type(None): b"n", bytes: b"b"}.get(type(packed), b"t")
    return zlib.crc32(content, zlib.crc32(kind + str(i).encode()))


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What SQLite complains of, in one line."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        said = " ".join(str(error).split()) if isinstance(error, sqlite3.Error) else "its database is damaged"
        if "locked" in said:
            said = f"another process has been writing to it for {PATIENCE:.0f} seconds"
        elif "disk is full" in said:
            said = "the disk is full"
        elif "readonly" in said or "query_only" in said:
            said = "expected a folder that can be written to (to read, too), and write=True where rows are changed"
        raise SoftlookupError(f"{name}: {said}") from error
