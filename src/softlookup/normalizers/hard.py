"""Retrieval of one row that can be learned."""

from __future__ import annotations

from torch import Tensor

from ..errors import SoftlookupError
from .base import Normalizer


class Hard(Normalizer):
    """The value of the highest-scoring visible key (ties in equal shares), with the gradient that softmax(s / temperature)
    would have: straight-through (Bengio, Leonard & Courville 2013).

    Statistics are those of that softmax. Without a gradient of its own, `Softmax(temperature=0)` retrieves the same.
    """

    def __init__(self, temperature: float | Tensor = 1.0):
        self.temperature = temperature

    def check(self, batch: int, heads: int, queries: int) -> None:
        super().check(batch, heads, queries)
        if not isinstance(self.temperature, Tensor) and self.temperature == 0:
            raise SoftlookupError("temperature: expected that of the softmax which gives the gradient, > 0, got 0")
