"""Scores by distance: near is relevant."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..problem import per_head
from ..scores import Form, Pairwise, Score, same_width, single
from .base import Manifold, root


class Distance(Score):
    """s = -d(q, k)^power of points of a manifold, power 1 (Gulcehre et al. 2019, whose beta is 1 / temperature) or 2.

    `Euclidean` with power 2 and `Lorentz` with a fixed curvature of 1 and power 1 become products, for the native engine: the
    first as exact as differences, the second where points nearly meet only to the root of the rounding, as `Hyperbolic`. All
    others run in the streaming engine and keep their digits everywhere. Curvatures that are tensors get gradients.
    """

    takes_scale = False

    def __init__(self, manifold: Manifold, power: int = 1):
        if not isinstance(manifold, Manifold):
            raise SoftlookupError(f"manifold: expected a Manifold, such as Lorentz(), got {manifold!r}")
        if power not in (1, 2):
            raise SoftlookupError(f"power: expected 1 or 2, got {power}")
        self.manifold, self.power = manifold, power

    def lower(self, query: Tensor, key: Tensor) -> Form:
        same_width(self, query, key)
        query, key = single(query), single(key)
        heads = query.shape[1]
        curvatures = [per_head(c, "curvature", heads, query)[..., None] for c in self.manifold.tensors()]
        self.manifold.check(query, "query")
        self.manifold.check(key, "key")
        product = self.manifold.product(query, key, self.power)
        if product is not None:
            return product
        # A block does not know its heads; its queries bring their curvatures along.
        columns = [c.expand(*query.shape[:3], 1) for c in curvatures]
        return Pairwise(torch.cat([query, *columns], -1), key, self)

    def block(self, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
        q, *curvatures = q.unsqueeze(-2).split([k.shape[-1], *[1] * len(self.manifold.tensors())], -1)
        # A query that is not finite comes as zeros, with a curvature of 0: it must spoil no other's gradient.
        manifold = self.manifold.with_tensors(torch.where(c == 0, 1, c) for c in curvatures)
        squared = manifold.squared(q, k.unsqueeze(-3))
        return -squared if self.power == 2 else -root(squared)
