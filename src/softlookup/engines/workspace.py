"""Memory for blocks that is used again and again."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Workspace:
    """Tensors that are overwritten again and again, one per name and shape.

    A fresh block from the allocator costs more than what is computed in it: its pages have to be mapped and cleared.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self.flat: dict[str, Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialized tensor of this shape; it shares memory with every other of this name."""
        view = self.views.get((name, shape))
        if view is None:
            size = math.prod(shape)
            flat = self.flat.get(name)
            if flat is None or flat.numel() < size:
                flat = self.flat[name] = torch.empty(size, dtype=self.dtype, device=self.device)
                self.views = {key: v for key, v in self.views.items() if key[0] != name}
            view = self.views[name, shape] = flat[:size].view(shape)
        return view
