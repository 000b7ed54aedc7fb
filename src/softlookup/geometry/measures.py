"""The measures of a head (docs/semantics.md, Geometry of a head), each beside what chance would give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .subspace import Factored, cosines, entropy_rank, factored, overlap, participation, weighted_overlap
from .weights import LayerWeights, spread_of


@dataclass(frozen=True, eq=False)
class Measure:
    """value, chance: (H,) float64; chance is what random weights (or strengths in random directions) give on average."""

    value: Tensor
    chance: Tensor


DRAWS = 64
"""Heads of normal weights whose mean is the chance level where that has no formula."""
DRAWS_OF_INPUTS = 16
"""The same where inputs are given: those of each layer are others, so that nothing can be kept."""


def measure(layer: LayerWeights, inputs: Tensor | None = None, spread: Tensor | None = None) -> dict[str, Measure]:
    """Every measure of every head.

    Args:
        layer: the projections.
        inputs: (n, d) what the layer really reads; everything that reads is then weighted by its
            covariance (`LayerWeights.seen_by`), and its chance level is that of normal weights which read the same inputs.
            spread: the same as `spread_of(inputs)`, for who has not kept them.
    """
    if inputs is not None:
        spread = spread_of(inputs)
    found = _measures(layer, spread)
    if spread is not None:
        random = _measures(_random(layer), spread)
        for name in set(found) - _OF_OUTPUTS:
            found[name] = Measure(found[name].value, random[name].value.mean())
    return {name: Measure(each.value, each.chance.expand_as(each.value).to(each.value)) for name, each in found.items()}


_OF_OUTPUTS = {"write", "copying", "output_rank"}


def _random(like: LayerWeights) -> LayerWeights:
    make = torch.Generator().manual_seed(0)

    def normal(shape: torch.Size) -> Tensor:
        return torch.randn(DRAWS_OF_INPUTS, *shape[1:], dtype=torch.float64, generator=make)

    return LayerWeights(*(normal(x.shape) for x in (like.query, like.key, like.value, like.output)))


def _measures(layer: LayerWeights, spread: Tensor | None) -> dict[str, Measure]:
    own_q, own_k, own_v, o = (factored(x) for x in (layer.query, layer.key, layer.value, layer.output.mT))
    q, k, v, variance = own_q, own_k, own_v, float(layer.query.shape[1])
    if spread is not None:
        seen = layer.seen_by(spread)
        q, k, v = (factored(x) for x in (seen.query, seen.key, seen.value))
        variance = float(spread.to(layer.query).square().sum())
    reads = [_read(*each, variance) for each in ((own_q, q), (own_k, k), (own_v, v))]
    k, v, own_v = (_of_heads(layer, each) for each in (k, v, own_v))
    (d, width), (values, out) = layer.query.shape[1:], layer.output.shape[1:]
    strengths = _strengths(q, k)
    return {
        "overlap": Measure(*overlap(q, k)),
        "weighted_overlap": Measure(*weighted_overlap(q, k)),
        "symmetric_share": symmetric_share(q, k),
        "rank": Measure(participation(strengths), _by_chance(_rank, d, width, d)),
        "entropy_rank": Measure(entropy_rank(strengths), _by_chance(_entropy_rank, d, width, d)),
        "query_value_overlap": Measure(*overlap(q, v)),
        "key_value_overlap": Measure(*overlap(k, v)),
        "query_read": Measure(reads[0], _by_chance(_breadth, d, width)),
        "key_read": Measure(layer.of_head(reads[1]), _by_chance(_breadth, d, width)),
        "value_read": Measure(layer.of_head(reads[2]), _by_chance(_breadth, d, values)),
        "write": Measure(_read(o, o, float(out)), _by_chance(_breadth, out, values)),
        "copying": copying(layer),
        "output_rank": Measure(participation(_strengths(own_v, o)), _by_chance(_rank, d, values, out)),
    }


def _of_heads(layer: LayerWeights, shared: Factored) -> Factored:
    return Factored(*(layer.of_head(x) for x in (shared.basis, shared.singular, shared.right)))


def symmetric_share(q: Factored, k: Factored) -> Measure:
    """|M + M^T|^2 / (4 |M|^2) of M = W_Q W_K^T, as (|M|^2 + tr M M) / (2 |M|^2); (1 + 1/d) / 2 by chance."""
    core = q.core @ k.core.mT
    inner = core @ (k.basis.mT @ q.basis)  # tr M M = tr (core U_K^T U_Q)^2
    size, trace = core.square().sum((-2, -1)), (inner * inner.mT).sum((-2, -1))
    return Measure((size + trace) / (2 * size), torch.full_like(size, (1 + 1 / q.basis.shape[-2]) / 2))


def singular_pairs(layer: LayerWeights, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The strongest pairs of W_Q W_K^T: what a query looks for (H, d, count), with what strength (H, count), and what a key
    advertises to be found by it (H, d, count)."""
    q, k = factored(layer.query), _of_heads(layer, factored(layer.key))
    u, s, vh = torch.linalg.svd(q.core @ k.core.mT)
    return q.basis @ u[..., :count], s[..., :count], k.basis @ vh.mT[..., :count]


def principal_cosines(layer: LayerWeights) -> Tensor:
    """(H, k) cosines of the principal angles between what queries and keys read, descending."""
    return cosines(factored(layer.query), _of_heads(layer, factored(layer.key)))


def copying(layer: LayerWeights) -> Measure:
    """Sum of the eigenvalues of W_V W_O over the sum of their sizes, from the small product W_O W_V (Elhage et al. 2021)."""
    values = torch.linalg.eigvals(layer.output @ layer.of_head(layer.value))
    size = values.abs().sum(-1)
    return Measure(torch.where(size > 0, values.real.sum(-1) / size.clamp(min=1e-300), 0.0), torch.zeros_like(size))


def _strengths(a: Factored, b: Factored) -> Tensor:
    """Singular values of W_a W_b^T."""
    return torch.linalg.svdvals(a.core @ b.core.mT)


def _rank(a: Tensor, b: Tensor) -> Tensor:
    return participation(_strengths(factored(a), factored(b)))


def _entropy_rank(a: Tensor, b: Tensor) -> Tensor:
    return entropy_rank(_strengths(factored(a), factored(b)))


def _read(own: Factored, seen: Factored, variance: float) -> Tensor:
    """tr(W^T C W) / tr(C), W scaled to spectral norm 1. own: W; seen: C^1/2 W; variance: tr(C)."""
    return seen.singular.square().sum(-1) / own.singular.amax(-1).square() / variance


def _breadth(w: Tensor) -> Tensor:
    """The same where variance is alike in all directions."""
    found = factored(w)
    return _read(found, found, float(w.shape[-2]))


@cache
def _by_chance(of: Callable[..., Tensor], d: int, width: int, *others: int) -> Tensor:
    """The mean of a measure over normal matrices (d, width) and others of that width."""
    make = torch.Generator().manual_seed(0)
    return of(*(torch.randn(DRAWS, x, width, dtype=torch.float64, generator=make) for x in (d, *others))).mean()
