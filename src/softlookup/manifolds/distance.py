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

    `Euclidean` with power 2 and, in single precision, `Lorentz` with a fixed curvature of 1, power 1 and queries near the
    origin become products, for the native engine: the first as exact as differences, the second to 1e-3 where points nearly
    meet, as `Hyperbolic`. All others run in the streaming engine and keep the digits that coordinates have. Curvatures that
    are tensors get gradients.

    from_single: that points in double precision were in single, and have no more digits than that.
    """

    takes_scale = False

    def __init__(self, manifold: Manifold, power: int = 1, from_single: bool = False):
        if not isinstance(manifold, Manifold):
            raise SoftlookupError(f"manifold: expected a Manifold, such as Lorentz(), got {manifold!r}")
        if power not in (1, 2):
            raise SoftlookupError(f"power: expected 1 or 2, got {power!r}")
        self.manifold, self.power, self.from_single = manifold, power, from_single

    def lower(self, query: Tensor, key: Tensor) -> Form:
        same_width(self, query, key)
        query, key = single(query), single(key)
        heads = query.shape[1]
        manifold = self.manifold.ready()
        curvatures = [per_head(c, "curvature", heads, query)[..., None] for c in manifold.tensors()]
        query, key = manifold.check(query, "query"), manifold.check(key, "key")
        product = manifold.product(query, key, self.power)
        if product is not None:
            return product
        # A block does not know its heads; its queries bring their curvatures along.
        columns = [c.expand(*query.shape[:3], 1) for c in curvatures]
        return Pairwise(torch.cat([query, *columns], -1), key, self)

    def block(self, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
        q, *columns = q.split([k.shape[-1], *[1] * len(self.manifold.tensors())], -1)
        # A query that is not finite comes as zeros, with a curvature of 0: it must spoil no other's gradient.
        curvatures = (c.amax(-2, keepdim=True) for c in columns)
        manifold = self.manifold.with_tensors(torch.where(c == 0, 1, c) for c in curvatures)
        exact = q.dtype == torch.float64 and not self.from_single
        squared = manifold.all_squared(q, k) if exact else manifold.products(q, k)
        return -squared if self.power == 2 else -root(squared)
