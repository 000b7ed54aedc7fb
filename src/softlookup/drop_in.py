"""torch's own attention function, with its exact signature and behaviour, on softlookup's operator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._nn import scaled_dot_product_attention as torchs_own  # also where F's name has been given to ours

from .errors import SoftlookupError
from .masks import Causal
from .operator import attend
from .uncompiled import eager


@eager
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """A drop-in for `torch.nn.functional.scaled_dot_product_attention`; shapes, errors and meaning are torch's.

    `is_causal` is aligned top left (query row r sees keys 0 … r), where `Causal()` is right-aligned; grouped-query
    attention must be asked for by `enable_gqa`. A row with nothing visible gives zeros.
    """

    def torchs() -> Tensor:
        return torchs_own(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    if not refuses(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa):
        if key.shape[-2] == 0 or query.numel() == 0 or value.numel() == 0 or query.shape[-1] == 0:
            return torchs()
        q, k, v = (query, key, value) if enable_gqa else broadcast(query, key, value)
        try:
            return attend(
                q,
                k,
                v,
                mask=Causal() if is_causal else attn_mask,
                scale=scale,
                dropout_p=max(dropout_p, 0.0),
                query_offset=0 if is_causal else None,
            )
        except SoftlookupError:
            torchs()  # if torch refuses it too, then in its own words
            raise
    return torchs()


def refuses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> bool:
    """Would torch refuse these arguments? It is asked about tensors without data."""
    given = (query, key, value, attn_mask)
    tensors = [t for t in given if isinstance(t, Tensor)]
    if len(tensors) < (3 if attn_mask is None else 4) or len({t.device for t in tensors}) > 1:
        return True
    q, k, v, mask = (t if t is None else torch.empty_like(t, device="meta") for t in given)
    try:
        torchs_own(q, k, v, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)  # type: ignore
    except Exception:
        return True
    return False


def broadcast(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three with the same leading dimensions, heads included, as torch broadcasts them without `enable_gqa`."""
    leads = [t.shape[:-2] for t in (query, key, value)]
    if leads[0] == leads[1] == leads[2]:
        return query, key, value
    lead = torch.broadcast_shapes(*leads)
    return tuple(t.expand(*lead, *t.shape[-2:]) for t in (query, key, value))  # type: ignore[return-value]
