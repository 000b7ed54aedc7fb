"""Patterns of blocks that do not depend on what they hold. Combine them with other masks: `sl.Causal() & big_bird(n)`."""

from __future__ import annotations

import torch

from ..engines.dropout import hashed
from ..errors import SoftlookupError, at_least_one
from ..problem import Dropout
from .blocks import ROWS, Blocks


def big_bird(
    length: int, *, window: int = 3, first: int = 1, random: int = 3, block: int = ROWS, heads: int = 1, seed: int = 0
) -> Blocks:
    """Each block of tokens sees the `window` blocks around its own and `random` others; all see the `first` blocks, which see
    all (Zaheer et al. 2020, BigBird, internal tokens). The number of pairs is linear in the length.

    length: tokens, as queries and as keys. window: odd. block: tokens per block. heads: random blocks are drawn for each.
    """
    at_least_one("big_bird", length=length, window=window, block=block, heads=heads)
    if window % 2 == 0 or not (isinstance(first, int) and isinstance(random, int) and min(first, random) >= 0):
        raise SoftlookupError(f"big_bird: expected an odd window and numbers of blocks >= 0, got {window}, {first}, {random}")
    if not isinstance(seed, int):
        raise SoftlookupError(f"big_bird: expected a whole number as seed, got {seed!r}")
    i, j = torch.meshgrid(*2 * [torch.arange(-(-length // block))], indexing="ij")
    live = ((i - j).abs() <= window // 2) | (i < first) | (j < first)
    draw = hashed(Dropout(0, seed), 0, torch.arange(heads)[:, None, None], i, j).masked_fill(live, -1)  # a graph can hold it
    some = draw.argsort(-1, descending=True)[..., :random]
    return Blocks(live | (torch.zeros_like(live).expand_as(draw).scatter(-1, some, True) & (draw >= 0)), block, block)


def strided(length: int, stride: int, *, window: int = 3, block: int = ROWS) -> Blocks:
    """Each block of tokens sees the `window` blocks around its own and every `stride`-th, counted from its own: with a stride
    of the root of their number two such layers connect all of them (Child et al. 2019, Sparse Transformers, there of tokens:
    `sl.Window(w) | sl.Dilated(s)` is that one, at the cost of all pairs).

    length: tokens, as queries and as keys. window: odd. block: tokens per block.
    """
    at_least_one("strided", length=length, stride=stride, window=window, block=block)
    if window % 2 == 0:
        raise SoftlookupError(f"strided: expected an odd window, got {window}")
    at = torch.arange(-(-length // block))
    far = (at[:, None] - at).abs()
    return Blocks((far <= window // 2) | (far % stride == 0), block, block)
