"""How far outputs are from what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from .tasks import Pair


@dataclass(frozen=True)
class Scores:
    """Of n outputs, against the closest reference of each.

    wrong: (n,) 1 where an output equals no reference. edits: (n,) insertions, deletions and substitutions to the closest
    reference; length: (n,) of that. source: (n,) length of the source.
    """

    wrong: np.ndarray
    edits: np.ndarray
    length: np.ndarray
    source: np.ndarray

    @property
    def wer(self) -> float:
        """Word error rate: the share of outputs that equal no reference."""
        return float(self.wrong.mean())

    @property
    def per(self) -> float:
        """Phone (symbol) error rate: edits per symbol of the references."""
        return float(self.edits.sum() / self.length.sum())

    def take(self, which: np.ndarray) -> Scores:
        """Of these outputs: a mask or indices."""
        return Scores(self.wrong[which], self.edits[which], self.length[which], self.source[which])

    def interval(self, what: str = "wer", samples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """The 95 % bootstrap interval over outputs of `wer` or `per`."""
        random = np.random.default_rng(seed)
        n = len(self.wrong)
        drawn = [getattr(self.take(random.integers(0, n, n)), what) for _ in range(samples)]
        low, high = np.quantile(drawn, (0.025, 0.975))
        return float(low), float(high)


def score(outputs: Sequence[tuple[str, ...]], pairs: Sequence[Pair]) -> Scores:
    """Each output against its pair's references."""
    rows = [_closest(output, pair) for output, pair in zip(outputs, pairs, strict=True)]
    edits, length = (np.array(x) for x in zip(*rows, strict=True))
    return Scores((edits > 0).astype(float), edits, length, np.array([len(pair.source) for pair in pairs]))


def _closest(output: tuple[str, ...], pair: Pair) -> tuple[int, int]:
    """Edits to the reference that needs the fewest for its length, and that."""
    return min(((Levenshtein.distance(output, each), len(each)) for each in pair.references), key=lambda x: x[0] / x[1])
