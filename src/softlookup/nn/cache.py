"""Keys and values of the tokens so far, so that a decoding step projects only its own."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Keys and values (B, Hkv, S, E) of one attention module. Empty at first; `add` appends along S.

    Self-attention adds every step's own; cross-attention adds those of the context once and asks them again. `take` picks
    batch entries, as a beam search does."""

    def __init__(self, key: Tensor | None = None, value: Tensor | None = None):
        self.key, self.value = key, value

    def __len__(self) -> int:
        """The number of tokens kept."""
        return 0 if self.key is None else self.key.shape[-2]

    def add(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, these included."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat([self.key, key], -2), torch.cat([self.value, value], -2)
        self.key, self.value = key, value
        return key, value

    def take(self, entries: Tensor) -> Cache:
        """The cache of these batch entries (n,), in this order."""
        if self.key is None or self.value is None:
            return Cache()
        return Cache(self.key[entries], self.value[entries])
