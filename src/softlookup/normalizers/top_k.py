"""A softmax over the best keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import at_least_one
from .threshold import Threshold


class TopK(Threshold):
    """Softmax over the k visible keys of highest score, 0 for all others (Gupta et al. 2021).

    Keys that score the same as the k-th are among them, so there may be more than k. k >= the number of keys is softmax.
    """

    def __init__(self, k: int, temperature: float | Tensor = 1.0):
        super().__init__(temperature)
        at_least_one("TopK", k=k)
        self.k = k

    def weight(self, x: Tensor, *none: Tensor) -> Tensor:
        return x.exp()

    def reach(self, w: Tensor, *none: Tensor) -> Tensor:
        return w.log()

    def slope(self, x: Tensor, w: Tensor, *none: Tensor) -> Tensor:
        return w

    def cut(self, s: Tensor) -> Tensor | None:
        if s.shape[-1] <= self.k:
            return None
        return torch.topk(s, self.k, sorted=False).values.amin(-1, keepdim=True)
