"""Dropout of attention weights by place: the same weights are dropped in every engine, pass, blocking and split.

Whether w_ij is kept is a 32-bit hash of (seed, batch entry, head, i, j), mixed by the finalizer of Wellons' "lowbias32".
It is written in 64-bit integers cut to 32 bits, so that torch and C++ give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Dropout
from ..tile import Tile

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def mixed_seed(dropout: Dropout) -> Tensor:
    """The seed in 32 bits, int64 ()."""
    seed = torch.tensor(dropout.seed & 0x7FFFFFFFFFFFFFFF)
    return _mix((seed & _MASK) ^ _mix(((seed >> 32) + 0x9E3779B9) & _MASK))


def threshold(dropout: Dropout) -> int:
    """Weights are kept where their hash, below 2^32, is at least this."""
    return int(dropout.p * 2**32)


def hashed(dropout: Dropout, batch: Tensor | int, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """An int64 below 2^32 for each place, as if drawn."""
    row = mixed_seed(dropout).to(i.device)
    for place in (batch, head, i, j * 0x9E3779B1):
        row = _mix((row + place) & _MASK)
    return row


def kept(dropout: Dropout, tile: Tile) -> Tensor:
    """Boolean (n, G, L', S'), True where the weight is kept."""
    return hashed(dropout, tile.batch, tile.head, tile.i, tile.j) >= threshold(dropout)
