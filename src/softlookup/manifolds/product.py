"""Several geometries side by side, each with some of the coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import reduce
from typing import Self

import torch
from torch import Tensor

from ..errors import SoftlookupError, at_least_one
from .base import Manifold
from .guard import takes


class Product(Manifold):
    """d^2 = sum of the parts' d^2; points, midpoints and means are the parts' own (Gu et al. 2019).

    parts: pairs (manifold, how many coordinates it has), in the order of the coordinates.
    """

    def __init__(self, *parts: tuple[Manifold, int]):
        for pair in parts:
            if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], Manifold):
                raise SoftlookupError(f"Product: expected pairs of a Manifold and its number of coordinates, got {pair!r}")
            at_least_one("Product", coordinates=pair[1])
        at_least_one("Product", parts=len(parts))
        self.parts = tuple((part, n) for part, n in parts)
        self.coordinates = sum(n for _, n in parts)

    def widths(self, coordinates: int) -> tuple[int, int]:
        dimensions, sums = zip(*(part.widths(n) for part, n in self.parts), strict=True)
        return sum(dimensions), sum(sums)

    @takes("tangents")
    def point(self, v: Tensor) -> Tensor:
        pieces = v.split([part.widths(n)[0] for part, n in self.parts], -1)
        return torch.cat([part.point(a) for (part, _), a in zip(self.parts, pieces, strict=True)], -1)

    @takes("points", "points")
    def squared(self, x: Tensor, y: Tensor) -> Tensor:
        each = zip(self._split(x), self._split(y), strict=True)
        return torch.stack([part.squared(a, b) for (part, a), (_, b) in each]).sum(0)

    @takes("points")
    def lift(self, x: Tensor) -> Tensor:
        return torch.cat([part.lift(a) for part, a in self._split(x)], -1)

    @takes("sums")
    def project(self, sums: Tensor) -> Tensor:
        pieces = sums.split([part.widths(n)[1] for part, n in self.parts], -1)
        return torch.cat([part.project(a) for (part, _), a in zip(self.parts, pieces, strict=True)], -1)

    def _frechet(self, x: Tensor, weights: Tensor, steps: int) -> Tensor:
        return torch.cat([part._frechet(a, weights, steps) for part, a in self._split(x)], -1)

    def products(self, x: Tensor, y: Tensor) -> Tensor:
        each = zip(self._split(x), self._split(y), strict=True)
        return torch.stack([part.products(a, b) for (part, a), (_, b) in each]).sum(0)

    def wide(self, x: Tensor) -> Tensor:
        return x.to(reduce(torch.promote_types, (part.wide(a).dtype for part, a in self._split(x))))

    def check(self, x: Tensor, name: str) -> Tensor:
        if x.shape[-1] != self.coordinates:
            raise SoftlookupError(f"{name}: expected {self.coordinates} coordinates, those of all parts, got {x.shape[-1]}")
        return torch.cat([part.check(a, name) for part, a in self._split(x)], -1)

    def tensors(self) -> list[Tensor]:
        return [c for part, _ in self.parts for c in part.tensors()]

    def with_tensors(self, tensors: Iterator[Tensor]) -> Self:
        other = copy(self)
        other.trusted, other.parts = True, tuple((part.with_tensors(tensors), n) for part, n in self.parts)
        return other

    def _split(self, x: Tensor) -> list[tuple[Manifold, Tensor]]:
        pieces = x.split([n for _, n in self.parts], -1)
        return [(part, a) for (part, _), a in zip(self.parts, pieces, strict=True)]

    def __repr__(self) -> str:
        return f"Product({', '.join(map(str, self.parts))})"
