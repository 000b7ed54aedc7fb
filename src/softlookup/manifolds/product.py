"""Several geometries side by side, each with some of the coordinates."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import SoftlookupError, at_least_one
from .base import Manifold


class Product(Manifold):
    """d^2 = sum of the parts' d^2; points, midpoints and means are the parts' own (Gu et al. 2019).

    parts: pairs (manifold, how many coordinates it has), in the order of the coordinates.
    """

    def __init__(self, *parts: tuple[Manifold, int]):
        for part, coordinates in parts:
            if not isinstance(part, Manifold):
                raise SoftlookupError(f"Product: expected pairs of a Manifold and its number of coordinates, got {part!r}")
            at_least_one("Product", coordinates=coordinates)
        at_least_one("Product", parts=len(parts))
        self.parts = parts

    def widths(self, coordinates: int) -> tuple[int, int]:
        dimensions, sums = zip(*(part.widths(n) for part, n in self.parts), strict=True)
        return sum(dimensions), sum(sums)

    def point(self, v: Tensor) -> Tensor:
        pieces = v.split([part.widths(n)[0] for part, n in self.parts], -1)
        return torch.cat([part.point(a) for (part, _), a in zip(self.parts, pieces, strict=True)], -1)

    def squared(self, x: Tensor, y: Tensor) -> Tensor:
        each = zip(self._split(x), self._split(y), strict=True)
        return torch.stack([part.squared(a, b) for (part, a), (_, b) in each]).sum(0)

    def lift(self, x: Tensor) -> Tensor:
        return torch.cat([part.lift(a) for part, a in self._split(x)], -1)

    def project(self, sums: Tensor) -> Tensor:
        pieces = sums.split([part.widths(n)[1] for part, n in self.parts], -1)
        return torch.cat([part.project(a) for (part, _), a in zip(self.parts, pieces, strict=True)], -1)

    def frechet_mean(self, x: Tensor, weights: Tensor | None = None, steps: int = 100) -> Tensor:
        return torch.cat([part.frechet_mean(a, weights, steps) for part, a in self._split(x)], -1)

    def check(self, x: Tensor, name: str) -> None:
        if x.shape[-1] != (width := sum(n for _, n in self.parts)):
            raise SoftlookupError(f"{name}: expected {width} coordinates, those of all parts, got {x.shape[-1]}")
        for part, a in self._split(x):
            part.check(a, name)

    def tensors(self) -> list[Tensor]:
        return [c for part, _ in self.parts for c in part.tensors()]

    def with_tensors(self, tensors: Iterator[Tensor]) -> Manifold:
        return Product(*((part.with_tensors(tensors), n) for part, n in self.parts))

    def _split(self, x: Tensor) -> list[tuple[Manifold, Tensor]]:
        pieces = x.split([n for _, n in self.parts], -1)
        return [(part, a) for (part, _), a in zip(self.parts, pieces, strict=True)]

    def __repr__(self) -> str:
        return f"Product({', '.join(map(str, self.parts))})"
