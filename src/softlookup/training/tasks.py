"""What is learned: pairs of sequences, split by a rule that depends on the source alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

Sequence = tuple[str, ...]

TRAIN, DEV = 85, 90
"""Of a hundred: below 85 a source is for training, below 90 for choosing, else for testing."""

PARTS = ("train", "dev", "test")


@dataclass(frozen=True)
class Pair:
    """A source and what it may become: one reference at least, all equally right."""

    source: Sequence
    references: tuple[Sequence, ...]


@dataclass(frozen=True)
class Corpus:
    """All pairs of a task, and where they come from. checksum: of the data that was read."""

    train: list[Pair]
    dev: list[Pair]
    test: list[Pair]
    origin: str
    checksum: str

    def part(self, name: str) -> list[Pair]:
        """The pairs of one of PARTS."""
        return {"train": self.train, "dev": self.dev, "test": self.test}[name]


def part_of(source: Sequence) -> str:
    """The part that a source belongs to: the first 32 bits of SHA-256 of its symbols, joined by spaces, modulo 100."""
    at = int.from_bytes(hashlib.sha256(" ".join(source).encode()).digest()[:4], "big") % 100
    return "train" if at < TRAIN else "dev" if at < DEV else "test"


def split(found: dict[Sequence, list[Sequence]], origin: str, checksum: str) -> Corpus:
    """A corpus of sources with their references, in sorted order."""
    parts: dict[str, list[Pair]] = {name: [] for name in PARTS}
    for source in sorted(found):
        parts[part_of(source)].append(Pair(source, tuple(dict.fromkeys(found[source]))))
    return Corpus(parts["train"], parts["dev"], parts["test"], origin, checksum)


def checksum(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def gather(pairs: Iterable[tuple[Sequence, Sequence]]) -> dict[Sequence, list[Sequence]]:
    """All references of each source."""
    found: dict[Sequence, list[Sequence]] = {}
    for source, target in pairs:
        found.setdefault(source, []).append(target)
    return found
