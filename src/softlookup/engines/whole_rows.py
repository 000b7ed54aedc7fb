"""Blocks of some queries and all their keys, for weights by thresholds (`thresholds.py`): O(n) memory, any device and score."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..problem import Problem
from .blocks import Blocks, largest, without_bad
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
        query = walk.query(at)
        for block in walk.tiling.blocks(at):
            w, read = _measured(
                weighting, at, block, walk.scores(query, block).scores, _parameters(walk, at, block), problem.needs
            )
            for name, x in read.items():
                walk.put(at, out[name], x.unsqueeze(-1))
            if "received" in problem.needs:
                out["received"][(*at.heads, slice(block.col0, block.col1))] += _by_key(walk, at, w)
            average = w.new_zeros((*w.shape[:2], problem.value.shape[-1]))
            weighting.add(average, at, block, w, torch.ones_like(w[..., 0]))
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
        offset = walk.query_rows(at, read["offset"].unsqueeze(-1))
        for block in walk.tiling.blocks(at):
            scored = walk.scores(query, block, graph=True)
            with torch.enable_grad():
                s, p = scored.scores.detach().requires_grad_(), [x.requires_grad_() for x in _parameters(walk, at, block)]
                w, sums = _measured(weighting, at, block, s, p, frozenset(per_row), offset)
            upstream = bad = None
            if average is not None:
                upstream, bad = without_bad(walk.query_rows(at, average), doubtful)
            dw = weighting.pull(at, block, w.detach(), upstream, bad, {}, into)
            if received is not None:
                of_key = received[(*at.heads, None, slice(block.col0, block.col1))]
                of_key = of_key.expand(-1, -1, at.row1 - at.row0, -1).reshape(w.shape)
                dw = of_key if dw is None else dw + of_key
            outputs = [(w, dw), *((sums[name], walk.query_rows(at, g)[..., 0]) for name, g in per_row.items())]
            some = [(x, g) for x, g in outputs if g is not None and x.requires_grad]
            ds, *dp = torch.autograd.grad([x for x, _ in some], [s, *p], [g for _, g in some], allow_unused=True)
            for grad, total in zip(dp, own, strict=False):
                if grad is not None:
                    part = block.tile.region.cut(total)
                    part.add_(block.tile.unfold(walk.four(at, grad)).sum_to_size(part.shape))
            ds = torch.zeros_like(s) if ds is None else ds.clone()
            if weighting.doubtful and dw is not None:
                ds.masked_fill_(dw.isnan().any(-1, keepdim=True), math.nan)  # also where the key's weight is 0
            dq = walk.pull(query, scored, scored.hide(ds), into, None)
            walk.put(at, into[0], walk.finish_query(dq))
    return into


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
    block: Block,
    s: Tensor,
    parameters: list[Tensor],
    needs: frozenset[str],
    offset: Tensor | None = None,
) -> tuple[Tensor, Readings]:
    rule, tile = weighting.problem.rule, block.tile
    assert rule is not None

    def among_first() -> Tensor:
        found = weighting.indicator("sink_mass", at, block)
        return s.new_zeros(()) if found is None else found

    hidden = None if block.visible is None else block.visible.hidden
    far = weighting.walk.far
    return measure(rule, tuple(parameters), s, hidden, needs, among_first, lambda: far(tile), tile.region.j0, offset)


def _parameters(walk: Blocks, at: Queries, block: Block) -> list[Tensor]:
    """The rule's tensors for each row of a block, (n, R, 1)."""
    rows = at.row1 - at.row0
    picked = (block.tile.pick(p.detach()) for p in walk.problem.parameters)
    return [p.expand(at.entries, at.group, rows, 1).reshape(at.entries, -1, 1).to(walk.dtype) for p in picked]


def _by_key(walk: Blocks, at: Queries, w: Tensor) -> Tensor:
    """(b, h, S') the weights of each key, summed over a block's queries."""
    heads = at.heads
    return walk.four(at, w).sum(2).reshape(heads[0].stop - heads[0].start, heads[1].stop - heads[1].start, -1)
