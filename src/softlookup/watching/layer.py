"""What was seen of one attention layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import SoftlookupError
from .moments import Moments
from .sampling import Sample
from .sketch import QuantileSketch, add_all

if TYPE_CHECKING:
    from ..summary import Stats


class LayerSeen:
    """Statistics of one layer, per head, over every counted query of every call.

    A query counts if it is a real token (not padding) and sees at least one key.
    """

    def __init__(self, name: str, heads: int, cross: bool, stats: Sequence[str], keep: str = "heads"):
        self.name, self.heads, self.cross = name, heads, cross
        self.stats = tuple(stats)
        self._keep = keep
        self.clear()

    def clear(self) -> None:
        """Forget every call."""
        self.calls = 0
        self._moments = Moments.empty(len(self.stats), self.heads)
        self._sketches = [QuantileSketch(self.heads) for _ in self.stats]
        self._rows: Tensor | None = None
        self._graph: tuple[Stats, Tensor] | None = None
        self.clipped = False
        """Whether a remedy has answered to what was seen; `clear` makes room for what comes after."""

    @property
    def counts(self) -> Tensor:
        """(H,) int64: queries counted per head (heads differ only where a mask hides everything from some of them)."""
        return self._moments.count

    @property
    def count(self) -> int:
        """Queries counted, in the head that saw most."""
        return int(self.counts.max()) if self.heads else 0

    def add(self, stats: Stats, rows: Tensor | None, sample: Sample | None = None) -> None:
        """Fold in one call: `stats` of shape (..., H, L), with `visible` among them; rows (B, L), True where real; sample: how
        these L positions were chosen, None where they are all.
        """
        self.calls += 1
        seen = torch.stack([_single(getattr(stats, name)) for name in self.stats])
        seen = seen.reshape(len(self.stats), -1, *seen.shape[-2:])  # (T, B, H, L)
        counted = (stats.visible.detach().to("cpu") > 0).reshape(seen.shape[1:])
        if rows is not None:
            counted = counted & rows.to("cpu")[:, None, :]
        if self._keep == "graph":
            self._graph = stats, counted
        if self._keep == "rows":
            self._rows = torch.where(counted, seen, math.nan)
        weight, spread = (None, 0.0) if sample is None or not sample.among else sample.weigh(seen, counted)
        weights = None if weight is None else weight.repeat(seen.shape[1])
        values, counted = seen.transpose(1, 2).flatten(2), counted.transpose(0, 1).flatten(1)  # (T, H, N), (H, N)
        some: Tensor | None = counted
        if bool((counted == counted[:1]).all()):  # as nearly always: the same queries count in every head
            which = counted[0]
            values, some, weights = values[..., which], None, None if weights is None else weights[which]
        if values.shape[-1]:
            self._moments = self._moments.merge(Moments.of(values, some, weights, spread))
            add_all(self._sketches, values, some, weights)

    def merge(self, other: LayerSeen) -> None:
        """Add what was seen of the same layer elsewhere, as by another process; rows of the last call stay this one's."""
        self.calls += other.calls
        self._moments = self._moments.merge(other._moments)
        for mine, its in zip(self._sketches, other._sketches, strict=True):
            mine.merge(its)

    def mean(self, stat: str) -> Tensor:
        """(H,) mean over the counted queries; NaN for a head without any."""
        return self._or_nan(self._moments.mean[self._index(stat)])

    def std(self, stat: str) -> Tensor:
        """(H,) standard deviation over the counted queries (divided by their number)."""
        return self._or_nan(self._moments.std[self._index(stat)])

    def stderr(self, stat: str) -> Tensor:
        """(H,) standard error of the mean: 0 where every query was looked at, more where a sample was (`watch(rows=…)`)."""
        return self._or_nan(self._moments.stderr[self._index(stat)])

    def min(self, stat: str) -> Tensor:
        """(H,) smallest value."""
        return self._or_nan(self._moments.lowest[self._index(stat)])

    def max(self, stat: str) -> Tensor:
        """(H,) largest value."""
        return self._or_nan(self._moments.highest[self._index(stat)])

    def quantile(self, stat: str, q: float) -> Tensor:
        """(H,) value below which a share `q` of the counted queries lies, to 1 % relative (see `sketch`)."""
        index = self._index(stat)
        lowest, highest = self._moments.lowest[index], self._moments.highest[index]
        return self._sketches[index].quantile(q).clamp(lowest, torch.maximum(lowest, highest))

    def rows(self, stat: str) -> Tensor:
        """(B, H, L) of the last call, NaN where a query does not count. Only with keep="rows"."""
        index = self._index(stat)
        if self._rows is None:
            got = f'keep="{self._keep}"' if self._keep != "rows" else "no call since it was cleared"
            raise SoftlookupError(f'rows of {self.name}: expected watch(model, keep="rows") and a call, got {got}')
        return self._rows[index]

    def graph(self, stat: str) -> Tensor:
        """(B, H, L) of the last call, with its gradient, so that it can be part of a loss. Only with keep="graph"."""
        index = self._index(stat)
        if self._graph is None:
            raise SoftlookupError(f'graph of {self.name}: expected a call under watch(model, keep="graph"), got none')
        return getattr(self._graph[0], self.stats[index])

    @property
    def counted(self) -> Tensor:
        """(B, H, L) of the last call, True where a query counts. Only with keep="graph"."""
        if self._graph is None:
            raise SoftlookupError(f'counted of {self.name}: expected a call under watch(model, keep="graph"), got none')
        return self._graph[1]

    def _or_nan(self, per_head: Tensor) -> Tensor:
        return torch.where(self.counts > 0, per_head, math.nan)

    def _index(self, stat: str) -> int:
        if stat in self.stats:
            return self.stats.index(stat)
        if stat == "distance" and self.cross:
            raise SoftlookupError(
                f"distance of {self.name}: cross attention has none, its sequences share no positions"
            )
        raise SoftlookupError(f"{self.name}: expected one of {', '.join(self.stats)}, got {stat!r}")

    def __repr__(self) -> str:
        return f"LayerSeen({self.name!r}, heads={self.heads}, calls={self.calls}, count={self.count})"


def _single(statistic: Tensor) -> Tensor:
    """On the CPU, in at least float32: the precision that statistics come in."""
    statistic = statistic.detach().to("cpu")
    return statistic if statistic.is_floating_point() else statistic.float()
