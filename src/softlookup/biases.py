"""What is added to a score because of where query and key stand: biases, with gradients for learned ones.

Each bias adds its block to the scores, and pulls the gradient of a block of scores back to its own tensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import SoftlookupError
from .masks import check_broadcast, hidden
from .tile import Tile


class Bias:
    """Base of all biases. `tensor` is the one tensor that the bias is made of (and that may be learned)."""

    tensor: Tensor

    def with_tensor(self, tensor: Tensor) -> Bias:
        """The same bias over another tensor (a detached or upcast one)."""
        raise NotImplementedError

    def block(self, tile: Tile) -> Tensor:
        """The bias at `tile`, broadcastable to (n, G, L', S')."""
        raise NotImplementedError

    def by_offset(self, offset: Tensor) -> Tensor | None:
        """(H, n) the bias at each i - j = `offset` (n,) where it depends on nothing else, differentiable; else None."""
        return None

    def pull(self, grad: Tensor, ds: Tensor, tile: Tile) -> None:
        """Add to `grad` (shaped as `tensor`) what the scores' gradient `ds` (n, G, L', S') gives it."""
        raise NotImplementedError

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        """Raise `SoftlookupError` if the bias does not fit."""


class DenseBias(Bias):
    """A float tensor broadcastable to (B, H, L, S). Entries that mean "hidden" add nothing: `masks.NotHidden` hides them."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def with_tensor(self, tensor: Tensor) -> DenseBias:
        return DenseBias(tensor)

    def block(self, tile: Tile) -> Tensor:
        block = tile.pick(self.tensor)
        return block.masked_fill(hidden(block), 0.0)

    def pull(self, grad: Tensor, ds: Tensor, tile: Tile) -> None:
        part = tile.region.cut(grad)
        part.add_(tile.unfold(ds).sum_to_size(part.shape))

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        check_broadcast("bias", self.tensor, (batch, heads, queries, keys))


class ALiBi(Bias):
    """Linear penalty on distance, bias_h(i, j) = -slope_h |i - j| (Press, Smith & Lewis 2022).

    slopes: (H,), one per query head; `ALiBi.slopes(H)` gives the paper's geometric sequence.
    """

    def __init__(self, slopes: Tensor):
        self.tensor = slopes

    @staticmethod
    def slopes(heads: int) -> Tensor:
        """The paper's slopes: 2^(-8/n), 2^(-16/n), ... for n a power of two, and its interleaved rule otherwise. (H,)"""
        n = 2 ** math.floor(math.log2(heads))
        first = [2 ** (-8 * (h + 1) / n) for h in range(n)]
        between = [2 ** (-4 * (h + 1) / n) for h in range(0, 2 * (heads - n), 2)]
        return torch.tensor(first + between)

    def with_tensor(self, tensor: Tensor) -> ALiBi:
        return ALiBi(tensor)

    def by_offset(self, offset: Tensor) -> Tensor:
        return -self.tensor[:, None] * offset.abs().to(self.tensor.dtype)

    def block(self, tile: Tile) -> Tensor:
        distance = (tile.i - tile.j).abs().to(self.tensor.dtype)
        return -self.tensor[tile.head] * distance

    def pull(self, grad: Tensor, ds: Tensor, tile: Tile) -> None:
        distance = (tile.i - tile.j).abs().to(ds.dtype)
        per_head = -(ds * distance).sum((2, 3))
        grad.index_add_(0, tile.head.expand(*ds.shape[:2], 1, 1).flatten(), per_head.flatten().to(grad.dtype))

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        if tuple(self.tensor.shape) != (heads,):
            raise SoftlookupError(f"ALiBi: expected slopes of shape ({heads},), got {tuple(self.tensor.shape)}")


class RelativeTable(Bias):
    """A learned bias per bucket of relative position, bias_h(i, j) = w[bucket(j - i), h] (Raffel et al. 2020, T5).

    w: (buckets, H), as T5 stores it. Half of the buckets (of each side, if `bidirectional`) are exact offsets; the
    others grow logarithmically up to `max_distance`, beyond which all positions share the last bucket.
    """

    def __init__(self, w: Tensor, *, bidirectional: bool = True, max_distance: int = 128):
        if w.ndim != 2:
            raise SoftlookupError(f"RelativeTable: expected w of shape (buckets, H), got {tuple(w.shape)}")
        self.tensor = w
        self.bidirectional = bidirectional
        self.max_distance = max_distance

    def with_tensor(self, tensor: Tensor) -> RelativeTable:
        return RelativeTable(tensor, bidirectional=self.bidirectional, max_distance=self.max_distance)

    def bucket(self, offset: Tensor) -> Tensor:
        """Bucket of each relative position `offset` = j - i (int64, any shape)."""
        buckets = self.tensor.shape[0]
        base = torch.zeros_like(offset)
        if self.bidirectional:
            buckets //= 2
            base = (offset > 0).long() * buckets
            n = offset.abs()
        else:
            n = (-offset).clamp(min=0)
        exact = buckets // 2
        ratio = torch.log(n.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
        return base + torch.where(n < exact, n, far)

    def by_offset(self, offset: Tensor) -> Tensor:
        return self.tensor[self.bucket(-offset)].mT

    def block(self, tile: Tile) -> Tensor:
        return self.tensor[self.bucket(tile.j - tile.i), tile.head]

    def pull(self, grad: Tensor, ds: Tensor, tile: Tile) -> None:
        where = (self.bucket(tile.j - tile.i).expand(ds.shape), tile.head.expand(ds.shape))
        grad.index_put_(where, ds.to(grad.dtype), accumulate=True)

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        if self.tensor.shape[1] != heads:
            raise SoftlookupError(f"RelativeTable: expected w of shape (buckets, {heads}), got {tuple(self.tensor.shape)}")
