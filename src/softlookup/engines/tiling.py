"""How a problem is cut into blocks: key-value heads in groups, queries in rows, keys in ranges that the mask leaves.

A block of scores should stay in a core's L2 cache from the product that makes it to the one that uses it up: that is
what a fused kernel wins by, and a torch program too. 2^19 floats (2 MiB, half of it per core) measured best on two cores
with 2 MiB of L2 each: smaller blocks cost more calls, larger ones leave the cache. Where the mask is narrow, fewer query
rows waste fewer scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..masks import Cover, Everything, is_relative
from ..problem import Problem
from ..scores import Product
from ..tile import Region, Tile

CPU_SCORES = 2**19
GPU_SCORES = 2**24
PAIRWISE_FLOATS = 2**19
SHORT = 384
RUN = 64
"""Keys about which a mask is asked together where rows are whole."""
KEPT = 2
"""Blocks' worth of pairs that are kept to be shared."""


@dataclass(frozen=True, eq=False)
class Queries:
    """A block of queries: batch entries b0:b1 of key-value heads g0:g1, rows row0:row1, at positions i (L',)."""

    b0: int
    b1: int
    g0: int
    g1: int
    row0: int
    row1: int
    group: int
    i: Tensor
    i0: int
    i1: int

    @property
    def entries(self) -> int:
        """Pairs of batch entry and key-value head."""
        return (self.b1 - self.b0) * (self.g1 - self.g0)

    @property
    def heads(self) -> tuple[slice, slice]:
        """Where its query heads lie in a (B, H, …) tensor."""
        return slice(self.b0, self.b1), slice(self.g0 * self.group, self.g1 * self.group)

    @property
    def place(self) -> tuple[slice, slice, slice]:
        """Where its rows lie in a (B, H, L, …) tensor."""
        return (*self.heads, slice(self.row0, self.row1))


class Visible:
    """What a block partly hides, as booleans and as the floats that are much faster to apply: (n or 1, R or 1, S')."""

    def __init__(self, seen: Tensor, dtype: torch.dtype):
        self.seen, self.dtype = seen, dtype

    @cached_property
    def hidden(self) -> Tensor:
        """True where hidden."""
        return ~self.seen

    @cached_property
    def bytes(self) -> Tensor:
        """1 where visible, (n or 1, R or 1, S') with unit stride along the keys."""
        return self.seen.contiguous().view(torch.uint8)

    @cached_property
    def one(self) -> Tensor:
        """1 where visible, 0 where hidden."""
        return self.seen.to(self.dtype)

    @cached_property
    def low(self) -> Tensor:
        """0 where visible, -inf where hidden."""
        return torch.zeros_like(self.one).masked_fill_(self.hidden, -math.inf)

    @cached_property
    def count(self) -> Tensor:
        """(n or 1, R or 1) int64 visible keys."""
        return self.seen.sum(-1)


@dataclass(frozen=True, eq=False)
class Block:
    """A block of keys for a block of queries: columns col0:col1 of the key tensor. visible is None where all are."""

    tile: Tile
    col0: int
    col1: int
    visible: Visible | None


