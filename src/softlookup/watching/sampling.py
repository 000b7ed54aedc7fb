"""Some of a call's query positions, drawn at random: their statistics are exact, and means over them unbiased.

What heads do changes along a text, and fastest where it begins: the first query sees one key. So an eighth of the positions
are the first ones, all of them, and the rest of the text is cut into as many equal pieces as more are wanted, with one drawn
from each (stratified sampling). Pieces may end inside a position: each is drawn with the same probability.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .call import Call
from .slices import at_rows

ROWS = 64
"""Positions per call where nobody says otherwise: a mean over 64 of 2,048 is known to an eighth of its standard deviation."""


@dataclass(frozen=True)
class Sample:
    """Which positions were looked at: the `first` so many of a text, and others, drawn from `among` behind them."""

    first: int
    among: int

    def weigh(self, values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) for how many positions each of the R looked at stands, and (T, H) the variance of sums over all for that; values
        and counted as `spread_of_sum` has them."""
        drawn = values.shape[-1] - self.first
        weight = torch.ones(values.shape[-1], dtype=torch.float64)
        weight[self.first :] = self.among / drawn
        spread = spread_of_sum(values[..., self.first :], counted[..., self.first :], self.among)
        return weight, spread * (self.among / drawn) ** 2


class Sampler:
    """Draws `rows` positions per call, of those that are real in some batch entry."""

    def __init__(self, rows: int, seed: int):
        self.rows = rows
        self._random = torch.Generator().manual_seed(seed)

    def sample(self, call: Call) -> tuple[Call, Sample]:
        """The call at the positions drawn, in ascending order, all of them where the call has no more. What the sample leaves
        out is the value (one column is left) and dropout."""
        real = torch.arange(call.query.shape[-2]) if call.rows is None else call.rows.any(0).cpu().nonzero().flatten()
        drawn, sample = real, Sample(len(real), 0)
        if len(real) > self.rows:
            first = self.rows // 8
            pieces, among = self.rows - first, len(real) - first
            place = (torch.arange(pieces) + torch.rand(pieces, generator=self._random)) * (among / pieces)
            drawn = torch.cat([real[:first], real[first + place.long().clamp(max=among - 1)]])
            sample = Sample(first, among)
        query, arguments = at_rows(call, drawn)
        some = None if call.rows is None else call.rows[:, drawn.to(call.rows.device)]
        part: dict[str, Any] = arguments | {"dropout_p": 0.0}
        return replace(call, query=query, value=call.value[..., :1], arguments=part, rows=some), sample


def spread_of_sum(values: Tensor, counted: Tensor, among: int) -> Tensor:
    """(T, H) variance of the sum over positions drawn from more, `among`, of what differs from their mean.

    values: (T, B, H, R) statistics in the order of positions; counted: (B, H, R). All batch entries share the positions, and
    entries at one position may be alike, so positions are what was drawn. With one from each piece the variance within a piece
    is not to be seen; half the squared difference of neighbouring pieces is used, which is at least as large on average
    (Wolter 2007, "Introduction to Variance Estimation", 8.2).
    """
    drawn = values.shape[-1]
    if drawn < 2:  # one position says nothing about how others differ
        return values.new_full((values.shape[0], values.shape[2]), torch.inf, dtype=torch.float64)
    values = torch.where(counted, values.double(), 0.0)
    totals, counts = values.sum(1), counted.sum(0)  # (T, H, R), (H, R)
    mean = totals.sum(-1, keepdim=True) / counts.sum(-1, keepdim=True).clamp(min=1)
    # A ratio of totals where entries are padded differently: linearized, each position's share of the deviation.
    apart = (totals - mean * counts).diff(dim=-1)
    return apart.square().sum(-1) * drawn / (2 * (drawn - 1)) * (1 - drawn / among)
