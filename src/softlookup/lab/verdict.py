"""A verdict is computed: where the 95 % interval of what was measured lies beside the interval that was predicted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .extra import extra


class Verdict(StrEnum):
    """What measurements say of a prediction."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Measured:
    """The mean over seeds, and the 95 % interval of that mean by Student's t. One seed: a number without an interval, for what
    chance does not touch, and for quick runs that can afford no second training. NaN throughout where a seed found none."""

    mean: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Measured:
        """A value for each seed -> their mean and its 95 % interval (Student's t)."""
        mean, half = statistics.fmean(values), 0.0
        if not math.isfinite(mean):
            return cls(math.nan, math.nan, math.nan, len(values))
        if len(values) > 1:
            with extra():
                from scipy.stats import t as student
            half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half, len(values))

    def verdict(self, low: float, high: float) -> Verdict:
        """Confirmed if the interval of the mean lies inside of the predicted one, refuted if outside, else inconclusive (also
        for NaN)."""
        if low <= self.low and self.high <= high:
            return Verdict.CONFIRMED
        if self.high < low or high < self.low:
            return Verdict.REFUTED
        return Verdict.INCONCLUSIVE


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """Of a claim: refuted if any of its predictions is, confirmed if all are."""
    found = set(verdicts)
    if Verdict.REFUTED in found:
        return Verdict.REFUTED
    return Verdict.CONFIRMED if found == {Verdict.CONFIRMED} else Verdict.INCONCLUSIVE
