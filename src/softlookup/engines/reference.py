"""The reference engine: every weight in memory, every statistic by its definition, gradients by autograd.

It defines what is correct. In float64 it is the oracle that other engines are tested against; it also differentiates twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..outcome import Outcome
from ..problem import Problem
from ..scores import AdditiveForm, Pairwise, Product
from ..summary import Summary
from ..tile import Region, Tile
from .dropout import kept
from .thresholds import measure

name = "reference"


def refusal(problem: Problem) -> str | None:
    """Why this engine cannot run the problem: None, it runs everything that fits into memory."""
    return None


def whole(problem: Problem) -> Tile:
    """The one tile that covers the problem, its blocks shaped (B Hkv, G, L, S)."""
    (batch, heads, length, _), keys = problem.query.shape, problem.key.shape[2]
    i, start = problem.place.positions(length, problem.query.device), problem.place.key_offset
    region = Region(0, batch, 0, heads, 0, length, int(i.min()), int(i.max()) + 1, start, start + keys)
    return Tile(region, i, problem.group)


def _unfold(block: Tensor, tile: Tile, shape: torch.Size) -> Tensor:
    """A block broadcastable to (B Hkv, G, L, S) as one of shape (B, H, L, S)."""
    batch, heads = shape[:2]
    return block[(None,) * (4 - block.ndim)].expand(batch * heads // tile.group, tile.group, *shape[2:]).reshape(shape)


def scores(problem: Problem, tile: Tile) -> tuple[Tensor, Tensor]:
    """Final scores (B, H, L, S), 0 where hidden, and what is visible."""
    dtype, group = problem.accumulate, problem.group
    query, key = problem.query.to(dtype), problem.key.to(dtype).repeat_interleave(group, 1)
    bad = ~query.isfinite().all(-1)[..., :, None] | ~key.isfinite().all(-1)[..., None, :]
    query, key = (torch.where(x.isfinite().all(-1, keepdim=True), x, 0) for x in (query, key))
    match problem.form:
        case Product() as form:
            s = query @ key.mT * form.scale
            if form.key_bias is not None:
                s = s + form.key_bias.to(dtype)[..., None, :]
            if form.pointwise is not None:
                s = form.pointwise(s)
        case AdditiveForm() as form:
            s = (torch.tanh(query[..., :, None, :] + key[..., None, :, :]) * form.weight[:, None, None, :].to(dtype)).sum(-1)
        case Pairwise() as form:
            entries = (-1, group, query.shape[2], query.shape[3])
            s = form.block(query.reshape(entries), key[:, ::group].flatten(0, 1)[:, None], tile.i, tile.j)
            s = s.reshape(*query.shape[:3], -1).to(dtype)
    for bias in problem.biases:
        s = s + _unfold(bias.block(tile).to(dtype), tile, s.shape)
    if not problem.hard:
        s = s / problem.temperature
    visible = _unfold(problem.mask.visible(tile), tile, s.shape)
    s = torch.where(bad, math.nan, s)
    return torch.where(visible, s, 0), visible


def distribution(problem: Problem, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """p, final scores and what is visible, each (B, H, L, S); p is 0 where hidden."""
    s, visible = scores(problem, tile)
    if problem.rule is not None:
        return _weighed(problem, tile, s, visible)[0], s, visible
    if problem.hard:
        top = s.masked_fill(~visible, -math.inf).amax(-1, keepdim=True)
        best = (s == top) & visible
        p = best / best.sum(-1, keepdim=True).clamp(min=1)
        return p.to(s.dtype), s, visible
    some = visible.any(-1, keepdim=True)
    p = torch.softmax(s.masked_fill(~visible & some, -math.inf), -1)
    return torch.where(visible, p, 0), s, visible


def run(problem: Problem) -> Summary | Outcome:
    """The summary of every query, by definition, or the outcome where weights are not a softmax's."""
    tile = whole(problem)
    if problem.rule is not None:
        return _outcome(problem, tile)
    p, s, visible = distribution(problem, tile)
    count = visible.sum(-1)
    none = count == 0
    n = count.clamp(min=1)
    top = s.detach().masked_fill(~visible, -math.inf).amax(-1)
    safe = top.masked_fill(none, 0)
    average = _averaged(problem, tile, p, visible)
    # log p where p > 0 by way of the log-normalizer, so that it has a gradient where p is tiny
    t = torch.where(visible, s - safe[..., None], 0)
    if problem.hard:
        log_z = (p > 0).sum(-1).clamp(min=1).to(p.dtype).log()
        t = torch.where(p > 0, torch.zeros_like(t), 0 * p)
    else:
        log_z = torch.where(none, 0, torch.where(visible, t, -math.inf).masked_fill(none[..., None], 0).logsumexp(-1))
    excess = (p * t).sum(-1)
    mean = s.sum(-1) / n
    spread = torch.where(visible, s - mean[..., None], 0)
    return Summary(
        average=average,
        max_logit=top,
        log_z=log_z,
        visible=count,
        argmax=s.detach().masked_fill(~visible, -math.inf).argmax(-1).add(tile.region.j0).masked_fill(none, -1),
        excess=excess,
        entropy=torch.where(none, 0, log_z - excess),
        expected_logit_var=(p * (t - excess[..., None]).square()).sum(-1),
        collision=p.square().sum(-1),
        logit_mean=mean,
        logit_var=spread.square().sum(-1) / n,
        sink_mass=(p * _among_first(problem, tile)).sum(-1),
        distance=(p * (tile.i - tile.j).abs()).sum(-1),
        hard=problem.hard,
        dtype=problem.value.dtype,
    )


