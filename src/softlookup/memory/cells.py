"""Rows in cells, so that most need not be read: what a cell can weigh is bounded without reading it.

A cell holds rows within a radius r of its centre c, so none of them scores more than q.c + |q| r (Cauchy and Schwarz). Cells
are read best bound first, until those that are left, n rows each of at most exp(bound / temperature), can weigh no more than
the tolerance in all. That is a theorem, whatever the rows and the query; how many cells it takes depends on them.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import SoftlookupError
from ..masks import Padding
from ..summary import Summary, join_rows, map_tensors, merge_two, pick_rows, put_rows
from .best import best, best_of
from .question import Answer, Question
from .shards import KINDS
from .store import State, gathered

AT_ONCE = 4096
"""Queries."""
SAVED = ("centres", "radii", "starts", "positions")
ROWS_AT_ONCE = 2**15
"""Of several cells."""
PATIENCE = 1 / 16
"""Share of the cells beyond which a query reads everything instead: in one go that is faster."""
SAMPLE = 128
"""Rows per cell by which centres are found."""
SEEDING = 2**15
"""Rows among which the first centres are sought, or four per cell if that is more."""


@dataclass(frozen=True, eq=False)
class Cells:
    """C cells over the rows at positions below `covered`: centres (C, d); radii (C,); starts (C + 1,) of each in
    `positions`."""

    centres: Tensor
    radii: Tensor
    starts: Tensor
    positions: Tensor
    _known: list[tuple[State, Tensor]] = field(default_factory=list)
    """One state of the table, and live rows of each cell in it."""

    @property
    def covered(self) -> int:
        return len(self.positions)

    @classmethod
    def build(cls, state: State, cells: int | None = None, seed: int = 0) -> Cells:
        """That many, by default the root of the number of rows, around means that FAISS finds by k-means on a sample."""
        faiss = library()
        total = state.total
        count = max(1, min(round(total**0.5), total // 2)) if cells is None else cells
        if not 1 <= count <= max(1, total // 2):
            raise SoftlookupError(f"cells: expected from 1 to half as many as the {total:,} rows, got {count:,}")
        draw = torch.Generator().manual_seed(seed)
        some = torch.randperm(total, generator=draw)[: count * SAMPLE].sort().values
        sample = gathered(state.parts, some, "keys").detach().to("cpu", torch.float32)
        few = sample[torch.randperm(len(sample), generator=draw)[: max(4 * count, SEEDING)]]
        means = faiss.Kmeans(
            sample.shape[1], count, niter=10, seed=seed, max_points_per_centroid=SAMPLE, min_points_per_centroid=1
        )
        means.train(sample.numpy(), init_centroids=farthest(few, count).numpy())
        centres = torch.from_numpy(means.centroids)
        cell, far = torch.empty(total, dtype=torch.int64), torch.zeros(count, dtype=torch.float64)
        for part in state.parts:
            for at in range(0, len(part.keys), 2**16):
                keys = part.keys[at : at + 2**16].detach().to("cpu", torch.float32)
                _, where = means.index.search(keys.numpy(), 1)
                nearest = torch.from_numpy(where[:, 0])
                reach = (keys.double() - centres[nearest].double()).norm(dim=1)
                far.scatter_reduce_(0, nearest, reach, "amax")
                cell[part.first + at : part.first + at + len(keys)] = nearest
        counts = torch.bincount(cell, minlength=count)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        radii = (far * (1 + 1e-6)).float() + torch.finfo(torch.float32).tiny
        return cls(centres, radii, starts, cell.argsort(stable=True))

    def to_bytes(self) -> bytes:
        file = io.BytesIO()
        np.savez(file, **{name: getattr(self, name).numpy() for name in SAVED})
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Cells:
        with np.load(io.BytesIO(content)) as kept:
            centres, radii, starts, positions = (torch.from_numpy(kept[name]) for name in SAVED)
        return cls(centres, radii, starts, positions)

    def ask(self, question: Question, state: State, tolerance: float, k: int = 0) -> Answer:
        """Of queries over as many cells as the tolerance, a share of the whole weight, asks for; at temperature 0 what is not
        read has no weight. k: name so many of the best rows."""
        if len(question.query) > AT_ONCE:
            some = torch.arange(len(question.query), device=question.query.device).split(AT_ONCE)
            return Answer.join([self.ask(question.of(rows), state, tolerance, k) for rows in some])
        order, bounds, rest, error = self._bounds(question, state)
        n, device = len(order), order.device
        summary = question.everywhere(state, start=self.covered)
        top = best(question.query, state, k, self.covered)
        enough = math.log(tolerance) - math.log1p(-tolerance)
        read = torch.zeros(n, dtype=torch.int64, device=device)
        while True:
            if summary is None:
                needed = torch.ones_like(read)
            else:
                odds = rest - summary.logsumexp.detach()[:, None] + error
                needed = (odds >= 0 if question.hard else odds > enough).sum(1)  # at temperature 0 the best rows share all
            # Few at first, as what they hold tells how many are needed.
            goal = torch.where(needed > read, torch.minimum(needed, 4 * read + 1), read)
            if bool((lost := goal > PATIENCE * len(self.radii) + 1).any()):
                who = lost.nonzero()[:, 0]
                whole = question.of(who).everywhere(state)
                assert summary is not None and whole is not None
                summary = put_rows(summary, who, whole)
                top = _put(top, who, best(question.query[who], state, k))
                rest[who] = bounds[who] = float("-inf")
                goal = torch.where(lost, read, goal)
            elif bool((goal == read).all()):
                break
            for rank in range(int(read.min()), int(goal.max())):
                who = ((read <= rank) & (rank < goal)).nonzero()[:, 0]
                if len(who):
                    found, named = self._over(question.of(who), state, order[who, rank], k)
                    if summary is None:
                        summary = found
                    else:
                        summary = put_rows(summary, who, merge_two(pick_rows(summary, who), found))
                    top = _put(top, who, best_of((top[0][who], top[1][who]), named, k))
            read = goal
        assert summary is not None
        here = read[:, None]
        odds = rest.gather(1, here) - summary.logsumexp.detach()[:, None] + error
        missed = torch.zeros_like(odds) if question.hard else odds.sigmoid()
        return Answer(summary, *top, missed[:, 0], bounds.gather(1, here)[:, 0])

    def _bounds(self, question: Question, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cells by their bound, best first (n, C); the bound itself and the logarithm of what this cell and all after it can
        weigh (n, C + 1), after which nothing is left; and how far rounding may move an exponent (n, 1)."""
        query = question.query.detach()
        centres, radii = (x.to(query) for x in (self.centres, self.radii))
        length = query.norm(dim=1, keepdim=True)
        error = 2 * query.shape[1] * torch.finfo(query.dtype).eps * length * (centres.norm(dim=1) + radii).max()
        counts = self._counts(state).to(query)
        bounds = torch.where(counts > 0, query @ centres.T + length * radii, float("-inf"))
        bounds, order = bounds.sort(1, descending=True)
        bounds = torch.cat([bounds, bounds.new_full((len(query), 1), float("-inf"))], 1)
        if question.hard:
            return order, bounds, bounds.clone(), error
        logs = torch.cat([counts.log()[order], bounds.new_zeros(len(query), 1)], 1) + bounds / question.divisor
        return order, bounds, logs.flip(1).logcumsumexp(1).flip(1), error / question.divisor

    def _counts(self, state: State) -> Tensor:
        """(C,) live rows of each cell."""
        if state.alive is None:
            return self.starts.diff()
        if not self._known or self._known[0][0] is not state:
            inside = state.alive[self.positions.to(state.alive.device)].cpu().double()
            self._known[:] = [(state, torch.segment_reduce(inside, "sum", lengths=self.starts.diff()))]
        return self._known[0][1]

    def _over(self, question: Question, state: State, cell: Tensor, k: int) -> tuple[Summary, tuple[Tensor, Tensor]]:
        """The summary of each query over a cell of its own (n,), and the k best rows in it. A cell is read once for all of its
        queries."""
        order = cell.argsort()
        cells, counts = cell[order].unique_consecutive(return_counts=True)
        sizes = self.starts.to(cell.device).diff()[cells]
        step = max(1, ROWS_AT_ONCE // max(1, int(sizes.max())))
        queries = order.split([int(x.sum()) for x in counts.split(step)])
        found = [
            self._block(question.of(who), state, some, many, large, k)
            for who, some, many, large in zip(queries, *(x.split(step) for x in (cells, counts, sizes)), strict=True)
        ]
        back = order.argsort()
        scores, places = (torch.cat(x)[back] for x in list(zip(*found, strict=True))[1:])
        return pick_rows(join_rows([summary for summary, _, _ in found]), back), (scores, places)

    def _block(
        self, question: Question, state: State, cells: Tensor, counts: Tensor, sizes: Tensor, k: int
    ) -> tuple[Summary, Tensor, Tensor]:
        """The same of some cells (c,), each of `sizes` rows, with the queries of each, `counts`, in their order; at once, as a
        batch whose entries are filled up to the largest."""
        device, n = cells.device, len(question.query)
        column = torch.arange(int(sizes.max()), device=device)
        real = column < sizes[:, None]
        positions = self.positions.to(device)[(self.starts.to(device)[cells][:, None] + column).clamp(max=self.covered - 1)]
        if state.alive is not None:
            real &= state.alive[positions]
        keys, values = (gathered(state.parts, positions[:, None], kind) for kind in KINDS)
        # Query i stands at row `entry`, column `slot` of the batch.
        entry = torch.arange(len(cells), device=device).repeat_interleave(counts)
        slot = torch.arange(n, device=device) - (counts.cumsum(0) - counts)[entry]
        most = int(counts.max())
        where = entry * most + slot
        filled = torch.zeros(len(cells) * most, dtype=torch.int64, device=device).index_copy(
            0, where, torch.arange(n, device=device)
        )
        batch = question.of(filled).shaped(len(cells), 1, most)
        summary = batch.over(keys, values, Padding(real))
        summary = pick_rows(map_tensors(summary, lambda x, trailing: x.flatten(0, 2)), where)
        top = batch.query.new_empty(len(cells), most, 0), positions.new_empty(len(cells), most, 0)
        if k:
            with torch.no_grad():
                scores, at = (
                    (batch.query @ keys.mT)[:, 0].masked_fill(~real[:, None], float("-inf")).topk(min(k, len(column)), 2)
                )
                places = positions[:, None].expand(-1, most, -1).gather(2, at).masked_fill(scores.isneginf(), -1)
                short = (0, k - scores.shape[2])
                top = pad(scores, short, value=float("-inf")), pad(places, short, value=-1)
        scores, places = (x.flatten(0, 1)[where] for x in top)
        return summary, scores, places


def farthest(rows: Tensor, count: int) -> Tensor:
    """(count, d) of the rows, each the farthest from those before it (Gonzalez 1985): no heap of rows goes without a centre,
    which k-means from random ones would leave so for good."""
    squares, chosen = rows.square().sum(1), [0]
    apart = torch.full_like(squares, float("inf"))
    while len(chosen) < count:
        centre = rows[chosen[-1]]
        apart = torch.minimum(apart, squares - 2 * (rows @ centre) + squares[chosen[-1]])
        chosen.append(int(apart.argmax()))
    return rows[chosen]


def library() -> Any:
    """FAISS, or one line that it is missing."""
    try:
        import faiss
    except ImportError:
        raise SoftlookupError("index: expected FAISS, found none; pip install 'softlookup[memory]'") from None
    return faiss


def _put(into: tuple[Tensor, Tensor], rows: Tensor, what: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return into[0].index_copy(0, rows, what[0]), into[1].index_copy(0, rows, what[1])
