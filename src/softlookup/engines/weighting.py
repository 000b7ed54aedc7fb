"""What weights are applied to: values, and the functions of a pair whose expectations are statistics; with dropout between."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .blocks import Blocks, largest, without_bad
from .dropout import kept
from .tiling import Block, Queries, rows_of


class Weighting:
    """What weights are applied to: the values, and the indicator functions whose expectations are statistics."""

    def __init__(self, walk: Blocks):
        self.walk = walk
        self.problem = problem = walk.problem
        self.doubtful = not math.isfinite(largest(problem.value))

    def add(self, average: Tensor, at: Queries, block: Block, e: Tensor, rescale: Tensor) -> None:
        """average = rescale * average + e v. e (n, R, S') is used up."""
        if self.problem.dropout is not None:
            e = e.mul_(self.dropped(at, block))
        value, bad = self.value(at, block)
        if bad is not None:
            e.masked_fill_(seen_by(block, bad), math.nan)
        average.mul_(rescale.unsqueeze(-1)).baddbmm_(e, value)

    def expect(self, at: Queries, block: Block, e: Tensor, here: dict[str, Tensor]) -> None:
        """Write sum e f over the block, for every f asked for, into its plane (n, R)."""
        if "sink_mass" in here:
            f = self.indicator("sink_mass", at, block)
            if f is None:
                here["sink_mass"].zero_()
            else:
                torch.sum(torch.mul(e, f, out=self.walk.work("scratch", *e.shape)), -1, out=here["sink_mass"])
        if "distance" in here:
            self._distance(at, block, e, here["z"], here["distance"])

    def _distance(self, at: Queries, block: Block, e: Tensor, z: Tensor, out: Tensor) -> None:
        """sum of e |i - j| over the block.

        Where all keys lie on one side, |i - j| splits into the way from the query to the near end of the block and the way
        on from there: two terms of one sign, and no matrix of distances.
        """
        r, columns = block.tile.region, e.shape[-1]
        place = at.i.to(e.dtype)
        if r.j1 - 1 <= r.i0:
            near, onward = place - (r.j1 - 1), self.walk.steps(columns, backwards=True)
        elif r.j0 >= r.i1 - 1:
            near, onward = r.j0 - place, self.walk.steps(columns)
        else:
            torch.sum(torch.mul(e, self.walk.far(block.tile), out=self.walk.work("scratch", *e.shape)), -1, out=out)
            return
        torch.mv(e.view(-1, columns), onward, out=out.view(-1))
        out.addcmul_(z, near if self.problem.group == 1 else near.repeat(self.problem.group))

    def value(self, at: Queries, block: Block) -> tuple[Tensor, Tensor | None]:
        """The block's values (n, S', Ev), and which rows are not finite (n, 1, S') or None; those are zeros."""
        value, bad = without_bad(self.walk.key_rows(at, block, self.problem.value), self.doubtful)
        return value, None if bad is None else bad.mT

    def dropped(self, at: Queries, block: Block) -> Tensor:
        """What dropout multiplies weights by: 0 or 1/(1 - p), (n, R, S')."""
        dropout = self.problem.dropout
        assert dropout is not None
        keep = rows_of(kept(dropout, block.tile), self.problem.group, at.row1 - at.row0)
        return keep.to(self.walk.dtype).div_(1 - dropout.p) if dropout.p < 1 else torch.zeros_like(keep, dtype=self.walk.dtype)

    def indicator(self, key: str, at: Queries, block: Block) -> Tensor | None:
        """f_ij whose expectation is the statistic, broadcastable to (n, R, S'); None where it is 0 all over the block."""
        tile = block.tile
        if key == "distance":
            return self.walk.far(tile)
        first = self.problem.first_key
        if isinstance(first, int):
            if tile.region.j0 >= first + self.problem.sinks:
                return None
            inside = (tile.j >= first) & (tile.j < first + self.problem.sinks)
        else:
            start = first.to(tile.j.device)[tile.entry_of(first)[:, 0]]
            inside = (tile.j >= start) & (tile.j < start + self.problem.sinks)
        return inside.to(self.walk.dtype)

    def pull(
        self,
        at: Queries,
        block: Block,
        e: Tensor,
        upstream: Tensor | None,
        bad: Tensor | None,
        expected: dict[str, Tensor],
        into: list[Tensor],
    ) -> Tensor | None:
        """The gradient (n, R, S') of weights e from those of the average, with its bad rows, and of expectations, (n, R, …).

        Adds the values' own to `into`."""
        ds: Tensor | None = None
        out = self.walk.work("upstream", *e.shape)
        if upstream is not None:
            drop = self.dropped(at, block) if self.problem.dropout is not None else None
            w = e if drop is None else e * drop
            if bad is not None:
                w = w.masked_fill(seen_by(block, bad), math.nan)
            self.walk.add_keys(at, block, into[2], w, upstream)
            value, bad_value = self.value(at, block)
            ds = torch.bmm(upstream, value.mT, out=out)
            if drop is not None:
                ds.mul_(drop)
            if bad_value is not None:
                ds.masked_fill_(seen_by(block, bad_value), math.nan)
        for key, g in expected.items():
            f = self.indicator(key, at, block)
            if f is not None:
                ds = out.copy_(g * f) if ds is None else ds.addcmul_(g, f)
        return ds


def seen_by(block: Block, bad: Tensor) -> Tensor:
    """Where a visible pair involves a bad row or column: exactly there weights become NaN. bad broadcasts to (n, R, S')."""
    return bad if block.visible is None else bad & block.visible.seen
