"""Attention within clusters: queries read the keys that k-means puts together with them (Roy et al. 2021, Routing Transformer).

Centres c are found among the directions of the keys, for each head, by spherical k-means; a query or key belongs to the one of
largest c . x / |x|. Queries and keys are sorted by cluster, so that pairs of different clusters are whole blocks, which engines
skip; results are put back in order. Unlike the paper's, clusters are as large as they are, and every key is in one.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal, overload

import torch
from torch import Tensor

from .. import operator
from ..errors import SoftlookupError, at_least_one, whole
from ..masks import Documents, Extent, Mask, content, describe, extremes
from ..problem import flatten, same_length, scrub
from ..running import StatsLike, autocast, without_autocast
from ..scores import ScaledDot, same_width, unit
from ..summary import Stats, chosen
from ..tile import Region, Tile

STEPS = 10
"""Of k-means."""
POSITIONS = {"distance", "sink_mass", "argmax", "received"}
"""Statistics that tell places of keys, which are not theirs once they are sorted."""


@overload
def route(
    query: Tensor, key: Tensor, value: Tensor, *, clusters: int, causal: bool = ..., seed: int = ..., stats: Literal[None] = ...
) -> Tensor: ...
@overload
def route(
    query: Tensor, key: Tensor, value: Tensor, *, clusters: int, causal: bool = ..., seed: int = ..., stats: StatsLike
) -> tuple[Tensor, Stats]: ...
def route(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    clusters: int,
    causal: bool = False,
    seed: int = 0,
    stats: StatsLike | None = None,
) -> Tensor | tuple[Tensor, Stats]:
    """Scaled dot-product attention of each query to the keys of its own cluster.

    Args:
        query: (…, H, L, E).
        key: (…, Hkv, S, E).
        value: (…, Hkv, S, Ev).
        clusters: of each head. The cost is that of all pairs over their number where they are of one size.
        causal: a query sees no keys after it, and as always none of other clusters, which its own may be; L and S are equal.
        seed: the key that k-means begins with.
        stats: as `sl.attend` has them, of the keys that were read, but for those of positions (`distance`, `sink_mass`,
            `argmax`, `received`).

    Returns:
        (…, H, L, Ev), 0 for a query that sees no key of its cluster, and statistics if any are named.
    """
    at_least_one("route", clusters=clusters)
    query, key, value = autocast(query, key, value)
    q, k, v, shapes = flatten(query, key, value)
    assert v is not None
    batch, heads = q.shape[:2]
    if causal:
        same_length(q, keys=k)
    same_width(ScaledDot(), q, k)
    names = chosen(stats)
    if stats is True:
        names = tuple(name for name in names if name not in POSITIONS)
    if of_position := {*names} & POSITIONS:
        raise SoftlookupError(f"route: expected statistics that do not tell positions, got {', '.join(sorted(of_position))}")
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    with without_autocast(q.device.type):
        fit = scrub(k)[0]  # a key that is not finite belongs anywhere, and says nothing about where others do
        centres = _centres(fit, clusters, seed)
        (ids, order), (key_ids, key_order) = (_sorted(x, centres) for x in (q, fit))
    mask: Mask = Documents(key_ids, ids)
    if causal:
        mask = mask & _Before(key_order, order)
    q, k, v = (_picked(x, at)[:, None] for x, at in ((q, order), (k, key_order), (v, key_order)))
    back = order.argsort(-1)
    found, read = operator.attend(q, k, v, mask=mask, stats=names)
    out = shapes.restore(_picked(found[:, 0], back).unflatten(0, (batch, heads)))
    if stats is None or stats is False:
        return out
    return out, Stats({n: shapes.restore(read[n][:, 0].gather(-1, back).unflatten(0, (batch, heads))) for n in names})


@torch.no_grad()
def k_means(points: Tensor, clusters: int, seed: int = 0) -> Tensor:
    """(N, C, E) directions among points (N, S, E), by spherical k-means; at most S.

    It begins with a point that the seed says, and with those that are furthest from all before them (Gonzalez 1985)."""
    at_least_one("k_means", clusters=clusters)
    if not isinstance(points, Tensor) or not points.is_floating_point() or points.ndim != 3 or 0 in points.shape[1:]:
        raise SoftlookupError(f"k_means: expected points (N, S, E) of real numbers, got {describe(points)}")
    if not torch.compiler.is_compiling() and not points.isfinite().all():
        raise SoftlookupError("k_means: expected finite numbers, got some that are not")
    return _centres(points, clusters, seed)


@torch.no_grad()
def _centres(points: Tensor, clusters: int, seed: int) -> Tensor:
    points = unit(points)
    at = torch.full_like(points[:, 0, 0], whole("seed", seed) % points.shape[1], dtype=torch.int64)
    first, nearest = [], torch.full_like(points[..., 0], -2)
    for _ in range(min(clusters, points.shape[1])):
        first.append(_picked(points, at[:, None]))
        nearest = torch.maximum(nearest, (points @ first[-1].mT)[..., 0])
        at = nearest.argmin(-1)
    centres = torch.cat(first, 1)
    for _ in range(STEPS):
        own = (points @ centres.mT).argmax(-1, keepdim=True).expand_as(points)
        sums = torch.zeros_like(centres).scatter_add_(1, own, points)
        centres = torch.where(sums.any(-1, keepdim=True), unit(sums), centres)
    return centres


@torch.no_grad()
def _sorted(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The clusters (N, S) of vectors (N, S, E), ascending, and the places (N, S) of the vectors in that order."""
    sorted_by = (x.to(centres.dtype) @ centres.mT).argmax(-1).sort(stable=True, dim=-1)
    return sorted_by.values, sorted_by.indices


def _picked(x: Tensor, at: Tensor) -> Tensor:
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


class _Before(Mask):
    """A query sees keys that stood before it, or where it stood: places (B, S) of keys and (B, L) of queries by row."""

    def __init__(self, keys: Tensor, queries: Tensor):
        self.keys, self.queries = keys, queries

    def key(self) -> Hashable:
        return type(self), content(self.keys), content(self.queries)

    def visible(self, tile: Tile) -> Tensor:
        return self.keys[tile.batch, tile.j] <= self.queries[tile.batch, tile.rows[:, None]]

    def extent(self, region: Region) -> Extent:
        k0, k1 = extremes(self.keys[region.b0 : region.b1], region.j0, region.j1)
        q0, q1 = extremes(self.queries[region.b0 : region.b1], region.row0, region.row1)
        return (k0 <= q1).any(0), (k1 <= q0).all(0)

    def differs_in_batch(self) -> bool:
        return True
