"""Multi-head attention as a module: self or cross, grouped heads, cache, positions, and torch's own weights."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..biases import ALiBi
from ..errors import SoftlookupError, at_least_one
from ..normalizers import Normalizer, Softmax
from ..operator import attend
from ..running import MaskLike, StatsLike
from ..scores import ScaledDot, Score
from ..summary import Stats, across
from .cache import Cache
from .held import Held
from .positions import RoPE


class MultiHeadAttention(nn.Module):
    """Concat(head_1, ..., head_H) W_O with head_h = attend(x W_Q^h, c W_K^h, c W_V^h) (Vaswani et al. 2017, sec. 3.2.2).

    Args:
        width: E, of the input and the output.
        heads: H, which must divide E unless `head_width` says otherwise.
        kv_heads: Hkv, keys and values shared by H / Hkv query heads each (Ainslie et al. 2023); H by default.
        context_width: of the sequence that is read in cross-attention; E by default.
        head_width: of queries and keys, E / H by default.
        value_width: of a head's values, `head_width` by default.
        bias: whether the four projections have one.
        positions: `RoPE()`, an `ALiBi`, or None for none; of self-attention only, as two sequences share no positions.
        qk_norm: queries and keys are normalized per head, with a learned gain, so that logits stay bounded (Henry et al. 2020).
        dropout: probability that a weight is dropped in training.
        score: what is relevant, a score of queries and keys of one width: by default the scaled product, without or with a cap.
        normalizer: how scores become weights. Its tensors and the score's are the module's, parameters or buffers.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        context_width: int | None = None,
        head_width: int | None = None,
        value_width: int | None = None,
        bias: bool = True,
        positions: RoPE | ALiBi | None = None,
        qk_norm: bool = False,
        dropout: float = 0.0,
        score: Score = ScaledDot(),  # noqa: B008
        normalizer: Normalizer = Softmax(),  # noqa: B008
    ):
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        context_width = width if context_width is None else context_width
        at_least_one("MultiHeadAttention", width=width, heads=heads, kv_heads=kv_heads, context_width=context_width)
        if heads % kv_heads:
            raise SoftlookupError(f"MultiHeadAttention: expected kv_heads that divide the {heads} heads, got {kv_heads}")
        if head_width is None and width % heads:
            raise SoftlookupError(f"MultiHeadAttention: expected heads that divide the width {width}, got {heads}")
        head_width = width // heads if head_width is None else head_width
        value_width = head_width if value_width is None else value_width
        at_least_one("MultiHeadAttention", head_width=head_width, value_width=value_width)
        if not isinstance(positions, RoPE | ALiBi | None):
            raise SoftlookupError(f"MultiHeadAttention: expected positions as RoPE(), ALiBi(…) or None, got {positions!r}")
        self.heads, self.kv_heads, self.dropout = heads, kv_heads, dropout
        self.score, self.normalizer = copy(score), copy(normalizer)  # other modules may have the same, and move apart
        self.of_score, self.of_normalizer = Held(self.score), Held(self.normalizer)
        self.of_query = nn.Linear(width, heads * head_width, bias)
        self.of_key = nn.Linear(context_width, kv_heads * head_width, bias)
        self.of_value = nn.Linear(context_width, kv_heads * value_width, bias)
        self.out = nn.Linear(heads * value_width, width, bias)
        self.query_norm = nn.RMSNorm(head_width) if qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(head_width) if qk_norm else nn.Identity()
        self.rotary = positions if isinstance(positions, RoPE) else None
        self.bias = positions if isinstance(positions, ALiBi) else None
        for each in (self.of_query, self.of_key, self.of_value, self.out):
            nn.init.xavier_uniform_(each.weight)
            if bias:
                nn.init.zeros_(each.bias)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: MaskLike | None = None,
        cache: Cache | None = None,
        stats: StatsLike | None = None,
    ) -> Tensor | tuple[Tensor, Stats]:
        """x (B, L, E) asks `context` (B, S, Ec), or itself -> (B, L, E); with `stats` also a `Stats` of shape (B, H, L).

        mask: as `attend` has it; queries are right-aligned with the keys, so `Causal()` is right for decoding too.
        cache: keys and values so far. In self-attention this call's are added; in cross-attention those of `context` are
            projected at the first call only, and later calls read them.
        """
        query, key, value = self._projected(x, context, cache)
        dropped = self.dropout if self.training else 0.0
        arguments: dict[str, Any] = {"score": self.score, "mask": mask, "bias": self.bias, "dropout_p": dropped}
        arguments["normalizer"] = self.normalizer
        if stats is None or stats is False:
            return self._join(attend(query, key, value, **arguments))
        names = stats if context is None else across(stats)
        value, seen = attend(query, key, value, stats=names, **arguments)
        return self._join(value), seen

    def weights(self, x: Tensor, context: Tensor | None = None, *, mask: MaskLike | None = None) -> Tensor:
        """(B, H, L, S) the distribution itself, materialized, without dropout: the average of rows of the identity."""
        query, key, value = self._projected(x, context, None)
        eye = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device).expand(*value.shape[:2], -1, -1)
        return attend(query, key, eye, score=self.score, mask=mask, bias=self.bias, normalizer=self.normalizer)

    def _projected(self, x: Tensor, context: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, L, E), keys and values (B, Hkv, S, E), in their positions."""
        if context is not None and (self.rotary is not None or self.bias is not None):
            raise SoftlookupError("MultiHeadAttention: expected a context without positions, as two sequences share none")
        query = self.query_norm(self._split(self.of_query(x), self.heads))
        if context is not None and cache is not None and cache.key is not None and cache.value is not None:
            return query, cache.key, cache.value
        read = x if context is None else context
        key = self.key_norm(self._split(self.of_key(read), self.kv_heads))
        value = self._split(self.of_value(read), self.kv_heads)
        before = 0 if cache is None else len(cache)
        if self.rotary is not None:
            query, key = self.rotary(query, before), self.rotary(key, before)
        if cache is not None:
            key, value = cache.add(key, value)
        return query, key, value

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """(B, N, H E) -> (B, H, N, E)."""
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        """(B, H, L, Ev) -> (B, L, E)."""
        return self.out(x.transpose(1, 2).flatten(2))

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention) -> MultiHeadAttention:
        """The same attention with the weights of torch's module (which must be without `add_bias_kv` and `add_zero_attn`).

        Batches come first here, whatever the module's `batch_first`."""
        if module.bias_k is not None or module.add_zero_attn:
            raise SoftlookupError("from_torch: expected a module without add_bias_kv and add_zero_attn, got one that has them")
        if module.kdim != module.vdim:
            raise SoftlookupError(f"from_torch: expected keys and values of one width, got {module.kdim} and {module.vdim}")
        bias = module.in_proj_bias is not None
        made = cls(module.embed_dim, module.num_heads, context_width=module.kdim, bias=bias, dropout=module.dropout)
        made = made.to(module.out_proj.weight)  # before the weights are read, which float32 would round
        made.load_state_dict(from_torch_state(module.state_dict()))
        return made.train(module.training)


def from_torch_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a torch.nn.MultiheadAttention under the names that `MultiHeadAttention` has."""
    if "in_proj_weight" in state:
        weights = state["in_proj_weight"].chunk(3)
    elif "q_proj_weight" in state:
        weights = tuple(state[f"{x}_proj_weight"] for x in "qkv")
    else:
        raise SoftlookupError(f"from_torch_state: expected in_proj_weight or q_proj_weight, got {', '.join(sorted(state))}")
    ours = {f"of_{name}.weight": w for name, w in zip(("query", "key", "value"), weights, strict=True)}
    if "in_proj_bias" in state:
        biases = state["in_proj_bias"].chunk(3)
        ours |= {f"of_{name}.bias": b for name, b in zip(("query", "key", "value"), biases, strict=True)}
    ours |= {name.replace("out_proj", "out"): x for name, x in state.items() if name.startswith("out_proj.")}
    return {name: torch.clone(x) for name, x in ours.items()}
