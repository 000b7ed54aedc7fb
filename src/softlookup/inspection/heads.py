"""What was seen of one layer's heads: the data that findings, tables and the report are made from.

Everything here is already reduced over queries. Row-wise statistics of a long text would not fit a report, and a reader
compares heads, not queries; what is kept per position is one entropy curve of at most ``POINTS`` points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .layer_geometry import LayerGeometry

POINTS = 512
"""Points of an entropy curve: more than a screen has pixels to tell apart."""

FEW = 16
"""A query with fewer visible keys says little: its entropy ratio jumps with every key, and a causal text begins with
such queries."""

MEANLESS = {"argmax"}
"""Statistics whose mean over queries has no meaning."""


class LayerRows(Protocol):
    """The part of ``watching.LayerSeen`` that is read here."""

    @property
    def name(self) -> str: ...
    @property
    def heads(self) -> int: ...
    @property
    def cross(self) -> bool: ...
    def rows(self, stat: str) -> Tensor: ...


@dataclass(frozen=True)
class Head:
    """One head as the findings see it. ``wide`` holds means over queries that see at least ``FEW`` keys (None if
    there is none); ``causal`` is its layer's; ``weights`` is what its weights say (None where they were not read)."""

    layer: int
    head: int
    path: str
    means: dict[str, float]
    wide: dict[str, float] | None
    causal: bool = False
    weights: dict[str, float] | None = None

    @property
    def label(self) -> str:
        return f"{self.layer}.{self.head}"


@dataclass(frozen=True)
class Layer:
    """One attention layer, all tensors on the CPU.

    means:     statistic -> (H,) mean over the counted queries; ``max_logit`` is the largest over them, ``bandwidth`` and
               ``prior_spread`` are of the keys (see ``smoother``)
    wide:      statistic -> (H,) mean over the queries that see at least ``FEW`` keys; None where no query does
    positions: (P,) mean query position of each curve point, P ≤ ``POINTS``
    entropy:   (H, P) mean entropy (nats) of the queries that a point stands for, NaN where none is counted
    bound:     (P,) mean log(visible) of the same queries: no distribution over that many keys has a higher entropy
    length:    number of queries L
    causal:    whether no query saw what comes after it, as far as the numbers of visible keys tell (see ``_causal``)
    geometry:  what its weights say, weighted by what the layer read; None where they were not read
    """

    index: int
    path: str
    cross: bool
    means: dict[str, Tensor]
    wide: dict[str, Tensor] | None
    positions: Tensor
    entropy: Tensor
    bound: Tensor
    length: int
    causal: bool
    geometry: LayerGeometry | None = None

    @property
    def heads(self) -> int:
        return self.entropy.shape[0]

    def head(self, number: int) -> Head:
        """The numbers of head ``number`` as plain floats."""
        means = {stat: float(values[number]) for stat, values in self.means.items()}
        wide = None if self.wide is None else {stat: float(values[number]) for stat, values in self.wide.items()}
        weights = None if self.geometry is None else self.geometry.head(number)
        return Head(self.index, number, self.path, means, wide, self.causal, weights)

    def values(self, name: str) -> Tensor | None:
        """(H,) of a statistic, or of a measure of the weights."""
        if name in self.means or self.geometry is None:
            return self.means.get(name)
        return self.geometry.values(name)


def summarize(index: int, seen: LayerRows, stats: tuple[str, ...], positions: Tensor) -> Layer:
    """Reduce the rows of one watched layer. ``positions`` (L,): the absolute position of each query."""
    rows = {stat: seen.rows(stat).detach().float().cpu() for stat in stats}
    visible = rows["visible"]
    counted = ~torch.isnan(visible)
    means = {stat: _mean(values, counted) for stat, values in rows.items() if stat not in MEANLESS}
    means["max_logit"] = _largest(rows["max_logit"], counted)

    enough = visible >= FEW
    wide = None
    if bool(enough.any()):
        rows |= _derived(rows, positions.float(), seen.cross)
        wide = {stat: _mean(values, enough) for stat, values in rows.items() if stat not in MEANLESS}
        wide |= _reach(rows, enough, positions.float(), seen.cross)

    entropy, bound, points = _curves(rows["entropy"], visible, counted, positions)
    causal = not seen.cross and _causal(visible, counted, positions)
    return Layer(index, seen.name, seen.cross, means, wide, points, entropy, bound, len(positions), causal)


def _causal(visible: Tensor, counted: Tensor, positions: Tensor) -> bool:
    """Whether every counted query sees at most as many keys as there are up to its own place.

    Numbers of keys are all that the statistics tell, and they tell enough: where later keys are visible, the first
    real query already sees more than itself. Padding on the left is no key, so real queries are counted, not places.
    """
    before = int(positions[0]) if len(positions) else 0  # keys from a cache
    return bool(counted.any()) and bool((visible <= before + counted.cumsum(-1))[counted].all())


def _derived(rows: dict[str, Tensor], positions: Tensor, cross: bool) -> dict[str, Tensor]:
    """Row-wise quantities that the findings need and the operator does not return."""
    found = {"log_visible": rows["visible"].clamp_min(1).log()}
    # A sink logit takes sink_weight of every row; sink_mass is measured on what is left of it (SEMANTICS: p is
    # without the sink).
    found["parked"] = rows["sink_weight"] + (1 - rows["sink_weight"]) * rows["sink_mass"]
    if not cross:
        found["previous_token"] = (rows["argmax"] == positions - 1).float()
    return found


def _reach(rows: dict[str, Tensor], enough: Tensor, positions: Tensor, cross: bool) -> dict[str, Tensor]:
    """Mean distance of the weight that does not rest on the first token.

    Many heads park some weight on the first token, and at position 1,000 a parked share of 5 % alone adds 50 tokens
    to the mean distance. The first key is exactly ``position`` away, so its part can be taken out: (E|i−j| − p₀·i) /
    (1 − p₀), summed over rows.
    """
    if cross or "distance" not in rows:
        return {}
    moved = _mean(rows["distance"] - rows["sink_mass"] * positions, enough)
    share = _mean(1 - rows["sink_mass"], enough)
    # Where practically everything is parked the remainder is rounding error, and the head is called a sink anyway.
    return {
        "reach": torch.where(share > 0.01, moved.clamp_min(0) / share.clamp_min(0.01), torch.full_like(share, math.nan))
    }


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """(B, H, L) -> (H,), in double precision because a text has many rows."""
    total = torch.where(chosen, values, torch.zeros_like(values)).double().sum((0, 2))
    return (total / chosen.sum((0, 2))).float()


def _largest(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, torch.full_like(values, -math.inf)).amax((0, 2))


def _curves(entropy: Tensor, visible: Tensor, counted: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of neighbouring queries: ((H, P) entropy, (P,) log(visible), (P,) position)."""
    length = entropy.shape[-1]
    points = min(POINTS, length)
    point_of_row = torch.arange(length) * points // length

    def pooled(values: Tensor) -> Tensor:  # (..., L) -> (..., P), a plain sum
        return values.new_zeros(*values.shape[:-1], points).index_add_(-1, point_of_row, values)

    zero = torch.zeros_like(entropy)
    counts = pooled(counted.float().sum(0))
    curve = pooled(torch.where(counted, entropy, zero).sum(0)) / counts
    limits = pooled(torch.where(counted, visible.clamp_min(1).log(), zero).sum(0))
    bound = limits.sum(0) / counts.sum(0)
    where = pooled(positions.float()) / torch.bincount(point_of_row, minlength=points)
    return curve, bound, where
