"""What a mask leaves of a lookup, as the native kernels read it: for every panel of queries, the blocks of keys it sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..masks import Cover, Dense, Everything, Mask, is_relative, key_of
from ..problem import Problem
from ..tile import Region, Tile
from .library import KEYS, QUERIES
from .tiling import runs

AT_ONCE = 16
"""Blocks that a mask is asked for its pairs of in one go, where asking block by block would mostly be Python."""


@dataclass(frozen=True, eq=False)
class BlockLists:
    """pattern: (B * H,) which lists a head follows; start: (patterns * panels + 1,) where a panel's entries begin;
    block, bits_of: entries; bits: (K, KEYS, QUERIES / 8) visible pairs of partly hidden blocks, lowest bit first."""

    pattern: np.ndarray
    start: np.ndarray
    block: np.ndarray
    bits_of: np.ndarray
    bits: np.ndarray


def block_lists(problem: Problem) -> BlockLists:
    """The lists of a problem whose queries stand at consecutive positions."""
    return _kept(problem, _lists)


def written_out(problem: Problem) -> Problem:
    """The problem with its mask as a tensor and its queries counted from 0, wherever they stand."""
    batch, heads, length, _ = problem.query.shape
    keys, positions = problem.key.shape[2], problem.place.positions(length, problem.query.device)
    place = replace(problem.place, queries=0, total_keys=keys)
    if isinstance(problem.mask, Everything):
        return replace(problem, place=place)
    region = Region(0, batch, 0, heads, 0, length, int(positions.min()), int(positions.max()) + 1, 0, keys)
    seen = problem.mask.visible(Tile(region, positions, heads))
    mask = Dense(seen[(None,) * (4 - seen.ndim)].expand(-1, -1, length, keys))
    return replace(problem, mask=mask, place=place)


_KEPT: dict[tuple, Any] = {}
_MOST_KEPT = 64
_Found = TypeVar("_Found")


def _kept(problem: Problem, find: Callable[[_Question], _Found]) -> _Found:
    """What `find` finds about the problem's mask; of masks with a key it is kept."""
    batch, heads, length, _ = problem.query.shape
    first, what = problem.place.queries, key_of(problem.mask)
    assert isinstance(first, int)
    ask = _Question(problem.mask, batch, heads, length, problem.key.shape[2], first, problem.place.key_offset)
    if what is None:
        return find(ask)
    place = first - ask.key_offset if is_relative(problem.mask) else (first, ask.key_offset)
    key = find, what, batch, heads, length, ask.keys, place
    try:
        return _KEPT[key]
    except KeyError:
        found = find(ask)
    if len(_KEPT) >= _MOST_KEPT:
        _KEPT.clear()
    _KEPT[key] = found
    return found


@dataclass(frozen=True, eq=False)
class _Question:
    """A mask, and everything else that the lists depend on."""

    mask: Mask
    batch: int
    heads: int
    length: int
    keys: int
    first: int
    key_offset: int


