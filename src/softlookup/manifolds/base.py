"""What a geometry is: points, squared distances that are smooth where points meet, and weighted sums that have a middle."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from numbers import Real
from typing import Self

import torch
from torch import Tensor

from ..errors import SoftlookupError, UnsupportedError, whole
from ..masks import describe
from ..scores import Product as ProductForm
from ..scores import single
from .guard import accept, insist, positive, takes, together


class Manifold:
    """A geometry. One of your own has `squared`, `lift` and `project`; `point` and `pull` where they are wanted.

    Points are (…, H, N, n), n their coordinates; d are the dimensions that they have, and m the coordinates of sums.
    """

    coordinates: int | None = None
    """n, where it is fixed."""
    trusted = False
    """Whether arguments of methods are known to be good."""

    def widths(self, coordinates: int) -> tuple[int, int]:
        """d and m of points with n coordinates."""
        return coordinates, coordinates + 1

    def point(self, v: Tensor) -> Tensor:
        """The point in direction and distance |v| from the origin, the exponential map there: (…, d) -> (…, n)."""
        raise self._without("point")

    def squared(self, x: Tensor, y: Tensor) -> Tensor:
        """d(x, y)^2, (…) of points (…, n) that broadcast, with a gradient where x = y too."""
        raise self._without("squared")

    def lift(self, x: Tensor) -> Tensor:
        """Coordinates (…, m) of points in which a weighted sum is a multiple of a point."""
        raise self._without("lift")

    def project(self, sums: Tensor) -> Tensor:
        """The point (…, n) that a weighted sum (…, m) is a multiple of; the origin (on a sphere 0) if it is of nothing."""
        raise self._without("project")

    def pull(self, squared: Tensor) -> Tensor:
        """How strongly, beside a point close by, one at this squared distance pulls a Fréchet mean in lifted coordinates."""
        raise self._without("pull")

    def _without(self, method: str) -> SoftlookupError:
        return UnsupportedError(f"{type(self).__name__}: expected a Manifold with {method}(), got none")

    @takes("points", "points")
    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """d(x, y), (…) of points (…, n) that broadcast. Its gradient is 0 where x = y."""
        return root(self.squared(x, y))

    def distances(self, x: Tensor, y: Tensor) -> Tensor:
        """All d(x_i, y_j): (…, H, M, N) of points (…, H, M, n) and (…, H, N, n)."""
        ready, (x, y), dtype = accept(self, {"x": x, "y": y}, ("points", "points"), 2)
        together({"x": x.shape[:-2], "y": y.shape[:-2]})
        return root(ready.all_squared(x, y)).to(dtype)

    def midpoint(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """The middle (…, H, M, n) of points (…, H, N, n) by weights (…, H, M, N) >= 0, all alike and M = 1 by default.

        Weights count beside each other: a common factor changes nothing.
        """
        ready, x, weights, dtype = self._weighted(x, weights)
        return ready._middle(x, weights).to(dtype)

    def frechet_mean(self, x: Tensor, weights: Tensor | None = None, steps: int = 100) -> Tensor:
        """The point of least sum_j w_j d(m, x_j)^2, arguments and result as of `midpoint`, all pairs in memory.

        The midpoint by weights w_j pull(d^2), again and again: where it stays, sum_j w_j log_m(x_j) = 0. In hyperbolic spaces
        each step is that of Lou et al. 2020 and lowers the sum; on a sphere points must not be far apart.
        """
        if whole("steps", steps) < 0:
            raise SoftlookupError(f"steps: expected at least 0, got {steps}")
        ready, x, weights, dtype = self._weighted(x, weights)
        return ready._frechet(x, weights, steps).to(dtype)

    def _weighted(self, x: Tensor, weights: Tensor | None) -> tuple[Self, Tensor, Tensor, torch.dtype]:
        ready, (x,), dtype = accept(self, {"x": x}, ("points",), 2)
        x = ready.wide(x)
        if weights is None:
            return ready, x, x.new_ones(1, x.shape[-2]), dtype
        good = isinstance(weights, Tensor) and weights.is_floating_point() and weights.ndim >= 2
        if not good or weights.shape[-1] != x.shape[-2]:
            raise SoftlookupError(f"weights: expected a tensor (…, M, {x.shape[-2]}), got {describe(weights)}")
        together({"x": x.shape[:-2], "weights": weights.shape[:-2]})
        found = weights.detach()  # a NaN passes, as it does among points
        weights = insist(weights, ~(found < 0), found, "weights: expected numbers >= 0, got {}")
        return ready, x, weights.to(x), dtype

    def _middle(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.project(weights @ self.lift(x))

    def _frechet(self, x: Tensor, weights: Tensor, steps: int) -> Tensor:
        mean = self._middle(x, weights)
        for _ in range(steps):
            mean = self._middle(x, weights * self.pull(self.all_squared(mean, x)))
        return mean

    def all_squared(self, x: Tensor, y: Tensor) -> Tensor:
        """All d(x_i, y_j)^2, from differences: no digits are lost where points meet."""
        per_head = self.with_tensors(c[..., None, None, None] if c.ndim == 1 else c[..., None] for c in self.tensors())
        return per_head.squared(x.unsqueeze(-2), y.unsqueeze(-3))

    def products(self, x: Tensor, y: Tensor) -> Tensor:
        """The same to the digits that coordinates in single precision have, by matrix products where that is possible."""
        return self.all_squared(x, y)

    def wide(self, x: Tensor) -> Tensor:
        """x in the precision that weighted sums need."""
        return single(x)

    def fit(self, x: Tensor, name: str, kind: str) -> None:
        """Raise unless x (…, H, N, ·) has the width of "points", "tangents" or "sums", and the heads of curvatures."""
        n = self.coordinates or 1
        d, m = self.widths(n)
        want = {"points": n, "tangents": max(d, 1), "sums": m}[kind]
        if x.shape[-1] < want or (self.coordinates and x.shape[-1] != want):
            least = "" if self.coordinates else "at least "
            raise SoftlookupError(f"{name}: expected {least}{want} coordinates of {kind}, got {x.shape[-1]}")
        for c in self.tensors():
            if c.ndim and (x.ndim < 3 or x.shape[-3] not in (1, len(c))):
                raise SoftlookupError(f"{name}: expected {len(c)} heads, one for each curvature, got {describe(x)}")

    def check(self, x: Tensor, name: str) -> Tensor:
        """x (…, Hkv, N, n), unless it cannot be points of this geometry; a NaN can."""
        return x

    def product(self, query: Tensor, key: Tensor, power: int) -> ProductForm | None:
        """-d^power as a product of (B, H, L, n) and (B, Hkv, S, n), if it is one that keeps its digits."""
        return None

    def tensors(self) -> list[Tensor]:
        """Curvatures that are tensors, in a fixed order."""
        return []

    def with_tensors(self, tensors: Iterator[Tensor]) -> Self:
        """The same geometry, trusted, with other curvatures in the order of `tensors()`."""
        return self

    def ready(self) -> Self:
        """The same, trusted: its curvatures are positive now."""
        return self.with_tensors(positive(c) for c in self.tensors())


class Curved(Manifold):
    """A geometry of constant curvature -c (on a sphere c). curvature: c > 0, a float or a tensor of shape () or (H,).

    One that is learned must stay positive, as exp or softplus are; every use checks it.
    """

    def __init__(self, curvature: float | Tensor = 1.0):
        of = type(self).__name__
        if isinstance(curvature, Tensor):
            if curvature.ndim > 1:
                raise SoftlookupError(f"{of}: expected a curvature of shape () or (H,), got {tuple(curvature.shape)}")
            if curvature.dtype == torch.bool or curvature.is_complex():
                raise SoftlookupError(f"{of}: expected a curvature of real numbers, got {describe(curvature)}")
            good = torch.compiler.is_compiling() or bool(((curvature > 0) & curvature.isfinite()).all())
        else:
            good = isinstance(curvature, Real) and not isinstance(curvature, bool) and 0 < curvature < math.inf
        if not good:
            raise SoftlookupError(f"{of}: expected a finite curvature > 0, got {curvature!r}".replace("\n", " "))
        self.curvature = curvature

    def c(self, like: Tensor) -> float | Tensor:
        """The curvature for points (…, H, N, n)."""
        c = self.curvature
        if not isinstance(c, Tensor):
            return c
        return (c[:, None, None] if c.ndim == 1 else c).to(like)

    def stretched(self, x: Tensor, least: float = 0.0) -> Tensor:
        """(…, H, N, 1) max(c, least) |x|^2 of points (…, Hkv, N, n), without a gradient and in the precision of sums."""
        square = norm2(self.wide(x))
        c = self.c(square)
        if isinstance(c, Tensor) and c.ndim:
            square = square.repeat_interleave(len(c) // square.shape[-3], -3)
        return ((c.clamp(min=least) if isinstance(c, Tensor) else max(c, least)) * square).detach()

    def tensors(self) -> list[Tensor]:
        return [self.curvature] if isinstance(self.curvature, Tensor) else []

    def with_tensors(self, tensors: Iterator[Tensor]) -> Self:
        other = copy(self)
        other.trusted = True
        if isinstance(self.curvature, Tensor):
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
