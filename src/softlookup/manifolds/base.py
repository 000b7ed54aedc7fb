"""What a geometry is: points, squared distances that are smooth where points meet, and weighted sums that have a middle."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..scores import Product as ProductForm


class Manifold:
    """A geometry. One of your own has `squared`, `lift` and `project`; `point` and `pull` where they are wanted.

    Points are (…, H, N, n), n their coordinates; d are the dimensions that they have, and m the coordinates of sums.
    """

    def widths(self, coordinates: int) -> tuple[int, int]:
        """d and m of points with n coordinates."""
        return coordinates, coordinates + 1

    def point(self, v: Tensor) -> Tensor:
        """The point in direction and distance |v| from the origin, the exponential map there: (…, d) -> (…, n)."""
        raise NotImplementedError

    def squared(self, x: Tensor, y: Tensor) -> Tensor:
        """d(x, y)^2, (…) of points (…, n) that broadcast, with a gradient where x = y too."""
        raise NotImplementedError

    def lift(self, x: Tensor) -> Tensor:
        """Coordinates (…, m) of points in which a weighted sum is a multiple of a point."""
        raise NotImplementedError

    def project(self, sums: Tensor) -> Tensor:
        """The point (…, n) that a weighted sum (…, m) is a multiple of; the origin (on a sphere 0) if it is of nothing."""
        raise NotImplementedError

    def pull(self, squared: Tensor) -> Tensor:
        """How strongly, beside a point close by, one at this squared distance pulls a Fréchet mean in lifted coordinates."""
        raise NotImplementedError

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """d(x, y), (…) of points (…, n) that broadcast. Its gradient is 0 where x = y."""
        return root(self.squared(x, y))

    def distances(self, x: Tensor, y: Tensor) -> Tensor:
        """All d(x_i, y_j): (…, H, M, N) of points (…, H, M, n) and (…, H, N, n)."""
        return root(self._all_squared(x, y))

    def midpoint(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """The middle (…, H, M, n) of points (…, H, N, n) by weights (…, H, M, N) >= 0, all alike and M = 1 by default.

        Weights count beside each other: a common factor changes nothing.
        """
        return self.project((_alike(x) if weights is None else weights) @ self.lift(x))

    def frechet_mean(self, x: Tensor, weights: Tensor | None = None, steps: int = 100) -> Tensor:
        """The point of least sum_j w_j d(m, x_j)^2, arguments and result as of `midpoint`, all pairs in memory.

        The midpoint by weights w_j pull(d^2), again and again: where it stays, sum_j w_j log_m(x_j) = 0. In hyperbolic spaces
        each step is that of Lou et al. 2020 and lowers the sum; on a sphere points must not be far apart.
        """
        weights = _alike(x) if weights is None else weights
        mean = self.midpoint(x, weights)
        for _ in range(steps):
            mean = self.midpoint(x, weights * self.pull(self._all_squared(mean, x)))
        return mean

    def _all_squared(self, x: Tensor, y: Tensor) -> Tensor:
        per_head = self.with_tensors(c[:, None, None, None] if c.ndim == 1 else c for c in self.tensors())
        return per_head.squared(x.unsqueeze(-2), y.unsqueeze(-3))

    def check(self, x: Tensor, name: str) -> None:
        """Raise unless x (…, Hkv, N, n) can be points of this geometry; a NaN can."""

    def product(self, query: Tensor, key: Tensor, power: int) -> ProductForm | None:
        """-d^power as a product of (B, H, L, n) and (B, Hkv, S, n), if it is one."""
        return None

    def tensors(self) -> list[Tensor]:
        """Curvatures that are tensors, in a fixed order."""
        return []

    def with_tensors(self, tensors: Iterator[Tensor]) -> Manifold:
        """The same geometry with other curvatures in the order of `tensors()`."""
        return self


class Curved(Manifold):
    """A geometry of constant curvature -c (on a sphere c). curvature: c > 0, a float or a tensor of shape () or (H,)."""

    def __init__(self, curvature: float | Tensor = 1.0):
        of = type(self).__name__
        if isinstance(curvature, Tensor):
            if curvature.ndim > 1:
                raise SoftlookupError(f"{of}: expected a curvature of shape () or (H,), got {tuple(curvature.shape)}")
            good = bool(((curvature > 0) & curvature.isfinite()).all())
        else:
            good = 0 < curvature < math.inf
        if not good:
            raise SoftlookupError(f"{of}: expected a finite curvature > 0, got {curvature}".replace("\n", " "))
        self.curvature = curvature

    def c(self, like: Tensor) -> float | Tensor:
        """The curvature for points (…, H, N, n)."""
        c = self.curvature
        if not isinstance(c, Tensor):
            return c
        return (c[:, None, None] if c.ndim == 1 else c).to(like)

    def tensors(self) -> list[Tensor]:
        return [self.curvature] if isinstance(self.curvature, Tensor) else []

    def with_tensors(self, tensors: Iterator[Tensor]) -> Manifold:
        if not isinstance(self.curvature, Tensor):
            return self
        other = copy(self)
        other.curvature = next(tensors)
        return other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.curvature})"


def norm2(x: Tensor) -> Tensor:
    """(…, 1) |x|^2."""
    return x.square().sum(-1, keepdim=True)


def root(squared: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    some = squared != 0
    return torch.where(some, torch.where(some, squared, 1).sqrt(), 0)


def _alike(x: Tensor) -> Tensor:
    return x.new_ones(1, x.shape[-2])