def _lists(ask: _Question) -> BlockLists:
    batch, heads, panels = ask.batch, ask.heads, -(-ask.length // QUERIES)
    if isinstance(ask.mask, Everything):
        blocks = np.arange(-(-ask.keys // KEYS), dtype=np.int32)
        start = np.arange(panels + 1, dtype=np.int64) * len(blocks)
        block = np.tile(blocks, panels)
        return BlockLists(np.zeros(batch * heads, np.int32), start, block, np.full_like(block, -1), np.zeros(1, np.uint8))
    if panels == 1 and ask.keys <= KEYS:
        return _short(ask)
    walk = _Walk(ask)
    by_batch, by_head = walk.varies()
    one_by_one = np.arange(batch * heads).reshape(batch, heads)
    per_batch = one_by_one // heads if by_batch > 1 else np.zeros_like(one_by_one)
    pattern = per_batch * by_head + (one_by_one % heads if by_head > 1 else 0)
    found = [some for b in range(by_batch) for h in range(by_head) for some in walk.entries(b, h)]
    counts, block, bits_of = (np.concatenate(x) for x in zip(*found, strict=True))
    return BlockLists(
        pattern.reshape(-1).astype(np.int32),
        np.concatenate([[0], counts.cumsum()]).astype(np.int64),
        block.astype(np.int32),
        bits_of,
        np.stack(walk.bits) if walk.bits else np.zeros(1, np.uint8),
    )


def _short(ask: _Question) -> BlockLists:
    """Of many sequences that fit one panel and one block of keys, as words do: the mask is asked once about all."""
    seen = _seen(ask).expand(-1, -1, ask.length, -1)
    every = seen.reshape(-1, ask.length, ask.keys).numpy()
    kinds: dict[bytes, int] = {}
    which = np.array([kinds.setdefault(each.tobytes(), len(kinds)) for each in every], np.int32)
    start, bits_of = [0], list[int]()
    bits: list[np.ndarray] = []
    for kind in kinds:
        pairs = np.frombuffer(kind, bool).reshape(ask.length, ask.keys)
        if pairs.any():
            bits_of.append(-1 if pairs.all() else len(bits))
        if pairs.any() and not pairs.all():
            block = np.zeros((KEYS, QUERIES), bool)
            block[: ask.keys, : ask.length] = pairs.T
            bits.append(np.packbits(block, axis=1, bitorder="little"))
        start.append(len(bits_of))
    return BlockLists(
        np.ascontiguousarray(np.broadcast_to(which.reshape(seen.shape[:2]), (ask.batch, ask.heads)).reshape(-1)),
        np.array(start, np.int64),
        np.zeros(len(bits_of), np.int32),
        np.array(bits_of, np.int32),
        np.stack(bits) if bits else np.zeros(1, np.uint8),
    )


def all_pairs(problem: Problem) -> Tensor | None:
    """Bytes (B, H, L, S), 1 where visible, expanded where alike, with unit stride along the keys; None where all are visible.

    For few queries only."""
    return _kept(problem, _all_pairs)


def _all_pairs(ask: _Question) -> Tensor | None:
    if ask.mask.cover(_whole(ask)) is Cover.FULL:
        return None
    return _seen(ask).contiguous().view(torch.uint8).expand(ask.batch, ask.heads, ask.length, -1)


def _seen(ask: _Question) -> Tensor:
    """What is visible, asked once about all: (B, H, L, S), where dimensions along which all is alike may be 1, but the last."""
    positions = torch.arange(ask.first, ask.first + ask.length)
    seen = ask.mask.visible(Tile(_whole(ask), positions, ask.heads))
    return seen[(None,) * (4 - seen.ndim)].expand(-1, -1, -1, ask.keys).cpu()


def _whole(ask: _Question) -> Region:
    last, keys = ask.first + ask.length, ask.key_offset + ask.keys
    return Region(0, ask.batch, 0, ask.heads, 0, ask.length, ask.first, last, ask.key_offset, keys)


FULL, PARTIAL, HIDDEN = -1, -2, -3
PANELS = 64
"""Panels whose blocks a mask is asked about at once."""


class _Walk:
    """Asks the mask about many blocks at once, and for the pairs of those that it leaves in part."""

    def __init__(self, ask: _Question):
        self.mask, self.batch, self.heads, self.length = ask.mask, ask.batch, ask.heads, ask.length
        self.keys, self.key_offset, self.first = ask.keys, ask.key_offset, ask.first
        self.positions = torch.arange(self.first, self.first + self.length)
        self.alike = is_relative(self.mask)
        self.known: dict[tuple[int, int, int], list[int]] = {}
        self.bits: list[np.ndarray] = []

    def varies(self) -> tuple[int, int]:
        """How many batch entries and heads have to be asked one by one: their number, or 1 where they are alike."""
        all_heads = Region(0, self.batch, 0, self.heads, 0, 1, self.first, self.first + 1, self.key_offset, self.key_offset + 1)
        seen = self.mask.visible(Tile(all_heads, self.positions[:1], self.heads))
        shape = (1,) * (4 - seen.ndim) + tuple(seen.shape)
        return shape[0], shape[1]

    def entries(self, b: int, h: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For some panels after the other: how many blocks each sees anything of, these blocks, and the index of the bits of
        each, FULL where all of it is visible."""
        for first in range(0, self.length, PANELS * QUERIES):
            row0 = torch.arange(first, min(first + PANELS * QUERIES, self.length), QUERIES)[:, None]
            row1 = (row0 + QUERIES).clamp(max=self.length)
            lo, hi = self.mask.span(self.first + int(row0[0]), self.first + int(row1[-1]))
            block0 = int(max(lo - self.key_offset, 0)) // KEYS
            key0 = torch.arange(block0 * KEYS, max(block0 * KEYS, int(min(hi - self.key_offset, self.keys))), KEYS)
            if not len(key0):
                none = np.zeros(0, np.int32)
                yield np.zeros(len(row0), np.int64), none, none
                continue
            key1 = (key0 + KEYS).clamp(max=self.keys)
            i0, i1, j0, j1 = self.first + row0, self.first + row1, self.key_offset + key0[None], self.key_offset + key1[None]
            out = self._looked_at(Region(b, b + 1, h, h + 1, row0, row1, i0, i1, j0, j1))
            panel, block = (out != HIDDEN).nonzero()
            yield np.bincount(panel, minlength=len(out)), block0 + block, out[panel, block]

    def _looked_at(self, grid: Region) -> np.ndarray:
        """(panels, blocks) int32: the index of the block's bits, FULL where all is visible, HIDDEN where nothing is."""
        some, every = (torch.as_tensor(x).expand(len(grid.i0), grid.j0.shape[1]) for x in self.mask.extent(grid))
        out = torch.where(some, torch.where(every, FULL, PARTIAL), HIDDEN).to(torch.int32).numpy()
        rows0, rows1, keys0, keys1 = (x.flatten().tolist() for x in (grid.row0, grid.row1, grid.j0, grid.j1))
        for panel, blocks in enumerate(out):
            for run in runs((blocks == PARTIAL).nonzero()[0], 1 if self.alike else AT_ONCE):
                rows, columns = (rows0[panel], rows1[panel]), (keys0[run[0]], keys1[run[-1]])
                kind = rows[0] + self.first - columns[0], rows[1] - rows[0], columns[1] - columns[0]
                found = self.known.get(kind) if self.alike else None  # blocks along a diagonal share theirs
                if found is None:
                    places = *rows, self.first + rows[0], self.first + rows[1], *columns
                    found = self.known[kind] = self._look(Region(grid.b0, grid.b1, grid.h0, grid.h1, *places))
                blocks[run] = found
        return out

    def _look(self, region: Region) -> list[int]:
        """For each block of a region the index of its bits, FULL or HIDDEN."""
        size = region.row1 - region.row0, region.j1 - region.j0
        seen = self.mask.visible(Tile(region, self.positions[region.row0 : region.row1], 1))
        seen = seen[(None,) * (4 - seen.ndim)][0, 0].expand(size).cpu()
        count = -(-size[1] // KEYS)
        full = np.zeros((count * KEYS, QUERIES), bool)
        full[: size[1], : size[0]] = seen.numpy().T
        blocks = full.reshape(count, KEYS, QUERIES)
        pairs = np.minimum(KEYS, size[1] - KEYS * np.arange(count)) * size[0]
        visible = blocks.sum((1, 2), dtype=np.int64)
        found = []
        for block, some, every in zip(blocks, visible, pairs, strict=True):
            found.append(HIDDEN if some == 0 else FULL if some == every else len(self.bits))
            if 0 < some < every:
                self.bits.append(np.packbits(block, axis=1, bitorder="little"))
        return found
