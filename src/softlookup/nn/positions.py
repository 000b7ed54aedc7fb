"""Where a token stands, told to queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import SoftlookupError


class RoPE(nn.Module):
    """Rotary positions: pairs of dimensions turn by an angle proportional to the position, so that q_i . k_j depends on i - j
    (Su et al. 2021, eq. 34; the two halves of a head are paired, as in GPT-NeoX).

    base: the wavelengths of the pairs go from 2 pi to 2 pi base.
    """

    def __init__(self, base: float = 10_000.0):
        super().__init__()
        if not base > 1:
            raise SoftlookupError(f"RoPE: expected a base above 1, got {base}")
        self.base = base

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """x (B, H, L, E), whose first token stands at `first` -> x rotated, same shape. E must be even."""
        length, width = x.shape[-2:]
        if width % 2:
            raise SoftlookupError(f"RoPE: expected heads of an even width, got {width}")
        rate = self.base ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
        angle = torch.arange(first, first + length, device=x.device, dtype=torch.float32)[:, None] * rate
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def sinusoids(length: int, width: int, first: int = 0) -> Tensor:
    """(length, width) sines and cosines of geometric wavelengths, to be added to embeddings (Vaswani et al. 2017, sec. 3.5)."""
    rate = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angle = torch.arange(first, first + length, dtype=torch.float32)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1)[:, :width]
