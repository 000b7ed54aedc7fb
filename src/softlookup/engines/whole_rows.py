"""Blocks of some queries and all their keys, for weights by thresholds (`thresholds.py`): O(n) memory, any device and score.

Keys of which the mask says that none of the queries sees them are left out: the others lie in runs, blocks of their own, whose
scores are put beside one another to find the thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..problem import Problem
from .blocks import Blocks, QueryBlock, ScoreBlock, largest, without_bad
from .node import Readings
from .thresholds import measure
from .tiling import Block, Queries
from .weighting import Weighting


def forward(problem: Problem) -> Readings:
    """All fields of an `Outcome` that `problem.needs` asks for, and those that are always there."""
    walk = Blocks(problem)
    weighting = Weighting(walk)
    out = _empty(problem, walk)
    for at in walk.tiling.queries():
        scored = _scored(walk, walk.query(at), graph=False)
        if not scored:
            continue
        w, read = _measured(weighting, at, scored, _scores(scored), _parameters(walk, at, scored), problem.needs)
        for name, x in read.items():
            walk.put(at, out[name], x.unsqueeze(-1))
        average = w.new_zeros((*w.shape[:2], problem.value.shape[-1]))
        for block, part in _parts(scored, w):
            if "received" in problem.needs:
                out["received"][(*at.heads, slice(block.at.col0, block.at.col1))] += _by_key(walk, at, part)
            weighting.add(average, at, block.at, part, torch.ones_like(part[..., 0]))
        walk.put(at, out["average"], average)
    return out


def backward(problem: Problem, read: Readings, grads: Readings) -> list[Tensor]:
    """Gradients of all of `problem.tensors()` from those of the fields (absent ones are 0)."""
    walk = Blocks(problem)
    weighting = Weighting(walk)
    into = walk.zeros()
    per_row = {name: g.unsqueeze(-1) for name, g in grads.items() if name not in ("average", "received")}
    average, received = grads.get("average"), grads.get("received")
    doubtful = average is not None and not math.isfinite(largest(average))
    own = into[3 + isinstance(problem.temperature, Tensor) :]
    for at in walk.tiling.queries():
        query = walk.query(at)
        scored = _scored(walk, query, graph=True)
        if not scored:
            continue
        offset = walk.query_rows(at, read["offset"].unsqueeze(-1))
        with torch.enable_grad():
            s, p = _scores(scored).detach().requires_grad_(), [x.requires_grad_() for x in _parameters(walk, at, scored)]
            w, sums = _measured(weighting, at, scored, s, p, frozenset(per_row), offset)
        spoiled = sums["total"].isnan()  # all that such a row reaches is, also where the weight is 0 or cut off from its score
        upstream = bad = None
        if average is not None:
            upstream, bad = without_bad(walk.query_rows(at, average), doubtful)
            spoiled = spoiled if bad is None else spoiled | bad[..., 0]
        dw = torch.zeros_like(w)
        for (block, part), (_, here) in zip(_parts(scored, w.detach()), _parts(scored, dw), strict=True):
            found = weighting.pull(at, block.at, part, upstream, bad, {}, into)
            if found is not None:
                here.add_(found)
            if received is not None:
                of_key = received[(*at.heads, None, slice(block.at.col0, block.at.col1))]
                here.add_(of_key.expand(-1, -1, at.row1 - at.row0, -1).reshape(here.shape))
        if weighting.doubtful:
            spoiled = spoiled | dw.isnan().any(-1)
        outputs = [(w, dw), *((sums[name], walk.query_rows(at, g)[..., 0]) for name, g in per_row.items())]
        some = [(x, g) for x, g in outputs if x.requires_grad]
        ds, *dp = torch.autograd.grad([x for x, _ in some], [s, *p], [g for _, g in some], allow_unused=True)
        any_spoiled = bool(spoiled.any())
        for grad, total in zip(dp, own, strict=False):
            if grad is not None:
                tile = scored[0].at.tile
                part = tile.region.cut(total)
                grad = grad.masked_fill(spoiled[..., None], math.nan)
                part.add_(tile.unfold(walk.four(at, grad)).sum_to_size(part.shape))
        ds = torch.zeros_like(s) if ds is None else ds.masked_fill(spoiled[..., None], math.nan)
        dq: Tensor | None = None
        for block, part in _parts(scored, ds):
            block.tame = block.tame and not any_spoiled
            dq = walk.pull(query, block, block.hide(part), into, dq)
        assert dq is not None
        walk.put(at, into[0], walk.finish_query(dq))
    return into


def _scored(walk: Blocks, query: QueryBlock, graph: bool) -> list[ScoreBlock]:
    """The scores of all keys that some queries see anything of, in runs; those between are left out."""
    blocks = list(walk.tiling.blocks(query.at))
    return [walk.scores(query, block, graph, own=len(blocks) > 1) for block in blocks]


def _scores(scored: list[ScoreBlock]) -> Tensor:
    """(n, R, S')."""
    return _beside([block.scores for block in scored])


def _parts(scored: list[ScoreBlock], x: Tensor) -> Iterator[tuple[ScoreBlock, Tensor]]:
    """Each block with its part of x (…, S')."""
    return zip(scored, x.split([block.scores.shape[-1] for block in scored], -1), strict=True)


def _beside(parts: list[Tensor]) -> Tensor:
    """Tensors that broadcast but for their last dimension, one beside the other."""
    if len(parts) == 1:
        return parts[0]
    shape = torch.broadcast_shapes(*(x.shape[:-1] for x in parts))
    return torch.cat([x.expand(*shape, -1) for x in parts], -1)


def _empty(problem: Problem, walk: Blocks) -> Readings:
    """What queries read that see nothing."""
    like = problem.query.new_zeros(problem.query.shape[:3], dtype=walk.dtype)
    out = {name: torch.zeros_like(like) for name in ("total", "offset", *problem.needs)}
    out |= {name: torch.full_like(like, -math.inf) for name in ("max_logit", *problem.needs & {"logsumexp", "threshold"})}
    out |= {name: like.long() for name in ("visible", *problem.needs & {"support"})}
    out |= {name: torch.full_like(like, -1).long() for name in problem.needs & {"argmax"}}
    if "received" in problem.needs:
        out["received"] = like.new_zeros((*like.shape[:2], problem.key.shape[2]))
    return out | {"average": like.new_zeros((*like.shape, problem.value.shape[-1]))}


def _measured(
    weighting: Weighting,
    at: Queries,
    scored: list[ScoreBlock],
    s: Tensor,
    parameters: list[Tensor],
    needs: frozenset[str],
    offset: Tensor | None = None,
) -> tuple[Tensor, Readings]:
    rule, blocks = weighting.problem.rule, [block.at for block in scored]
    assert rule is not None
    hidden = None
    if any(block.visible is not None for block in blocks):
        hidden = _beside([_nowhere(x) if x.visible is None else x.visible.hidden for x in blocks])

    def among_first() -> Tensor:
        found = [(block, weighting.indicator("sink_mass", at, block)) for block in blocks]
        return _beside([_nowhere(block).to(s.dtype) if x is None else x for block, x in found])

    def far() -> Tensor:
        return _beside([weighting.walk.far(block.tile) for block in blocks])

    positions = torch.cat([block.tile.j[0] for block in blocks])
    return measure(rule, tuple(parameters), s, hidden, needs, among_first, far, positions, offset)


def _nowhere(block: Block) -> Tensor:
    """(1, S') False."""
    return torch.zeros_like(block.tile.j, dtype=torch.bool)


def _parameters(walk: Blocks, at: Queries, scored: list[ScoreBlock]) -> list[Tensor]:
    """The rule's tensors for each row, (n, R, 1)."""
    rows = at.row1 - at.row0
    picked = (scored[0].at.tile.pick(p.detach()) for p in walk.problem.parameters)
    return [p.expand(at.entries, at.group, rows, 1).reshape(at.entries, -1, 1).to(walk.dtype) for p in picked]


def _by_key(walk: Blocks, at: Queries, w: Tensor) -> Tensor:
    """(b, h, S') the weights of each key, summed over a block's queries."""
    heads = at.heads
    return walk.four(at, w).sum(2).reshape(heads[0].stop - heads[0].start, heads[1].stop - heads[1].start, -1)
