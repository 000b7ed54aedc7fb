"""What an approximation of softmax attention costs on one's own queries, keys and values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..masks import describe
from ..operator import attend
from ..running import MaskLike
from ..scores import unit


@dataclass(frozen=True)
class Error:
    """relative: |approximate - exact| over |exact|, norms of all values together. worst: the same of the worst query.
    cosine: mean cosine of a query's two values, 0 where the approximate one is 0. explained: share of the variance of exact
    values over the queries of a head that is there, NaN where they do not vary, as with one query."""

    relative: float
    worst: float
    cosine: float
    explained: float

    def __str__(self) -> str:
        if math.isnan(self.relative):
            return "error undefined, as some values are not finite"
        explained = "undefined, as exact values do not vary" if math.isnan(self.explained) else f"{self.explained:.1%}"
        return (
            f"relative error {self.relative:.3f} (worst query {self.worst:.2f}), cosine {self.cosine:.3f}, "
            f"variance explained {explained}"
        )


@torch.no_grad()
def error_against_exact(
    approximate: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: MaskLike | None = None,
    **arguments: Any,
) -> Error:
    """How far `approximate(query, key, value)` is from `attend(query, key, value, mask=mask, **arguments)`, over the queries
    that see something: whose exact value is not 0. arguments: of `attend`, such as scale, score or normalizer."""
    if not callable(approximate):
        raise SoftlookupError(f"approximate: expected a function of query, key and value, got {describe(approximate)}")
    if arguments.get("stats") is not None:
        raise SoftlookupError(f"error_against_exact: expected values alone, got stats={arguments['stats']!r}")
    exact = attend(query, key, value, mask=mask, **arguments)
    got = approximate(query, key, value)
    if not isinstance(got, Tensor) or got.shape != exact.shape:
        raise SoftlookupError(f"approximate: expected a tensor of shape {tuple(exact.shape)}, got {describe(got)}")
    rounding = 16 * torch.finfo(exact.dtype).eps
    exact, got = exact.double(), got.double()
    seen = (exact != 0).any(-1)
    if not seen.any():
        raise SoftlookupError("error_against_exact: expected a query whose exact value is not 0, got none")
    largest = exact.abs().amax()  # squares of what is small or large leave the range of floats
    exact, got = exact / largest, got / largest
    mean = exact.sum(-2, keepdim=True) / seen.sum(-1).clamp(min=1)[..., None, None]
    spread, got, exact = (exact - mean)[seen].square().sum(), got[seen], exact[seen]
    off, size = got - exact, exact.norm(dim=-1)
    varies = spread > (rounding * exact.norm()) ** 2
    return Error(
        relative=float(off.norm() / exact.norm()),
        worst=float((off.norm(dim=-1) / size).max()),
        cosine=float((_direction(got) * _direction(exact)).sum(-1).mean()),
        explained=float(1 - off.square().sum() / spread) if varies else math.nan,
    )


def _direction(x: Tensor) -> Tensor:
    """Rows of length 1, however short they were; 0 for 0."""
    largest = x.abs().amax(-1, keepdim=True)
    return unit(x / largest.where(largest != 0, 1))
