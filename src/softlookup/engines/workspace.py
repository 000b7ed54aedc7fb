"""Memory for blocks that is used again and again."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Workspace:
    """Blocks that are overwritten again and again, one per name.

    A fresh block from the allocator costs more than what is computed in it: its pages have to be mapped and cleared.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self.flat: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialized block of this shape."""
        size = math.prod(shape)
        flat = self.flat.get(name)
        if flat is None or flat.numel() < size:
            flat = self.flat[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return flat[:size].view(shape)
