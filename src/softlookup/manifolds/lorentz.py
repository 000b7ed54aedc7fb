"""Hyperbolic space as a hyperboloid, on which points are known by their coordinates in space: no vector is off it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..scores import Hyperbolic
from ..scores import Product as ProductForm
from .base import Curved, norm2
from .guard import insist, takes
from .series import arsinhc, sinhc

NEAR = 2.0
"""Times of queries up to which products in single precision have distances to 1e-3."""


def most(dtype: torch.dtype) -> float:
    """Lengths up to which no product of two coordinates overflows."""
    return float(0.1 * torch.finfo(dtype).max ** 0.5)


class Lorentz(Curved):
    """The hyperboloid <x, x>_L = -1/c. x: coordinates in space; that in time is t / sqrt(c) with t = sqrt(1 + c |x|^2).

    d(x, y) = 2 arsinh(sqrt(c) w / 2) / sqrt(c), w^2 = <x - y, x - y>_L the squared chord. The midpoint is the centroid
    m / (sqrt(c) |m|_L), m = sum w (x, t / sqrt(c)) (Law et al. 2019), in Klein coordinates Einstein's (Gulcehre et al. 2019),
    of least sum w (cosh(sqrt(c) d) - 1).

    The chord is computed as that of the Poincaré ball, stretched, p = x / (1 + t):

        w^2 = (1 + t_x) (1 + t_y) |p_x - p_y|^2,   (1 + t_x) (p_x - p_y) = x - y - p_y (t_x - t_y)

    with the difference of times from that of points, and for y the one that is nearer to the origin: no digits are lost where
    points are near or c is small; where they are far from the origin as many as in writing them down, a relative rounding of t.

    Products of coordinates end the space: for c >= 1 `point` goes no further than 42 / sqrt(c) from the origin in single
    precision, 352 / sqrt(c) in double. Finite vectors with |x| or sqrt(c) |x| above 1.8e18 or 1.3e153 are refused, also where a
    mask hides them.
    """

    @takes("tangents")
    def point(self, v: Tensor) -> Tensor:
        c = self.c(v)
        border = (most(v.dtype) / 2 * torch.as_tensor(c, dtype=v.dtype).detach().sqrt().clamp(max=1)).asinh()
        v = v * (border / torch.maximum(self.stretched(v).sqrt(), border)).to(v)
        return v * sinhc(c * norm2(v))

    @takes("points", "points")
    def squared(self, x: Tensor, y: Tensor) -> Tensor:
        c = self.c(x)
        apart, t, u = x - y, self.time(x), self.time(y)
        later = c * (apart * (x + y)).sum(-1, keepdim=True) / (t + u)
        swap, ratio = t < u, (1 + u) / (1 + t)
        apart = apart - torch.where(swap, x / (1 + t), y / (1 + u)) * later
        chord = norm2(apart) * torch.where(swap, 1 / ratio, ratio)
        return (chord * arsinhc(c * chord / 4).square()).squeeze(-1)

    def products(self, x: Tensor, y: Tensor) -> Tensor:
        """By w^2 = a_x + a_y - 2 x . y + c/2 a_x a_y, a = 2 |x|^2 / (1 + t), in double precision, the rounding of whose root,
        1e-8 |x|, is less than that of coordinates in single precision."""
        if x.device.type == "mps":  # which has no double precision
            return self.all_squared(x, y)
        dtype = x.dtype
        x, y = self.space(x.double()), self.space(y.double())
        (t, u), c = (1 + self.time(z) for z in (x, y)), self.c(x)
        a, b, stretch = 2 * norm2(x) / t, 2 * norm2(y) / u, c**0.5 / 2
        left = torch.cat([-2 * x, 2 * stretch * a, a, torch.ones_like(a)], -1)
        right = torch.cat([y.expand(*b.shape[:-1], -1), stretch * b, torch.ones_like(b), b], -1)
        chord = (left @ right.mT).clamp(min=0).to(dtype)
        return chord * arsinhc(self.c(chord) * chord / 4).square()

    def check(self, x: Tensor, name: str) -> Tensor:
        fit = x.isfinite().all(-1, keepdim=True)  # what is not may pass, behind a mask
        far, end = self.stretched(x.where(fit, 0), least=1).sqrt(), f"{most(x.dtype):.2g} in {x.dtype}"
        message = f"{name}: expected points with |x| and sqrt(curvature) |x| up to {end}, got {{}}"
        return insist(x, far <= most(x.dtype), far, message)

    def space(self, x: Tensor) -> Tensor:
        """(…, n) the coordinates in space of points."""
        return x

    def time(self, x: Tensor) -> Tensor:
        """(…, 1) t = cosh of the distance from the origin, in units of the curvature's radius."""
        return (1 + self.c(x) * norm2(x)).sqrt()

    def widths(self, coordinates: int) -> tuple[int, int]:
        return coordinates, coordinates + 2

    @takes("points")
    def lift(self, x: Tensor) -> Tensor:
        """(x, t, 1), the last of which adds up to the weight."""
        t = self.time(x)
        return torch.cat([x, t, torch.ones_like(t)], -1)

    @takes("sums")
    def project(self, sums: Tensor) -> Tensor:
        return sums[..., :-2] / self.length(sums)

    def length(self, sums: Tensor) -> Tensor:
        """(…, 1) of what sum (…, m) is a multiple: sqrt(t^2 - c |x|^2); 1 if it is of nothing.

        It is at least the weight w, as |sum|^2 = w^2 + sum w_i w_j (cosh d_ij - 1), and just that where only rounding is left
        of the difference: so points that are one keep their digits however far away they are.
        """
        x, t, weight = sums[..., :-2], sums[..., -2:-1], sums[..., -1:]
        squared, least = t.square() - self.c(x) * norm2(x), weight.square()
        some = squared - least > 16 * torch.finfo(t.dtype).eps * t.square()
        return torch.where(some, torch.where(some, squared, 1).sqrt(), torch.where(weight == 0, 1, weight))

    def wide(self, x: Tensor) -> Tensor:
        return super().wide(x) if x.device.type == "mps" else x.double()

    def pull(self, squared: Tensor) -> Tensor:
        return 1 / sinhc(self.c(squared) * squared)

    def product(self, query: Tensor, key: Tensor, power: int) -> ProductForm | None:
        if isinstance(self.curvature, Tensor) or self.curvature != 1 or power != 1:
            return None
        # Keys may be hidden, and what they hold must not matter; beside a near query a far one loses no digits.
        if query.dtype == torch.float64 or self.time(query.detach()).max() > NEAR:
            return None
        return Hyperbolic().lower(Hyperbolic.lift(query), Hyperbolic.lift(key))
