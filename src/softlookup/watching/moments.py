"""Count, mean, variance and extremes of statistics per head, merged exactly, whatever the split into batches.

Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance": with n = n_a + n_b, d = mean_b - mean_a,

    mean = mean_a + d n_b / n          M2 = M2_a + M2_b + d^2 n_a n_b / n

so that no sum of squares is ever subtracted from another, and merging is associative up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of T statistics of H heads. count: (H,) int64 values; weight: (H,) float64, the number of values that they
    stand for (more where they are a sample); mean, m2, lowest, highest: (T, H) float64; spread: (T, H) the variance that
    weight times mean has because of what a sample left out.
    """

    count: Tensor
    weight: Tensor
    mean: Tensor
    m2: Tensor
    lowest: Tensor
    highest: Tensor
    spread: Tensor

    @classmethod
    def empty(cls, statistics: int, heads: int) -> Moments:
        """The moments of nothing: the neutral element of `merge`."""
        zeros = torch.zeros(statistics, heads, dtype=torch.float64)
        none = torch.zeros(heads, dtype=torch.int64)
        return cls(none, none.double(), zeros, zeros, zeros + math.inf, zeros - math.inf, zeros)

    @classmethod
    def of(
        cls, values: Tensor, counted: Tensor | None = None, weight: Tensor | None = None, spread: Tensor | float = 0.0
    ) -> Moments:
        """Moments of `values` (T, H, N > 0) over the entries where `counted` (H, N) is True, all by default; each of which
        stands for `weight` (N,) values, 1 by default, and their sum has the variance `spread` (T, H) for that.
        """
        spread = torch.zeros(values.shape[:2], dtype=torch.float64) + spread
        if counted is None and weight is None:
            variance, mean = torch.var_mean(values.double(), -1, correction=0)
            lowest, highest = torch.aminmax(values, dim=-1)
            count = torch.full(values.shape[1:2], values.shape[2])
            return cls(count, count.double(), mean, variance * count, lowest.double(), highest.double(), spread)
        values = values.double()
        counted = torch.ones(values.shape[1:], dtype=torch.bool) if counted is None else counted
        each = counted.double() if weight is None else counted * weight.double()  # (H, N)
        total = each.sum(-1)
        # What does not count must not meet a weight of 0: it may be infinite.
        mean = (torch.where(counted, values, 0.0) * each).sum(-1) / torch.where(total > 0, total, 1.0)
        m2 = (torch.where(counted, values - mean[..., None], 0.0).square() * each).sum(-1)
        lowest = torch.where(counted, values, math.inf).amin(-1)
        highest = torch.where(counted, values, -math.inf).amax(-1)
        return cls(counted.sum(-1), total, mean, m2, lowest, highest, spread)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of queries together."""
        weight = self.weight + other.weight
        share = other.weight / torch.where(weight > 0, weight, 1.0)
        # An empty side says nothing, and its mean of 0 must not meet an infinite one: inf * 0 would be NaN.
        delta = torch.where((self.count > 0) & (other.count > 0), other.mean - self.mean, 0.0)
        mean = torch.where(self.count > 0, self.mean, other.mean) + delta * share
        m2 = self.m2 + other.m2 + delta.square() * (self.weight * share)
        lowest, highest = torch.minimum(self.lowest, other.lowest), torch.maximum(self.highest, other.highest)
        return Moments(self.count + other.count, weight, mean, m2, lowest, highest, self.spread + other.spread)

    @property
    def stderr(self) -> Tensor:
        """(T, H) standard error of the mean, 0 where nothing was left out."""
        return self.spread.sqrt() / torch.where(self.weight > 0, self.weight, 1.0)

    @property
    def std(self) -> Tensor:
        """(T, H) standard deviation over the counted queries (the population's: divided by n)."""
        return (self.m2 / torch.where(self.weight > 0, self.weight, 1.0)).sqrt()
