"""Flat space: what the other geometries are for small figures, or as their curvature goes to 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..scores import Gaussian
from ..scores import Product as ProductForm
from .base import Manifold, norm2
from .guard import takes


class Euclidean(Manifold):
    """d(x, y) = |x - y|; the midpoint is the mean, sum w x / sum w."""

    @takes("tangents")
    def point(self, v: Tensor) -> Tensor:
        return v

    @takes("points", "points")
    def squared(self, x: Tensor, y: Tensor) -> Tensor:
        return norm2(x - y).squeeze(-1)

    @takes("points")
    def lift(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones_like(x[..., :1])], -1)

    @takes("sums")
    def project(self, sums: Tensor) -> Tensor:
        weight = sums[..., -1:]
        return sums[..., :-1] / torch.where(weight == 0, 1, weight)

    def pull(self, squared: Tensor) -> Tensor:
        return torch.ones_like(squared)

    def product(self, query: Tensor, key: Tensor, power: int) -> ProductForm | None:
        return Gaussian(math.sqrt(0.5)).lower(query, key) if power == 2 else None

    def __repr__(self) -> str:
        return "Euclidean()"
