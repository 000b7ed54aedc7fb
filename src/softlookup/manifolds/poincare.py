"""Hyperbolic space as a ball: angles are those of flat space, and its border is infinitely far away."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import norm2
from .guard import insist, takes
from .lorentz import Lorentz
from .series import arsinhc


class Poincare(Lorentz):
    """The ball sqrt(c) |p| < 1. p = x / (1 + t) of the hyperboloid's x and t, so that both have the same distances

        d(p, q) = 2 arsinh(sqrt(c) w / 2) / sqrt(c),   w = 2 |p - q| / sqrt((1 - c |p|^2) (1 - c |q|^2))

    (Nickel & Kiela 2017, eq. 1), 2 |p - q| for small c; and, lifted, the same coordinates: `project` of what the other has
    lifted is the map between them. The border takes digits: in single precision distances from the origin end at 16 / sqrt(c),
    those of `point` and of midpoints at about half of it. Finite vectors that are outside of the ball are refused, also where a
    mask hides them.
    """

    @takes("tangents")
    def point(self, v: Tensor) -> Tensor:
        return self.project(Lorentz.lift(self, super().point(v)))

    @takes("points", "points")
    def squared(self, x: Tensor, y: Tensor) -> Tensor:
        c = self.c(x)
        chord = 4 * norm2(x - y) / ((1 - c * norm2(x)) * (1 - c * norm2(y)))
        return (chord * arsinhc(c * chord / 4).square()).squeeze(-1)

    def space(self, x: Tensor) -> Tensor:
        return 2 * x / (1 - self.c(x) * norm2(x))

    @takes("points")
    def lift(self, x: Tensor) -> Tensor:
        square = self.c(x) * norm2(x)
        return torch.cat([2 * x, 1 + square, 1 - square], -1) / (1 - square)

    @takes("sums")
    def project(self, sums: Tensor) -> Tensor:
        x = sums[..., :-2] / (self.length(sums) + sums[..., -2:-1])
        inside = 1 - 4 * torch.finfo(x.dtype).eps
        return x * (inside / (self.c(x) * norm2(x)).detach().sqrt().clamp(min=inside))

    def check(self, x: Tensor, name: str) -> Tensor:
        square = self.stretched(x)
        return insist(
            x, ~(square >= 1), square.sqrt(), f"{name}: expected points in the ball, sqrt(curvature) |x| < 1, got {{}}"
        )

    def product(self, query: Tensor, key: Tensor, power: int) -> None:
        return None
