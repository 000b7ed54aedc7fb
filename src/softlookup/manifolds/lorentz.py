"""Hyperbolic space as a hyperboloid, on which points are known by their coordinates in space: no vector is off it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..scores import Hyperbolic
from ..scores import Product as ProductForm
from .base import Curved, norm2
from .series import arsinhc, sinhc


class Lorentz(Curved):
    """The hyperboloid <x, x>_L = -1/c. x: coordinates in space; that in time is t / sqrt(c) with t = sqrt(1 + c |x|^2).

    d(x, y) = 2 arsinh(sqrt(c) w / 2) / sqrt(c), w^2 = <x - y, x - y>_L the squared chord. The midpoint is the centroid
    m / (sqrt(c) |m|_L), m = sum w (x, t / sqrt(c)) (Law et al. 2019), in Klein coordinates Einstein's (Gulcehre et al. 2019),
    of least sum w (cosh(sqrt(c) d) - 1).

    The chord is computed as that of the Poincaré ball, stretched, p = x / (1 + t):

        w^2 = (1 + t_x) (1 + t_y) |p_x - p_y|^2,   (1 + t_x) (p_x - p_y) = x - y - p_y (t_x - t_y)

    with the difference of times from that of points: no digits are lost where points are near or c is small; where they are
    far from the origin as many as in writing them down, a relative rounding of t.
    """

    def point(self, v: Tensor) -> Tensor:
        return v * sinhc(self.c(v) * norm2(v))

    def squared(self, x: Tensor, y: Tensor) -> Tensor:
        c = self.c(x)
        apart, t, u = x - y, self.time(x), self.time(y)
        later = c * (apart * (x + y)).sum(-1, keepdim=True) / (t + u)
        chord = norm2(apart - y * (later / (1 + u))) * ((1 + u) / (1 + t))
        return (chord * arsinhc(c * chord / 4).square()).squeeze(-1)

    def time(self, x: Tensor) -> Tensor:
        """(…, 1) t = cosh of the distance from the origin, in units of the curvature's radius."""
        return (1 + self.c(x) * norm2(x)).sqrt()

    def lift(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.time(x)], -1)

    def project(self, sums: Tensor) -> Tensor:
        return sums[..., :-1] / self.length(sums)

    def length(self, sums: Tensor) -> Tensor:
        """(…, 1) of what sum (…, m) is a multiple: sqrt(t^2 - c |x|^2); 1 if it is of nothing.

        What rounding leaves of it far from the origin is at least that rounding."""
        x, t = sums[..., :-1], sums[..., -1:]
        least = torch.finfo(t.dtype).eps * t.square()
        return torch.where(t == 0, 1, (t.square() - self.c(x) * norm2(x)).maximum(least)).sqrt()

    def pull(self, squared: Tensor) -> Tensor:
        return 1 / sinhc(self.c(squared) * squared)

    def product(self, query: Tensor, key: Tensor, power: int) -> ProductForm | None:
        if isinstance(self.curvature, Tensor) or self.curvature != 1 or power != 1:
            return None
        return Hyperbolic().lower(Hyperbolic.lift(query), Hyperbolic.lift(key))
