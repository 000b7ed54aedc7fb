"""Masks of whole blocks: what sparse attention is made of, as engines skip blocks of which nothing is visible."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import torch
from torch import Tensor

from ..compiled import writable
from ..errors import SoftlookupError, at_least_one
from ..masks import Dense, Extent, Mask, content, describe, pick
from ..tile import Region, Tile

ROWS, KEYS = 192, 96
"""Queries and keys of a block by default: those of the CPU's kernels."""


class Blocks(Mask):
    """Queries in blocks of `rows` see keys in blocks of `keys`: which, says `live`, (…, L / rows, S / keys) rounded up.

    live: boolean, broadcastable to (B, H, …), True where visible. The last block of either may be shorter. Blocks of other
    sizes than the default, or no multiples of it, cost as much as the default ones that they touch.
    """

    def __init__(self, live: Tensor, rows: int = ROWS, keys: int = KEYS):
        at_least_one("Blocks", rows=rows, keys=keys)
        if not isinstance(live, Tensor) or live.dtype != torch.bool or not 2 <= live.ndim <= 4:
            got = describe(live)
            raise SoftlookupError(f"Blocks: expected a boolean tensor (…, blocks of queries, blocks of keys), got {got}")
        self.live, self.rows, self.keys = live, rows, keys

    def key(self) -> Hashable:
        return type(self), content(self.live), self.rows, self.keys

    def visible(self, tile: Tile) -> Tensor:
        at = self._in_blocks(tile.region)
        live = Tile(at, tile.positions, tile.group).pick(self.live)
        rows, keys = (x.to(live.device) for x in (tile.rows // self.rows - at.row0, tile.j[0] // self.keys - at.j0))
        return live[..., rows, :][..., keys].to(tile.i.device)

    def extent(self, region: Region) -> Extent:
        return Dense(self.live).extent(self._in_blocks(region))

    def _in_blocks(self, r: Region) -> Region:
        """The blocks that a region touches."""
        row0, row1, j0, j1 = r.row0 // self.rows, -(-r.row1 // self.rows), r.j0 // self.keys, -(-r.j1 // self.keys)
        return replace(r, row0=row0, row1=row1, j0=j0, j1=j1)

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        want = (batch, heads, -(-queries // self.rows), -(-keys // self.keys))
        got = tuple(self.live.shape)
        if queries != keys and self.rows == self.keys and got[-2] == got[-1] == want[3] != want[2]:
            raise SoftlookupError(f"Blocks: expected as many queries as keys, {keys}, as the pattern is square, got {queries}")
        if got[-2:] != want[2:] or any(g not in (1, w) for g, w in zip(got[-3::-1], want[1::-1], strict=False)):
            raise SoftlookupError(f"Blocks: expected {want} blocks, or a shape that broadcasts over batch and heads, got {got}")

    def differs_in_batch(self) -> bool:
        return self.live.ndim == 4 and self.live.shape[0] > 1

    def at_rows(self, rows: Tensor) -> Mask:
        return Blocks(self.live.index_select(-2, (rows // self.rows).to(self.live.device)), 1, self.keys)

    def at_heads(self, heads: Tensor) -> Mask | None:
        return Blocks(pick(self.live, -3, heads), self.rows, self.keys)


writable(Blocks, "live", "rows", "keys")
