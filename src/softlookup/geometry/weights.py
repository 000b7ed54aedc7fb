"""The projections of one attention layer, as they act on rows: all that its geometry is read from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import SoftlookupError


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """query (H, d, k), key (G, d, k), value (G, d, v), output (H, v, d), in float64; H is a multiple of G, and key-value head g
    serves the heads from g H / G on.

    torch's Linear stores transposes: `of_linear` cuts a layer's heads out of those. Biases move a query or a key by a constant
    and are not part of a subspace; gains of normalized queries and keys (QK-norm) multiply columns (`gained`).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor

    def __post_init__(self) -> None:
        heads, d, k = self.query.shape
        groups, v = len(self.key), self.value.shape[2]
        shapes = {"key": (groups, d, k), "value": (groups, d, v), "output": (heads, v, self.output.shape[2])}
        for name, want in shapes.items():
            if tuple(getattr(self, name).shape) != want:
                raise SoftlookupError(f"geometry: expected {name} of shape {want}, got {tuple(getattr(self, name).shape)}")
        if groups == 0 or heads % groups:
            raise SoftlookupError(f"geometry: expected heads to be a multiple of key-value heads, got {heads} and {groups}")
        for name in ("query", "key", "value", "output"):
            if not bool(getattr(self, name).isfinite().all()):
                raise SoftlookupError(f"geometry: expected finite weights, got others in {name}")

    @classmethod
    def of_linear(cls, query: Tensor, key: Tensor, value: Tensor, output: Tensor, head_width: int) -> LayerWeights:
        """Of the weights of four Linear layers: (H k, d), (G k, d), (G v, d) and (d', H v), upcast; k: head_width."""
        query, key, value, output = (x.detach().to(torch.float64).cpu() for x in (query, key, value, output))
        if query.shape[0] % head_width or key.shape[0] % head_width:
            raise SoftlookupError(
                f"geometry: expected rows in multiples of {head_width}, "
                f"got {query.shape[0]} of queries and {key.shape[0]} of keys"
            )
        heads, groups = query.shape[0] // head_width, key.shape[0] // head_width
        if value.shape[0] % groups or output.shape[1] % heads:
            raise SoftlookupError(
                f"geometry: expected values of {groups} heads and an output of {heads}, "
                f"got {value.shape[0]} and {output.shape[1]}"
            )
        return cls(
            query.unflatten(0, (heads, -1)).mT,
            key.unflatten(0, (groups, -1)).mT,
            value.unflatten(0, (groups, -1)).mT,
            output.mT.unflatten(0, (heads, -1)),
        )

    @property
    def heads(self) -> int:
        """H, of queries."""
        return len(self.query)

    def of_head(self, shared: Tensor) -> Tensor:
        """(G, …) -> (H, …), what each head uses of what heads share."""
        return shared.repeat_interleave(self.heads // len(shared), 0)

    def gained(self, query: Tensor, key: Tensor) -> LayerWeights:
        """With the gains (k,) of normalized queries and keys."""
        return replace(self, query=self.query * query.to(self.query), key=self.key * key.to(self.key))

    def at_distance(self, distance: float, frequencies: Tensor, interleaved: bool = False) -> LayerWeights:
        """As rotary positions have it for a key that many positions before its query: the first 2 F columns of queries are
        rotated, column f with f + F, or interleaved, 2 f with 2 f + 1, by distance times frequency f (Su et al. 2021)."""
        width, count = self.query.shape[2], len(frequencies)
        if 2 * count > width:
            raise SoftlookupError(f"geometry: expected at most {width // 2} frequencies, got {count}")
        columns = torch.arange(2 * count)
        first, second = (columns[::2], columns[1::2]) if interleaved else columns.chunk(2)
        cos, sin = (f(distance * frequencies.to(self.query)) for f in (torch.cos, torch.sin))
        a, b = self.query[..., first], self.query[..., second]
        query = self.query.clone()
        query[..., first], query[..., second] = a * cos - b * sin, a * sin + b * cos
        return replace(self, query=query)

    def seen_by(self, spread: Tensor) -> LayerWeights:
        """What reads is weighted by the covariance of real inputs (`spread_of`), so that directions that never occur do not
        count. The output is left as it is."""
        x = spread.to(self.query)
        return replace(self, query=x @ self.query, key=x @ self.key, value=x @ self.value)


def spread_of(inputs: Tensor) -> Tensor:
    """R (at most d rows, d) in float64 with R^T R the covariance C of inputs (n, d): R W has the products and the norms of
    C^1/2 W, and neither C nor its root is formed."""
    x = inputs.detach().to(torch.float64).cpu()
    x = (x - x.mean(0)) / len(x) ** 0.5
    return torch.linalg.qr(x).R if len(x) > x.shape[1] else x
