from __future__ import annotations

import pytest


@pytest.fixture
def reversals(tmp_path):
    """A file of words and their letters backwards, spaced."""
    import itertools

    words = ["".join(x) for n in (2, 3, 4) for x in itertools.product("abcd", repeat=n)]
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{w}\t{' '.join(reversed(w))}\n" for w in words))
    return path
