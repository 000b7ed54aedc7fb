"""The streaming engine: blocks in plain torch, forward and backward of its own, memory O(n), any device, any score.

The forward keeps running moments per query (`moments.py`; on a CPU in single precision `fused_moments.py`, compiled).
The backward computes each block of scores again and needs
only a few scalars per query for all statistics together: with t = s - m, e = E_p[t], V = Var_p(s), C = sum p^2,

    ds = p (dP - delta + c0 + c1 t + c2 t^2 + c3 p) + c4 + c5 t          (c4, c5 on visible keys only)

    c0 = g_lse + g_E (1 - e) + g_H e + g_V (e^2 - 2e - V) - 2 g_C C      c1 = g_E - g_H + 2 g_V (1 - e)
    c2 = g_V    c3 = 2 g_C    c4 = (g_mean - 2 g_var (mean - m)) / n     c5 = 2 g_var / n

where g_x is the gradient of statistic x; sink_mass and distance are expectations like the value and enter dP and delta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..outcome import Outcome
from ..problem import Problem
from ..scores import Pairwise
from ..summary import Summary
from . import whole_rows
from .blocks import FLOOR, Blocks, ScoreBlock, largest, refuse_strangers, without_bad
from .fused_moments import FusedMoments, serves
from .moments import Moments
from .node import Readings, conclude, summarize
from .tiling import Queries
from .weighting import Weighting
from .workspace import Workspace

name = "streaming"


def refusal(problem: Problem) -> str | None:
    """Why this engine cannot run the problem: None, it runs everything."""
    return None


def run(problem: Problem) -> Summary | Outcome:
    """The summary of every query, shapes (B, H, L), or the outcome where weights are not a softmax's."""
    if torch.is_grad_enabled():
        _probe(problem)
    if problem.rule is not None:
        return conclude(problem, whole_rows.forward, whole_rows.backward)
    return summarize(problem, forward, backward)


def _probe(problem: Problem) -> None:
    """Find a parameter that a score or a normalizer hides from autograd before it silently gets no gradient."""
    if isinstance(problem.form, Pairwise):
        score = problem.form.score
        some = (x[:1, :1, :1].detach().to(problem.accumulate, copy=True) for x in (problem.query, problem.key))
        q, k = (x.requires_grad_() for x in some)
        zero = torch.zeros((1, 1), dtype=torch.int64, device=q.device)
        s = problem.form.block(q, k, zero, zero)
        refuse_strangers(f"{type(score).__name__}.block", "as attributes of the score", s, (*score.tensors(), q, k))
    if problem.rule is not None:
        w = problem.rule.weight(problem.query.new_zeros((1, 1, 1, 1), dtype=problem.accumulate), *problem.parameters)
        refuse_strangers(f"{type(problem.rule).__name__}.weight", "listed by parameters()", w, problem.parameters)


# ---- forward ---------------------------------------------------------------------------------------------------------


def forward(problem: Problem) -> Readings:
    """All readings of a `Summary` that `problem.needs` asks for, and `average`, (B, H, L) and (B, H, L, Ev)."""
    walk = Blocks(problem)
    weights, fused = Weighting(walk), serves(problem)
    batch, heads, length, _ = problem.query.shape
    value = torch.empty((batch, heads, length, problem.value.shape[-1]), dtype=walk.dtype, device=problem.query.device)
    planes: dict[bool, tuple[list[str], Tensor]] = {}
    for at in walk.tiling.queries():
        query = walk.query(at)
        rows = query.rows.shape[1]
        moments = FusedMoments(walk, at, rows) if fused else _moments(weights, at, rows)
        average = walk.work("average", at.entries, rows, problem.value.shape[-1]).zero_()
        for block in walk.tiling.blocks(at):
            scored = walk.scores(query, block)
            e, rescale = moments.add(scored)
            weights.add(average, at, block, e, rescale)
        read = moments.readings()
        walk.put(at, value, average.mul_(torch.exp(-read["log_z"]).unsqueeze(-1)))
        for real in (True, False):
            some = {name: x for name, x in read.items() if x.is_floating_point() == real}
            if real not in planes:
                like = next(iter(some.values()))
                planes[real] = list(some), like.new_empty((len(some), batch, heads, length))
            walk.put_planes(at, planes[real][1], list(some.values()))
    return {"average": value} | {
        name: plane for names, stack in planes.values() for name, plane in zip(names, stack.unbind(), strict=True)
    }


