"""How scores become weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from .errors import SoftlookupError


@dataclass(frozen=True, eq=False)
class Softmax:
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
        t = self.temperature
        if isinstance(t, Tensor):
            fits = t.ndim == 0 or tuple(t.shape) == (heads,)
            if t.ndim == 3:
                fits = all(got in (1, want) for got, want in zip(t.shape, (batch, heads, queries), strict=True))
            if not fits:
                raise SoftlookupError(
                    f"temperature: expected shape (), ({heads},) or one that broadcasts to {(batch, heads, queries)}, "
                    f"got {tuple(t.shape)}"
                )
            good = (t > 0) & t.isfinite()
            if not bool(good.all()):
                got = float(t.detach()[~good][0])
                raise SoftlookupError(f"temperature: expected every entry of the tensor > 0 and finite, got {got}")
        elif not isinstance(t, Real) or not 0 <= t < math.inf:
            raise SoftlookupError(f"temperature: expected a finite number >= 0, got {t!r}")
        if not isinstance(self.sink, Real | Tensor | None):
            raise SoftlookupError(f"sink: expected a number or a tensor of shape ({heads},), got {self.sink!r}")
        if isinstance(self.sink, Tensor) and self.sink.ndim and tuple(self.sink.shape) != (heads,):
            raise SoftlookupError(f"sink: expected a number or a tensor of shape ({heads},), got {tuple(self.sink.shape)}")
        if self.sink is not None and not isinstance(t, Tensor) and t == 0:
            raise SoftlookupError("temperature: expected > 0 where there is a sink (hard retrieval has none), got 0")

    def per_row(self) -> float | Tensor:
        """The temperature as a float, or as a tensor broadcastable to (B, H, L, 1)."""
        t = self.temperature
        if not isinstance(t, Tensor):
            return float(t)
        return t[:, None, None] if t.ndim == 1 else t[..., None] if t.ndim == 3 else t.reshape(1, 1, 1, 1)

    def sink_logit(self, like: Tensor) -> Tensor | None:
        """The sink as a tensor broadcastable to (…, H, L), in the dtype and on the device of `like`."""
        if self.sink is None:
            return None
        sink = torch.as_tensor(self.sink, device=like.device).to(like.dtype)
        return sink[:, None] if sink.ndim else sink
