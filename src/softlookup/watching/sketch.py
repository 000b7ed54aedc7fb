"""Quantiles of a stream in constant memory: one logarithmic histogram per head.

Masson, Rim and Lee (2019), "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees". With
gamma = (1 + a)/(1 - a), a value x > 0 falls into bin ceil(log_gamma x), and every value of a bin is within relative
error a of the bin's representative 2 gamma^k/(gamma + 1). Here bins are signed, and magnitudes below FLOOR are one bin
at 0: a quantile is exact to `ACCURACY` relative or FLOOR absolute, whichever is larger.

Merging adds counts: it is exact, associative and commutative. Memory follows the range of the values, never their
number: at most 2 * BINS + 1 counts per head, a few hundred in practice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import SoftlookupError

ACCURACY = 0.01
FLOOR = 1e-6
CEILING = 1e9

_LOG_GAMMA = math.log1p(ACCURACY) - math.log1p(-ACCURACY)
BINS = math.ceil(math.log(CEILING / FLOOR) / _LOG_GAMMA) + 1
"""Largest bin of one sign; magnitudes above CEILING share it."""
_NAN = BINS + 1  # NaN sorts last, as in numpy: it gets a bin of its own above every number
_SLACK = 32  # bins added on each side when the window grows, so that it seldom does


def bins_of(values: Tensor) -> Tensor:
    """The signed bin of each value, int64, monotone in the value; NaN gets a bin above all others."""
    magnitude = (values.abs() * (1 / FLOOR)).log_().mul_(1 / _LOG_GAMMA).ceil_().add_(1).clamp_(0, BINS)
    return magnitude.mul_(values.sign()).nan_to_num_(_NAN).to(torch.int64)


def value_of(bins: Tensor) -> Tensor:
    """The representative of each bin, float64."""
    magnitude = FLOOR * 2 * torch.exp((bins.abs() - 1) * _LOG_GAMMA) / (math.exp(_LOG_GAMMA) + 1)
    value = torch.where(bins == 0, 0.0, magnitude.to(torch.float64) * bins.sign())
    return torch.where(bins == _NAN, math.nan, value)


class QuantileSketch:
    """The distribution of one statistic in each of H heads."""

    def __init__(self, heads: int):
        self._first = 0  # bin of column 0
        self._counts = torch.zeros(heads, 0, dtype=torch.float64)  # whole numbers, but where a sample stands for more

    def add(self, values: Tensor, counted: Tensor | None = None) -> None:
        """Add `values` (H, N), where `counted` (H, N) is True, all by default."""
        if values.shape[-1]:
            add_all([self], values[None], counted)

    def merge(self, other: QuantileSketch) -> None:
        """Add everything that `other` has seen."""
        first, last = other._first, other._first + other._counts.shape[1]
        if last > first:
            self._cover(first, last)
            self._counts[:, first - self._first : last - self._first] += other._counts

    def quantile(self, q: float) -> Tensor:
        """(H,) float64: the value of rank floor(q (n - 1)) of each head, NaN for a head that has seen nothing."""
        if not 0.0 <= q <= 1.0:
            raise SoftlookupError(f"quantile: expected a number from 0 to 1, got {q}")
        total = self._counts.sum(1)
        if not self._counts.shape[1]:
            return torch.full(total.shape, math.nan, dtype=torch.float64)
        rank = (q * (total - 1).clamp(min=0)).floor()
        bins = self._first + (self._counts.cumsum(1) <= rank[:, None]).sum(1)
        return torch.where(total > 0, value_of(bins), math.nan)

    def _cover(self, first: int, last: int) -> None:
        """Widen the window to hold bins [first, last)."""
        heads, width = self._counts.shape
        end = self._first + width
        if width and first >= self._first and last <= end:
            return
        new_first = first - _SLACK if not width or first < self._first else self._first
        new_end = last + _SLACK if not width or last > end else end
        counts = torch.zeros(heads, new_end - new_first, dtype=torch.float64)
        if width:
            counts[:, self._first - new_first : end - new_first] = self._counts
        self._first, self._counts = new_first, counts


def add_all(
    sketches: Sequence[QuantileSketch], values: Tensor, counted: Tensor | None = None, weight: Tensor | None = None
) -> None:
    """Add `values` (T, H, N > 0) to T sketches at once, one histogram for all of them; each stands for `weight` (N,) values,
    1 by default."""
    bins = bins_of(values)
    edges = bins if counted is None else bins.masked_fill(~counted, 0)  # the bin of 0 costs a window little
    lowest, highest = (edge.tolist() for edge in torch.aminmax(edges.flatten(1), dim=1))
    for sketch, low, high in zip(sketches, lowest, highest, strict=True):
        sketch._cover(low, high + 1)
    heads, sizes = values.shape[1], [sketch._counts.numel() for sketch in sketches]
    starts = torch.tensor([0, *sizes]).cumsum(0)[:-1]
    widths, firsts = (torch.tensor(x) for x in zip(*((s._counts.shape[1], s._first) for s in sketches), strict=True))
    first_cell = starts[:, None] - firsts[:, None] + torch.arange(heads) * widths[:, None]  # (T, H) cell of bin 0
    cells = bins.add_(first_cell[..., None])
    each = None if weight is None else weight.double().expand(cells.shape)
    if counted is not None:
        some = counted.expand_as(cells)
        cells, each = cells[some], None if each is None else each[some]
    counts = torch.bincount(cells.flatten(), None if each is None else each.flatten(), minlength=sum(sizes))
    for sketch, part in zip(sketches, counts.split(sizes), strict=True):
        sketch._counts.add_(part.view_as(sketch._counts))
