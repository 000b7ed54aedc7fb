"""Weights that do not compete."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from ..errors import SoftlookupError
from .base import every_entry
from .threshold import Threshold


class Sigmoid(Threshold):
    """w_ij = 1 / (1 + exp(-(s_ij + bias))), each key for itself; they do not sum to 1 (Ramapuram et al. 2024).

    bias: a number, or a tensor () or (H,), which gets a gradient; by default minus the log of the number of visible keys, with
    which weights sum to about 1 where scores are near 0.
    """

    sums_to_one = False

    def __init__(self, bias: float | Tensor | None = None, temperature: float | Tensor = 1.0):
        super().__init__(temperature)
        self.bias = bias

    def check(self, batch: int, heads: int, queries: int) -> None:
        super().check(batch, heads, queries)
        if isinstance(self.bias, Tensor):
            every_entry("bias", self.bias)
        elif self.bias is not None and not (isinstance(self.bias, Real) and math.isfinite(self.bias)):
            raise SoftlookupError(f"bias: expected a finite number or a tensor of shape () or ({heads},), got {self.bias!r}")

    def parameters(self) -> tuple[Tensor, ...]:
        return (self.bias,) if isinstance(self.bias, Tensor) else ()

    def weight(self, x: Tensor, *bias: Tensor) -> Tensor:
        return torch.sigmoid(x + bias[0] if bias else x)

    def slope(self, x: Tensor, w: Tensor, *bias: Tensor) -> Tensor:
        return w * (1 - w)

    def edge(self, *bias: Tensor) -> float | Tensor:
        return -bias[0] if bias else 0

    def level(self, visible: Tensor) -> Tensor:
        if isinstance(self.bias, Tensor):
            return torch.zeros_like(visible)
        return visible.log() if self.bias is None else torch.full_like(visible, -float(self.bias))
