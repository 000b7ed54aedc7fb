"""Attention without all pairs as torch modules: multi-head projections around `attend` and around `recur`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, silu

from ..errors import SoftlookupError, at_least_one
from ..masks import describe
from .attention import State, advance, attend
from .delta import recur
from .features import EluPlusOne, FeatureMap


class LinearAttention(nn.Module):
    """Concat(head_1, ..., head_H) W_O with head_h = linear.attend(x W_Q^h, x W_K^h, x W_V^h), in self-attention.

    Args:
        width: E, of the input and the output.
        heads: H, which must divide E.
        kv_heads: Hkv, keys and values shared by H / Hkv query heads each; H by default.
        features: phi, of heads of width E / H; what it learns is learned with the rest.
        causal: a token reads those up to it; otherwise all.
        bias: whether the four projections have one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        features: FeatureMap | None = None,
        causal: bool = True,
        bias: bool = True,
    ):
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        head_width = _head_width("LinearAttention", width, heads)
        at_least_one("LinearAttention", kv_heads=kv_heads)
        if heads % kv_heads:
            raise SoftlookupError(f"LinearAttention: expected kv_heads that divide the {heads} heads, got {kv_heads}")
        self.width, self.heads, self.kv_heads, self.causal = width, heads, kv_heads, causal
        self.features = EluPlusOne() if features is None else features
        self.of_query = nn.Linear(width, width, bias)
        self.of_key = nn.Linear(width, kv_heads * head_width, bias)
        self.of_value = nn.Linear(width, kv_heads * head_width, bias)
        self.out = nn.Linear(width, width, bias)

    def forward(self, x: Tensor, *, keep: Tensor | None = None) -> Tensor:
        """x (B, L, E) -> (B, L, E). keep: (B, L) boolean, True where a token is real."""
        return self.out(_join(attend(*self._projected(x), features=self.features, causal=self.causal, keep=keep)))

    def advance(self, x: Tensor, state: State | None, *, keep: Tensor | None = None) -> tuple[Tensor, State]:
        """The next tokens (B, L, E) after what `state` has read (None: nothing) -> (B, L, E) and the state after them. keep: as
        `forward` has it."""
        if not self.causal:
            raise SoftlookupError("LinearAttention: expected causal=True, to go on from a state, got False")
        y, state = advance(*self._projected(x), state, features=self.features, keep=keep)
        return self.out(_join(y)), state

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _check(x, self.width)
        return (
            _split(self.of_query(x), self.heads),
            _split(self.of_key(x), self.kv_heads),
            _split(self.of_value(x), self.kv_heads),
        )


class GatedDelta(nn.Module):
    """The gated delta rule with learned gates and rates (Yang et al. 2025, "Gated Delta Networks"), without their convolutions.

        q, k = silu(x W_Q), silu(x W_K) / |.|      v = silu(x W_V)      b = sigmoid(x W_b)
        log a = -exp(A) softplus(x W_a + c)                                                   (Mamba-2, Dao & Gu 2024)
        y = (RMSNorm(recur(q, k, v, log a, b)) * silu(x W_G)) W_O

    Args:
        width: E, of the input and the output.
        heads: H, which must divide E; each has a gate and a rate.
        value_width: of a head's values, E / H by default: its state has E / H times as many numbers.
    """

    def __init__(self, width: int, heads: int, *, value_width: int | None = None):
        super().__init__()
        head_width = _head_width("GatedDelta", width, heads)
        value_width = head_width if value_width is None else value_width
        at_least_one("GatedDelta", value_width=value_width)
        self.width, self.heads = width, heads
        self.of_query, self.of_key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.of_value, self.of_out = (nn.Linear(width, heads * value_width, bias=False) for _ in range(2))
        self.of_rate, self.of_gate = nn.Linear(width, heads, bias=False), nn.Linear(width, heads)
        self.norm = nn.RMSNorm(value_width)
        self.out = nn.Linear(heads * value_width, width, bias=False)
        # As Mamba-2 begins: steps of 0.001 to 0.1, and decays of 1 to 16 for each.
        self.log_decay = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        with torch.no_grad():
            step = torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            self.of_gate.bias.copy_(step + (-torch.expm1(-step)).log())  # whose softplus it is

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, E) -> (B, L, E)."""
        return self.advance(x, None)[0]

    def advance(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The next tokens (B, L, E) after what `state` has read (None: nothing) -> (B, L, E) and the state after them,
        (B, H, E / H, Ev)."""
        _check(x, self.width)
        value = _split(silu(self.of_value(x)), self.heads)
        # Under autocast norms are in float32.
        query, key = (normalize(_split(silu(of(x)), self.heads), dim=-1).to(value) for of in (self.of_query, self.of_key))
        gate = self.of_gate(x)
        # logaddexp(x, 0) is softplus(x), whose compiled gradient fails where it comes in other strides.
        log_gate = -self.log_decay.exp() * gate.logaddexp(torch.zeros_like(gate))
        rate = self.of_rate(x).sigmoid()
        y, state = recur(query, key, value, log_gate=log_gate.mT, rate=rate.mT, state=state)
        y = self.norm(y.to(self.norm.weight.dtype))  # for torch's fused norm
        return self.out(_join(y) * silu(self.of_out(x))), state


def _head_width(whose: str, width: int, heads: int) -> int:
    at_least_one(whose, width=width, heads=heads)
    if width % heads:
        raise SoftlookupError(f"{whose}: expected heads that divide the width {width}, got {heads}")
    return width // heads


def _check(x: Tensor, width: int) -> None:
    """Raise unless tokens can be projected."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 3 or x.shape[-1] != width:
        raise SoftlookupError(f"x: expected tokens (B, L, {width}), got {describe(x)}")


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, L, H E) -> (B, H, L, E)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    """(B, H, L, E) -> (B, L, H E)."""
    return x.transpose(1, 2).flatten(2)
