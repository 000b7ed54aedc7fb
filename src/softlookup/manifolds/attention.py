"""Attention among points: scores are distances, and what is handed over is the middle of points, a point again."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import operator
from ..errors import SoftlookupError
from ..masks import describe
from ..problem import scrub
from ..running import without_autocast
from ..scores import single
from ..summary import Stats
from .base import Manifold
from .distance import Distance


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    manifold: Manifold,
    values: Manifold | None = None,
    power: int = 1,
    **options: Any,
) -> Any:
    """Points' midpoints by weights softmax(-d(q, k)^power) (Gulcehre et al. 2019).

    Values are lifted, averaged by `sl.attend` and projected: memory is O(n), and every mask, normalizer and statistic works.
    Weights count beside each other, so that a sink moves no point; where nothing is visible there is the origin.

    Args:
        query: (…, H, L, n), key: (…, Hkv, S, n), points of `manifold`; value: (…, Hkv, S, n'), points of `values`, which is
            the same by default. H is a multiple of Hkv.
        power: of the distance, 1 or 2.
        options: those of `sl.attend` besides `score` and `scale`. A temperature (`normalizer`) is the unit of distances.

    Returns:
        (…, H, L, n') points in the inputs' dtype; with `stats`, also a `Stats`.
    """
    narrow = isinstance(query, Tensor) and query.dtype != torch.float64
    score, over = Distance(manifold, power, narrow), manifold if values is None else values
    if not isinstance(over, Manifold):
        raise SoftlookupError(f"values: expected a Manifold, such as Lorentz(), got {over!r}")
    if "score" in options:
        raise SoftlookupError(f"score: expected none, as the manifold's distance is it, got {describe(options['score'])}")
    if not all(isinstance(x, Tensor) and x.ndim >= 2 for x in (query, key, value)):
        return operator.attend(query, key, value, score=score)  # which says what is wrong
    dtype, heads = value.dtype, query.shape[-3] if query.ndim > 2 else 1
    over = over.ready()
    per_head = [c for c in over.tensors() if c.ndim]
    if any(len(c) != heads or query.ndim < 3 for c in per_head):
        raise SoftlookupError(f"curvature: expected one for each of {heads} heads, got {[len(c) for c in per_head]}")
    if per_head and value.ndim > 2 and heads > value.shape[-3]:
        key, value = (x.repeat_interleave(heads // x.shape[-3], -3) for x in (key, value))
    value, bad = scrub(single(value))
    value = over.wide(over.check(value, "value"))
    with without_autocast(query.device.type):
        points = over.lift(value)
        if bad is not None:
            points = points.masked_fill(bad, math.nan)
        query, key = (single(x).to(points.dtype) for x in (query, key))
        found = operator.attend(query, key, points, score=score, **options)
        sums, *stats = found if isinstance(found, tuple) else (found,)
        mean = over.project(sums).to(dtype)
    if not stats:
        return mean
    (found,) = stats
    kept = {name: found[name] for name in found}
    return mean, Stats({name: x.float() if narrow and x.is_floating_point() else x for name, x in kept.items()})