def _moments(weights: Weighting, at: Queries, rows: int) -> Moments:
    problem, work = weights.problem, weights.walk.work
    return Moments(problem.needs, problem.hard, work, at.entries, rows, partial(weights.expect, at))


# ---- backward --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Rows:
    """What the backward needs of each query, all (B, H, L, 1): the distribution's scalars and the coefficients c0 … c5."""

    m: Tensor
    log_z: Tensor
    c0: Tensor
    c: dict[int, Tensor]
    grads: dict[str, Tensor]


def backward(problem: Problem, read: Readings, grads: Readings) -> list[Tensor]:
    """Gradients of all of `problem.tensors()` from those of the readings (`average` and statistics; absent ones are 0)."""
    walk = Blocks(problem)
    weights = Weighting(walk)
    into = walk.zeros()
    rows = coefficients(read, grads)
    grad_average = grads.get("average")
    doubtful = grad_average is not None and not math.isfinite(largest(grad_average))
    for at in walk.tiling.queries():
        query = walk.query(at)
        cut = {k: walk.query_rows(at, x) for k, x in rows.c.items()}
        m, log_z, c0 = (walk.query_rows(at, x) for x in (rows.m, rows.log_z, rows.c0))
        expected = {k: walk.query_rows(at, g) for k, g in rows.grads.items()}
        # Everything that p = e^t / Z multiplies is divided by Z here, once per row, so that blocks only need e^t.
        share = inverse_z(log_z)
        c0 = c0 * share
        spoiled = not bool(c0.isfinite().all())
        cut = {k: x if k > 3 else x * share * (share if k == 3 else 1) for k, x in cut.items()}
        expected = {k: x * share for k, x in expected.items()}
        upstream = bad = None
        if grad_average is not None:
            upstream, bad = without_bad(walk.query_rows(at, grad_average), doubtful)
            upstream = upstream * share
        dq: Tensor | None = None
        for block in walk.tiling.blocks(at):
            scored = walk.scores(query, block, graph=not problem.hard)
            scored.tame = scored.tame and not spoiled
            t, e = unnormalized(scored, m, problem.hard, walk.work, keep=isinstance(problem.temperature, Tensor))
            ds = weights.pull(at, block, e, upstream, bad, expected, into)
            if problem.hard:
                continue
            ds = walk.work("upstream", *e.shape).copy_(c0) if ds is None else ds.add_(c0)
            if 2 in cut:  # with expected_logit_var, c1 is there too
                slope = torch.addcmul(cut[1], t, cut[2], out=walk.work("slope", *t.shape))
                ds.addcmul_(slope, t)
            elif 1 in cut:
                ds.addcmul_(t, cut[1])
            if 3 in cut:
                ds.addcmul_(e, cut[3])
            ds.mul_(e)
            if 4 in cut:
                ds.add_(cut[4])
            if 5 in cut:
                ds.addcmul_(t, cut[5])
            if 4 in cut or 5 in cut or not scored.tame:
                scored.hide(ds)
            dq = walk.pull(query, scored, ds, into, dq)
        if dq is not None:
            walk.put(at, into[0], walk.finish_query(dq))
    return into