class Tiling:
    """The blocks of a problem, in an order in which keys of one query block come one after the other, ascending."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.device = problem.query.device
        self.batch, self.heads, self.length, width = problem.query.shape
        self.kv_heads, self.keys = problem.key.shape[1], problem.key.shape[2]
        self.group = problem.group
        if isinstance(problem.form, Product):
            self.budget = CPU_SCORES if self.device.type == "cpu" else GPU_SCORES
        else:  # every score has intermediate vectors as wide as a key
            self.budget = max(256, PAIRWISE_FLOATS // max(width, problem.key.shape[-1]))
        self.alike = is_relative(problem.mask) and isinstance(problem.place.queries, int)
        self.seen: dict[tuple[int, int, int], Visible | Cover] = {}
        self.kept = 0  # pairs in there
        self.positions = problem.place.positions(self.length, self.device)
        self.rows = self._rows()
        self.entries, self.columns = self._sizes()

    def _bounds(self, row0: int, row1: int) -> tuple[int, int]:
        """Half-open bounds of the positions of rows row0:row1."""
        queries = self.problem.place.queries
        if isinstance(queries, int):
            return queries + row0, queries + row1
        part = self.positions[row0:row1]
        return int(part.min()), int(part.max()) + 1

    def _range(self, i0: int, i1: int) -> tuple[int, int]:
        """Half-open positions of the keys here that queries at i0:i1 may see."""
        start = self.problem.place.key_offset
        lo, hi = self.problem.mask.span(i0, i1)
        return int(max(start, lo)), int(min(start + self.keys, hi))

    def _rows(self) -> int:
        """Query rows per block: the choice that computes the fewest scores, a product of few rows being less efficient.

        A power of two, so that blocks meet a diagonal in few ways.
        """
        if self.problem.rule is not None:
            return min(self.length, max(1, self.budget // self.keys // self.group))
        most = max(1, self.budget // 256 // self.group)
        best, least = 1, math.inf
        for wanted in (512, 256, 128, 64):
            rows = min(self.length, 2 ** int(math.log2(max(1, min(wanted // self.group, most)))))
            starts = range(0, self.length, max(rows, self.length // 8 // rows * rows))
            spans = [self._range(*self._bounds(r, min(r + rows, self.length))) for r in starts]
            mean = sum(max(0, hi - lo) for lo, hi in spans) / len(spans)
            cost = mean * (1 + 64 / (rows * self.group))
            if rows * self.group <= 400 and cost < least:
                best, least = rows, cost
        return best

    def _sizes(self) -> tuple[int, int]:
        """(pairs of batch entry and key-value head, keys) per block."""
        rows = self.rows * self.group
        if self.problem.rule is not None:
            return max(1, min(self._pairs, self.budget // (rows * self.keys))), self.keys
        middle = self.length // 2 // self.rows * self.rows
        lo, hi = self._range(*self._bounds(middle, min(middle + self.rows, self.length)))
        wide = max(64, -(-(hi - lo) // 64) * 64)
        if wide > 512 and isinstance(self.problem.place.queries, int):
            # Where a mask cuts through blocks, short ones waste less on what it hides; rows from all over are cut anyway.
            wide = min(wide, max(512 if isinstance(self.problem.mask, Everything) else SHORT, 2**15 // rows))
        wide = min(self.keys, wide)
        entries = max(1, min(self._pairs, self.budget // (rows * wide)))
        fits = self.budget // (rows * entries)
        return entries, max(1, min(wide, fits if fits < 64 else fits // 64 * 64))

    @property
    def _pairs(self) -> int:
        return self.batch * self.kv_heads

    def queries(self) -> Iterator[Queries]:
        """Blocks of queries: whole batch entries together, or some heads of one."""
        whole = max(1, self.entries // self.kv_heads)
        if self.problem.mask.differs_in_batch() and self.length * self.keys > 4096:
            whole = 1
        some = self.kv_heads
        if self.entries < self.kv_heads:
            some = -(-self.kv_heads // -(-self.kv_heads // self.entries))
        for b0 in range(0, self.batch, whole):
            for g0 in range(0, self.kv_heads, some):
                for row0 in range(0, self.length, self.rows):
                    row1 = min(row0 + self.rows, self.length)
                    i0, i1 = self._bounds(row0, row1)
                    b1, g1 = min(b0 + whole, self.batch), min(g0 + some, self.kv_heads)
                    yield Queries(b0, b1, g0, g1, row0, row1, self.group, self.positions[row0:row1], i0, i1)

    def blocks(self, q: Queries) -> Iterator[Block]:
        """The blocks of keys that these queries see anything of."""
        start = self.problem.place.key_offset
        lo, hi = self._range(q.i0, q.i1)
        if hi <= lo:
            return
        lo = start + (lo - start) // 64 * 64  # whole chunks, for the search of the best key in `moments`
        hi = min(start + self.keys, start + -(-(hi - start) // 64) * 64)
        h0, h1 = q.heads[1].start, q.heads[1].stop
        cut = ((j0, min(j0 + self.columns, hi)) for j0 in range(lo, hi, self.columns))
        for j0, j1 in cut if self.problem.rule is None else self._runs(q, lo, hi):
            tile = Tile(Region(q.b0, q.b1, h0, h1, q.row0, q.row1, q.i0, q.i1, j0, j1), q.i, self.group)
            visible = self._visible(tile)
            if visible is not Cover.EMPTY:
                yield Block(tile, j0 - start, j1 - start, None if isinstance(visible, Cover) else visible)

    def _runs(self, q: Queries, lo: int, hi: int) -> Iterator[tuple[int, int]]:
        """The ranges of keys between which nothing is visible, as far as the mask can tell without looking."""
        j0 = torch.arange(lo, hi, RUN, device="cpu")[None]
        j1 = (j0 + RUN).clamp(max=hi)
        row0, row1, i0, i1 = (torch.tensor([[x]], device="cpu") for x in (q.row0, q.row1, q.i0, q.i1))
        some, _ = self.problem.mask.extent(Region(q.b0, q.b1, q.heads[1].start, q.heads[1].stop, row0, row1, i0, i1, j0, j1))
        for run in runs(torch.as_tensor(some).expand_as(j0)[0].nonzero()[:, 0].numpy(force=True), j0.shape[1]):
            yield int(j0[0, run[0]]), int(j1[0, run[-1]])

    def _visible(self, tile: Tile) -> Visible | Cover:
        """FULL, EMPTY, or what is visible; blocks that are alike share theirs."""
        r = tile.region
        if not self.alike:
            return self._look(tile)
        kind = r.row1 - r.row0, r.j1 - r.j0, r.i0 - r.j0
        if kind in self.seen:
            return self.seen[kind]
        found = self._look(tile)
        size = 0 if isinstance(found, Cover) else found.seen.numel()
        if not size or self.kept < KEPT * self.budget:  # of whole rows hardly any are alike
            self.seen[kind] = found
            self.kept += size
        return found

    def _look(self, tile: Tile) -> Visible | Cover:
        mask, r = self.problem.mask, tile.region
        cover = mask.cover(r)
        if cover is not Cover.PARTIAL:
            return cover
        visible = mask.visible(tile)
        if visible.all():
            return Cover.FULL
        if not visible.any():
            return Cover.EMPTY
        return self.fold(visible, tile)

    def fold(self, visible: Tensor, tile: Tile) -> Visible:
        """A boolean that broadcasts to (n, G, L', S') as one that broadcasts to (n, R, S')."""
        r = tile.region
        visible = rows_of(visible[(None,) * (4 - visible.ndim)], self.group, r.row1 - r.row0)
        return Visible(visible.expand(-1, -1, r.j1 - r.j0), self.problem.accumulate)


def runs(numbers: np.ndarray, most: int) -> list[np.ndarray]:
    """Ascending numbers in runs without a gap, each of at most so many."""
    if not len(numbers):
        return []
    together = np.split(numbers, (np.diff(numbers) != 1).nonzero()[0] + 1)
    return [run[at : at + most] for run in together for at in range(0, len(run), most)]


def rows_of(x: Tensor, group: int, rows: int) -> Tensor:
    """A tensor that broadcasts to (n, G, L', W) as one that broadcasts to (n, R, W)."""
    if group == 1:
        return x[:, 0]
    if x.shape[1] == 1 and x.shape[2] == 1:
        return x[:, 0]
    return x.expand(x.shape[0], group, rows, x.shape[-1]).reshape(x.shape[0], group * rows, x.shape[-1])


def visible_counts(problem: Problem) -> Tensor:
    """(B, H, L) int64: how many keys *of the whole* each query sees, counted block by block from the mask alone."""
    batch, heads, length, _ = problem.query.shape
    place = replace(problem.place, key_offset=0)
    ghost = problem.key.new_empty(1).expand(batch, problem.key.shape[1], place.total_keys, 1)
    narrow = Product(problem.query[..., :1], ghost)
    tiling = Tiling(replace(problem, place=place, form=narrow))
    counts = torch.zeros((batch, heads, length), dtype=torch.int64, device=problem.query.device)
    for q in tiling.queries():
        part = counts[q.place]
        for block in tiling.blocks(q):
            seen = block.col1 - block.col0 if block.visible is None else block.visible.count
            if isinstance(seen, Tensor):
                seen = seen.expand(q.entries, tiling.group * (q.row1 - q.row0)).reshape(part.shape)
            part += seen
    return counts
