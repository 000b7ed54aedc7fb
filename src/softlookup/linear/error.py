"""What an approximation of softmax attention costs on one's own queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..operator import attend
from ..running import MaskLike


@dataclass(frozen=True)
class Error:
    """relative: |approximate - exact| over |exact|, norms of all values together. worst: the same of the worst query.
    cosine: mean cosine of a query's two values. explained: share of the variance of exact values over queries that is there."""

    relative: float
    worst: float
    cosine: float
    explained: float

    def __str__(self) -> str:
        return (
            f"relative error {self.relative:.3f} (worst query {self.worst:.2f}), cosine {self.cosine:.3f}, "
            f"variance explained {self.explained:.1%}"
        )


@torch.no_grad()
def error_against_exact(
    approximate: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: MaskLike | None = None,
) -> Error:
    """How far `approximate(query, key, value)` is from `attend(query, key, value, mask=mask)`."""
    exact = attend(query, key, value, mask=mask).double()
    off = approximate(query, key, value).double() - exact
    size = exact.norm(dim=-1)
    spread = (exact - exact.mean(-2, keepdim=True)).square().sum()
    return Error(
        relative=float(off.norm() / exact.norm()),
        worst=float((off.norm(dim=-1) / size.clamp(min=torch.finfo(torch.float64).tiny)).max()),
        cosine=float(torch.cosine_similarity(exact + off, exact, -1).mean()),
        explained=float(1 - off.square().sum() / spread),
    )
