"""The normalizer of nearly all attention: softmax."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from ..errors import SoftlookupError
from .base import Normalizer


@dataclass(frozen=True, eq=False)
class Softmax(Normalizer):
    """p_ij = exp(s_ij / temperature) / sum over visible keys (and the sink, if there is one).

    temperature: a float >= 0, or a tensor > 0 of shape (), (H,) or broadcastable (B, H, L), which gets a gradient.
        It divides the final score, biases included. 0 is hard retrieval: the value of the highest-scoring visible key,
        ties in equal shares; gradients then reach values only.
    sink: logit of an extra option whose value is 0, a float or a tensor of shape () or (H,), learned or fixed. 0.0 is
        "softmax off by one" (Miller 2023); GPT-OSS learns one per head. It is not divided by the temperature.
    """

    temperature: float | Tensor = 1.0
    sink: float | Tensor | None = None

    def check(self, batch: int, heads: int, queries: int) -> None:
        """Raise `SoftlookupError` if the temperature or the sink cannot be used for (B, H, L) rows."""
        super().check(batch, heads, queries)
        if not isinstance(self.sink, Real | Tensor | None):
            raise SoftlookupError(f"sink: expected a number or a tensor of shape ({heads},), got {self.sink!r}")
        if isinstance(self.sink, Tensor) and self.sink.ndim and tuple(self.sink.shape) != (heads,):
            raise SoftlookupError(f"sink: expected a number or a tensor of shape ({heads},), got {tuple(self.sink.shape)}")
        if self.sink is not None and not isinstance(self.temperature, Tensor) and self.temperature == 0:
            raise SoftlookupError("temperature: expected > 0 where there is a sink (hard retrieval has none), got 0")

    def sink_logit(self, like: Tensor) -> Tensor | None:
        """The sink as a tensor broadcastable to (…, H, L), in the dtype and on the device of `like`."""
        if self.sink is None:
            return None
        sink = torch.as_tensor(self.sink, device=like.device).to(like.dtype)
        return sink[:, None] if sink.ndim else sink
