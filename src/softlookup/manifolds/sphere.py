"""The sphere: points are directions, so that every vector but 0 is one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..scores import unit
from .base import Curved, norm2, root
from .guard import takes
from .series import arcsinc, sinc


class Sphere(Curved):
    """The sphere of radius 1 / sqrt(c), its origin the first axis. x: a vector in the point's direction, of any length.

    d(x, y) = a / sqrt(c), a the angle; from sin^2(a/2) = |u - v|^2 / (|u - v|^2 + |u + v|^2) with unit vectors u and v, or
    beyond a right angle from cos^2(a/2), so that no digits are lost anywhere. A vector of 0 is at a right angle to all others.
    The midpoint is the direction of the sum of unit vectors, of least sum w (1 - cos a).
    """

    def widths(self, coordinates: int) -> tuple[int, int]:
        return coordinates - 1, coordinates

    @takes("tangents")
    def point(self, v: Tensor) -> Tensor:
        u = self.c(v) * norm2(v)
        c = torch.as_tensor(self.c(v), dtype=v.dtype, device=v.device)
        return torch.cat([1 - u / 2 * sinc(u / 4).square(), c.sqrt() * v * sinc(u)], -1)

    @takes("points", "points")
    def squared(self, x: Tensor, y: Tensor) -> Tensor:
        u, v = unit(x), unit(y)
        apart, along = norm2(u - v), norm2(u + v)
        both = (apart + along).clamp(min=torch.finfo(u.dtype).tiny)
        near, far = apart / both, along / both
        angle = (math.pi - 2 * _arcsine(far)).square()
        return (torch.where(near <= 0.5, 4 * near * arcsinc(near.clamp(max=0.5)).square(), angle) / self.c(x)).squeeze(-1)

    @takes("points")
    def lift(self, x: Tensor) -> Tensor:
        return unit(x)

    @takes("sums")
    def project(self, sums: Tensor) -> Tensor:
        return unit(sums)

    def pull(self, squared: Tensor) -> Tensor:
        return 1 / sinc(self.c(squared) * squared)


def _arcsine(squared: Tensor) -> Tensor:
    """arcsin of the root of x <= 1/2."""
    squared = squared.clamp(max=0.5)
    return root(squared) * arcsinc(squared)
