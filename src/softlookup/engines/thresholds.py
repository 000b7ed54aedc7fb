"""Weights by thresholds (normalizers/threshold.py), for blocks of whole rows of scores: how the threshold is found, and what
the weights are like.

A threshold depends on all keys of a query, so that the streaming engine takes few queries here and all their keys, O(n)
memory, instead of many queries and some keys at a time. `measure` says what weights and sums are, differentiably; the engines
apply it to their blocks, forward, and by autograd backward.

The threshold rho is where the weights' sum T(rho) = sum weight(s - rho) is 1. As weights grow with scores, it lies between
max s - reach(1), where the best key alone has weight 1, and max s - reach(1/n), where all n have at most 1/n. The search is
Newton's, for reach(T(rho)) = reach(1), which is a straight line for softmax, and convex for entmax with alpha <= 2, so that no
step from the left goes too far; a step out of the bracket is replaced by its middle, and what has not converged is bisected.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..normalizers import Threshold

NEWTON = 24
"""Steps before bisection; three to eight are usual."""


class Weigher:
    """The weights that a normalizer gives to scores, t = s - max s, and 0 where hidden. parameters broadcast to (…, R, 1)."""

    def __init__(self, rule: Threshold, parameters: tuple[Tensor, ...], hidden: Tensor | None):
        self.rule, self.parameters, self.hidden = rule, parameters, hidden

    def weights(self, x: Tensor) -> Tensor:
        return self._shown(self.rule.weight(x, *self.parameters))

    def slopes(self, x: Tensor, w: Tensor) -> Tensor:
        return self._shown(self.rule.slope(x, w, *self.parameters))

    def reach(self, w: Tensor) -> Tensor:
        return self.rule.reach(w, *self.parameters)

    def _shown(self, x: Tensor) -> Tensor:
        return x if self.hidden is None else x.masked_fill(self.hidden, 0)

    @torch.no_grad()
    def threshold(self, t: Tensor, count: Tensor) -> Tensor:
        """(…, R, 1) rho - max s of scores t (…, R, S) <= 0 whose sum of weights is 1; count: keys that each query sees."""
        one = torch.ones_like(count)
        here = self.reach(one)
        if not here.isfinite().all():
            name, got = type(self.rule).__name__, float(here.max())
            raise SoftlookupError(f"{name}: expected a weight that can be 1, got reach(1) = {got}")
        low, high = -here, -self.reach(1 / count.clamp(min=1))
        least = high.abs()
        rho, done = low.expand_as(count), torch.zeros_like(count, dtype=torch.bool)
        for step in range(NEWTON + math.ceil(-math.log2(torch.finfo(t.dtype).eps))):
            x = t - rho
            w = self.weights(x)
            total = w.sum(-1, keepdim=True)
            low, high = torch.where(total >= 1, rho, low), torch.where(total >= 1, high, rho)
            middle = low + (high - low) / 2
            following = middle
            if step < NEWTON:
                beyond = self.reach(total)
                slope = self.rule.slope(beyond, total, *self.parameters)
                newton = rho + (beyond - here) * slope / self.slopes(x, w).sum(-1, keepdim=True)
                following = torch.where((newton >= low) & (newton <= high), newton, middle)
            moved = (following - rho).abs()
            rho = torch.where(done, rho, following)
            done |= ~(moved > 4 * torch.finfo(t.dtype).eps * torch.maximum(rho.abs(), least))  # NaN, too
            if done.all():
                break
        return rho


Sums = dict[str, Tensor]


def measure(
    rule: Threshold,
    parameters: tuple[Tensor, ...],
    s: Tensor,
    hidden: Tensor | None,
    needs: frozenset[str],
    among_first: Callable[[], Tensor],
    far: Callable[[], Tensor],
    positions: Tensor,
    offset: Tensor | None = None,
    derivatives: int = 1,
) -> tuple[Tensor, Sums]:
    """Weights (…, R, S) of scores s, and fields of an `Outcome` but for values and keys, each (…, R); differentiable.

    hidden: True where a key has no weight and counts for nothing, None where nowhere. among_first, far: what `sink_mass` and
    `distance` sum over, broadcastable to s. positions: (S,) of the keys. offset: (…, R, 1) where it is known already.
    derivatives: how many times it can be differentiated, 1 or 2.
    """
    shown = s.detach() if hidden is None else s.detach().masked_fill(hidden, -math.inf)
    count = (
        torch.full_like(shown[..., :1], s.shape[-1]) if hidden is None else (~hidden).expand_as(s).sum(-1, keepdim=True).to(s)
    )
    m, best = shown.max(-1, keepdim=True)
    base = m.masked_fill(m == -math.inf, 0)
    seen = (lambda x: x) if hidden is None else (lambda x: x.masked_fill(hidden, 0))
    t = seen(s - base)
    cut = rule.cut(shown)
    weighed = hidden if cut is None else shown < cut if hidden is None else hidden | (shown < cut)
    by = Weigher(rule, parameters, weighed)
    if rule.sums_to_one:
        rho = by.threshold(t.detach(), count) if offset is None else offset
        if torch.is_grad_enabled():
            # Where weights sum to 1, steps of Newton's move nothing, but each gives rho one more derivative.
            for _ in range(derivatives):
                w = by.weights(t - rho)
                u = by.slopes(t - rho, w).sum(-1, keepdim=True)
                rho = rho + (w.sum(-1, keepdim=True) - 1) / torch.where(u == 0, 1, u)
        above = t - rho
    else:
        rho = rule.level(count)
        above = seen(s) - rho  # not by way of the maximum, beside which scores that have weight too may be small
    w = by.weights(above)
    if rule.sums_to_one:  # but for what rounding has made of the threshold
        total = w.sum(-1, keepdim=True)
        w = w / torch.where(total == 0, 1, total)
    none = count == 0
    doubtful = ~m.isfinite() & ~none
    if doubtful.any():
        w = seen(w.masked_fill(doubtful, math.nan))
    read: Sums = {"total": w.sum(-1), "max_logit": m, "visible": count.long(), "offset": rho}
    n = count.clamp(min=1)
    if "threshold" in needs:
        reported = rho + rule.edge(*parameters) + (base if rule.sums_to_one else 0)
        read["threshold"] = reported.masked_fill(none, -math.inf).masked_fill(doubtful, math.nan)
    if "argmax" in needs:
        read["argmax"] = positions[best].masked_fill(none | doubtful, -1)
    if "logsumexp" in needs:
        inside = t if hidden is None else t.masked_fill(hidden & ~none, -math.inf)
        read["logsumexp"] = torch.where(none, -math.inf, base + inside.logsumexp(-1, keepdim=True))
    if "max_weight" in needs:
        read["max_weight"] = w.detach().amax(-1)
    if "support" in needs:
        read["support"] = (w > 0).sum(-1)
    if "log_weight" in needs:
        read["log_weight"] = (w * torch.where(w == 0, 1, w).log()).sum(-1)
    if "square" in needs:
        read["square"] = w.square().sum(-1)
    if "first" in needs:
        read["first"] = (w * t).sum(-1)
    if "spread" in needs:
        total = read["total"][..., None]
        mean = (w * t).sum(-1, keepdim=True) / torch.where(total == 0, 1, total)
        read["spread"] = (w * (t - mean).square()).sum(-1)
    if "sink_mass" in needs:
        read["sink_mass"] = (w * among_first()).sum(-1)
    if "distance" in needs:
        read["distance"] = (w * far()).sum(-1)
    if "jacobian_trace" in needs:
        u = by.slopes(above.detach(), w.detach()).masked_fill(doubtful, math.nan)
        total = u.sum(-1)
        read["jacobian_trace"] = total - (u.square().sum(-1) / torch.where(total == 0, 1, total) if rule.sums_to_one else 0)
    if needs & {"logit_mean", "logit_var"}:
        mean = seen(s).sum(-1, keepdim=True) / n
        if "logit_mean" in needs:
            read["logit_mean"] = mean
        if "logit_var" in needs:
            read["logit_var"] = seen((s - mean).square()).sum(-1) / n[..., 0]
    return w, {name: x.squeeze(-1) if x.ndim == s.ndim else x for name, x in read.items()}
