"""torch's own attention function, with its exact signature and behaviour, on softlookup's operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .masks import Causal
from .operator import attend


@torch.compiler.disable
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """A drop-in for `torch.nn.functional.scaled_dot_product_attention`; shapes, errors and meaning are torch's.

    `is_causal` is aligned top left (query row r sees keys 0 … r), where `Causal()` is right-aligned; grouped-query
    attention must be asked for by `enable_gqa`. A row with nothing visible gives zeros.
    """
    like_torch(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if key.shape[-2] == 0 or query.numel() == 0 or value.numel() == 0 or query.shape[-1] == 0:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    return attend(
        query,
        key,
        value,
        mask=Causal() if is_causal else attn_mask,
        scale=scale,
        dropout_p=dropout_p,
        query_offset=0 if is_causal else None,
    )


def like_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> None:
    """Raise what torch raises for these arguments, by asking torch itself about tensors without data."""
    tensors = [t for t in (query, key, value, attn_mask) if isinstance(t, Tensor)]
    if len({t.device for t in tensors}) > 1 or len(tensors) < 3:
        meta: list[Any] = [query, key, value, attn_mask]
    else:
        meta = [t if t is None else torch.empty_like(t, device="meta") for t in (query, key, value, attn_mask)]
    q, k, v, mask = meta
    F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