def unnormalized(
    scored: ScoreBlock, m: Tensor, hard: bool, work: Workspace, keep: bool = False
) -> tuple[Tensor, Tensor]:
    """t = s - m, and e^t, exactly 0 where hidden (in rows of NaN too); uses up the scores unless `keep`."""
    s = scored.scores
    e = work("weights", *s.shape)
    if hard:
        return s, scored.hide(e.copy_(s == m))
    t = torch.sub(s, m, out=work("centred", *s.shape) if keep else s)
    if scored.mild:
        torch.exp(t, out=e)
    else:
        torch.clamp(t, min=FLOOR[s.dtype], max=0, out=e).exp_()  # a hidden score may lie above the maximum
    return t, scored.hide(e)


def inverse_z(log_z: Tensor) -> Tensor:
    """1/Z per row; 0 for a row of NaN, which keeps its NaN in e^t, where the mask can hide it: NaN * 0 is NaN."""
    return torch.exp(-log_z).nan_to_num(nan=0.0)


def received(problem: Problem, read: Readings) -> Tensor:
    """(B, H, S) the weight that each key receives, from the maxima and log-normalizers of all queries."""
    walk = Blocks(problem)
    batch, heads = problem.query.shape[:2]
    out = torch.zeros((batch, heads, problem.key.shape[2]), dtype=walk.dtype, device=problem.query.device)
    m, log_z = read["max_logit"].unsqueeze(-1), read["log_z"].unsqueeze(-1)
    m = m.masked_fill(m.isneginf(), 0)
    for at in walk.tiling.queries():
        query = walk.query(at)
        top, share = walk.query_rows(at, m), inverse_z(walk.query_rows(at, log_z))
        for block in walk.tiling.blocks(at):
            p = unnormalized(walk.scores(query, block), top, problem.hard, walk.work)[1].mul_(share)
            part = out[(*at.heads, slice(block.col0, block.col1))]
            part.add_(walk.four(at, p).sum(2).reshape(part.shape))
    return out


def coefficients(read: dict[str, Tensor], grads: dict[str, Tensor]) -> Rows:
    """The scalars per query of the formula at the head of this file; c0 includes -delta. Empty rows get zeros."""
    one = {k: x.unsqueeze(-1) for k, x in read.items() if k != "average"}
    g = {k: x.unsqueeze(-1) for k, x in grads.items() if k != "average"}
    m = one["max_logit"].masked_fill(one["max_logit"] == -math.inf, 0)
    n = one["visible"].clamp(min=1).to(m.dtype)
    c0 = torch.zeros_like(m)
    c: dict[int, Tensor] = {}

    def add(k: int, x: Tensor) -> None:
        c[k] = c[k] + x if k in c else x

    if "average" in grads:
        c0 = c0 - (grads["average"].to(m.dtype) * read["average"]).sum(-1, keepdim=True)
    for key in ("sink_mass", "distance"):
        if key in g:
            c0 = c0 - g[key] * one[key]
    if "log_z" in g:
        c0 = c0 + g["log_z"]
    if "excess" in g:
        c0 = c0 + g["excess"] * (1 - one["excess"])
        add(1, g["excess"])
    if "entropy" in g:
        c0 = c0 + g["entropy"] * one["excess"]
        add(1, -g["entropy"])
    if "expected_logit_var" in g:
        e, var, gv = one["excess"], one["expected_logit_var"], g["expected_logit_var"]
        c0 = c0 + gv * (e * e - 2 * e - var)
        add(1, 2 * gv * (1 - e))
        add(2, gv)
    if "collision" in g:
        c0 = c0 - 2 * g["collision"] * one["collision"]
        add(3, 2 * g["collision"])
    if "logit_mean" in g:
        add(4, g["logit_mean"] / n)
    if "logit_var" in g:
        add(4, -2 * g["logit_var"] * (one["logit_mean"] - m) / n)
        add(5, 2 * g["logit_var"] / n)
    return Rows(m, one["log_z"], c0, c, {k: g[k] for k in ("sink_mass", "distance") if k in g})