def _averaged(problem: Problem, tile: Tile, p: Tensor, visible: Tensor) -> Tensor:
    """(B, H, L, Ev) the values by weights p, of which dropout takes some."""
    value = problem.value.to(p.dtype).repeat_interleave(problem.group, 1)
    bad = ~value.isfinite().all(-1)[..., None, :] & visible
    if problem.dropout is not None:
        keep = _unfold(kept(problem.dropout, tile), tile, p.shape)
        p = p * keep / (1 - problem.dropout.p if problem.dropout.p < 1 else 1)
    return torch.where(bad, math.nan, p) @ torch.where(value.isfinite().all(-1, keepdim=True), value, 0)


def _among_first(problem: Problem, tile: Tile) -> Tensor:
    """Which keys `sink_mass` counts."""
    first = torch.as_tensor(problem.first_key, device=tile.j.device).reshape(-1, 1, 1, 1)
    return (tile.j >= first) & (tile.j < first + problem.sinks)


def _outcome(problem: Problem, tile: Tile) -> Outcome:
    s, visible = scores(problem, tile)
    w, read = _weighed(problem, tile, s, visible, problem.needs)
    del read["offset"]
    if "received" in problem.needs:
        read["received"] = w.sum(-2)
    return Outcome(average=_averaged(problem, tile, w, visible), **read, dtype=problem.value.dtype)


def _weighed(
    problem: Problem, tile: Tile, s: Tensor, visible: Tensor, needs: frozenset[str] = frozenset()
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights by thresholds, and fields of an outcome."""
    assert problem.rule is not None
    parameters = tuple(p.to(s.dtype) for p in problem.parameters)
    first, far = lambda: _among_first(problem, tile), lambda: (tile.i - tile.j).abs()
    return measure(problem.rule, parameters, s, ~visible, needs, first, far, tile.j[0], derivatives=2)


def received(problem: Problem) -> Tensor:
    """(B, H, S) sum over queries of the weight that each key received."""
    return distribution(problem, whole(problem))[0].sum(-2)


def divergence(first: Problem, second: Problem) -> Tensor:
    """(B, H, L) KL(first || second)."""
    p, s_p, seen_p = distribution(first, whole(first))
    r, s_r, seen_r = distribution(second, whole(second))
    log_p = s_p - torch.where(seen_p, s_p, -1e300 if p.dtype == torch.float64 else -1e30).logsumexp(-1, keepdim=True)
    log_r = s_r - torch.where(seen_r, s_r, -1e300 if p.dtype == torch.float64 else -1e30).logsumexp(-1, keepdim=True)
    some = (p > 0) | p.isnan()
    terms = torch.where(some & seen_r, p * (log_p - log_r), 0)
    return torch.where((some & ~seen_r).any(-1), math.inf, terms.sum(-1))
