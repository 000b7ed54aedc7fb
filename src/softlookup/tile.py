"""Where a block of scores lies in the whole n x m matrix of scores.

Masks, biases and dropout are functions of absolute places (batch entry, head, query position, key position), never of
a block's own coordinates; that is what makes any blocking, and any split over machines, equal the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tile:
    """Index tensors of a block of scores, broadcastable to the block's shape (n, G, L', S').

    region: the block's bounds as plain integers; positions: (L',) of its queries; group: G, query heads per key-value head.
    Index tensors are made when they are asked for: most blocks of most masks never need them.
    """

    region: Region
    positions: Tensor
    group: int

    @cached_property
    def batch(self) -> Tensor:
        """(n, 1, 1, 1) entries of the flattened batch."""
        r = self.region
        entries = torch.arange(r.b0, r.b1, device=self.positions.device)
        return entries.repeat_interleave((r.h1 - r.h0) // self.group)[:, None, None, None]

    @cached_property
    def head(self) -> Tensor:
        """(n, G, 1, 1) query heads."""
        r = self.region
        heads = torch.arange(r.h0, r.h1, device=self.positions.device).view(-1, self.group)
        return heads.repeat(r.b1 - r.b0, 1)[:, :, None, None]

    @property
    def i(self) -> Tensor:
        """(L', 1) query positions."""
        return self.positions[:, None]

    @cached_property
    def j(self) -> Tensor:
        """(1, S') key positions."""
        return torch.arange(self.region.j0, self.region.j1, device=self.positions.device)[None]

    @cached_property
    def rows(self) -> Tensor:
        """(L',) rows of the query tensor."""
        return torch.arange(self.region.row0, self.region.row1, device=self.positions.device)

    def entry_of(self, tensor: Tensor) -> Tensor:
        """(n, 1, 1, 1) indices into the first dimension of a tensor with an entry per batch entry, or one for all."""
        return self.batch if len(tensor) > 1 else torch.zeros_like(self.batch)

    def pick(self, tensor: Tensor) -> Tensor:
        """`region.cut`, folded to broadcast against the block's own shape (n, G, L', S')."""
        block = self.region.cut(tensor)
        if block.shape[:2] == (1, 1):
            return block
        r = self.region
        return block.expand(r.b1 - r.b0, r.h1 - r.h0, -1, -1).reshape(-1, self.group, *block.shape[2:])

    def unfold(self, block: Tensor) -> Tensor:
        """A block (n, G, L', S') as (batch entries, query heads, L', S')."""
        r = self.region
        return block.reshape(r.b1 - r.b0, r.h1 - r.h0, *block.shape[2:])


Bound = Any
"""An int, or a tensor of many."""


@dataclass(frozen=True)
class Region:
    """Half-open bounds of a block: batch entries, query heads, rows of the query tensor, query and key positions.

    Of many blocks at once rows and positions are tensors (`Mask.extent`).
    """

    b0: int
    b1: int
    h0: int
    h1: int
    row0: Bound
    row1: Bound
    i0: Bound
    i1: Bound
    j0: Bound
    j1: Bound

    def cut(self, tensor: Tensor) -> Tensor:
        """The block's part of a tensor broadcastable to (B, H, L, S): a view, dimensions of size 1 kept at 1."""
        tensor = tensor[(None,) * (4 - tensor.ndim)]
        for dim, lo, hi in ((0, self.b0, self.b1), (1, self.h0, self.h1), (2, self.row0, self.row1), (3, self.j0, self.j1)):
            if tensor.shape[dim] > 1:
                tensor = tensor.narrow(dim, lo, hi - lo)
        return tensor


@dataclass(frozen=True)
class Place:
    """The place of this part in the whole: positions of its queries, of its first key, and the number of keys in all.

    Query positions are right-aligned with the keys of the whole unless stated, so that the last query of a decoding
    step stands at the last key.
    """

    queries: int | Tensor
    key_offset: int
    total_keys: int

    def ends(self, length: int) -> tuple[int, int]:
        """The first and the last position where queries stand."""
        if isinstance(self.queries, Tensor):
            return int(self.queries.min()), int(self.queries.max())
        return self.queries, self.queries + length - 1

    def positions(self, length: int, device: torch.device) -> Tensor:
        """(L,) int64 positions of the query rows."""
        if isinstance(self.queries, Tensor):
            return self.queries.to(device)
        return torch.arange(self.queries, self.queries + length, device=device)
