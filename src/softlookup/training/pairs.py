"""A user's own pairs: a file of lines, source<TAB>target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import SoftlookupError
from ..files import expanded, reason
from .tasks import Corpus, Sequence, checksum, gather, split

UNITS = ("characters", "words")
FEWEST = 20
LONGEST = 1000
"""Symbols of a source or a target: a batch is as wide as its longest."""


def read(path: str | Path, source_units: str, target_units: str) -> Corpus:
    """The pairs of a UTF-8 file. units: "characters" of a field or "words" between spaces. A source on several lines has as
    many references; empty lines are skipped. The first malformed line raises, with its number."""
    for name, units in (("--source", source_units), ("--target", target_units)):
        if units not in UNITS:
            raise SoftlookupError(f"{name}: expected {' or '.join(UNITS)}, got {units!r}")
    try:
        content = expanded(path).read_bytes()
    except OSError as error:
        raise SoftlookupError(f"--pairs: cannot read {path}: {reason(error)}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SoftlookupError(f"{path}:{line}: expected UTF-8, got byte {content[error.start]:#04x}") from None
    corpus = split(gather(_lines(str(path), text, source_units, target_units)), str(path), checksum(content))
    sizes = {name: len(corpus.part(name)) for name in ("train", "dev", "test")}
    if sum(sizes.values()) < FEWEST or not all(sizes.values()):
        got = ", ".join(f"{n} for {name}" for name, n in sizes.items())
        raise SoftlookupError(f"{path}: expected at least {FEWEST} different sources, some for each part, got {got}")
    return corpus


def symbols(field: str, units: str) -> Sequence:
    """A field as a sequence."""
    return tuple(field.split()) if units == "words" else tuple(field)


def _lines(path: str, text: str, source_units: str, target_units: str) -> Iterator[tuple[Sequence, Sequence]]:
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != 2:
            raise SoftlookupError(f"{path}:{number}: expected source<TAB>target, got {len(fields)} fields")
        source, target = symbols(fields[0], source_units), symbols(fields[1], target_units)
        if not source or not target:
            empty = "target" if source else "source"
            raise SoftlookupError(f"{path}:{number}: expected a source and a target, got an empty {empty}")
        for what, sequence in (("source", source), ("target", target)):
            if len(sequence) > LONGEST:
                raise SoftlookupError(f"{path}:{number}: expected at most {LONGEST} symbols, got a {what} of {len(sequence)}")
        yield source, target

