"""From what a Hugging Face model says about visibility to what the operator takes."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..masks import Causal, Dense, Documents, Mask, Window
from .hf_arguments import Request
from .hf_masks import HFMask
from .lazy_mask import LazyMask


def visibility(
    module: nn.Module, attention_mask: Tensor | None, request: Request, query: Tensor, key: Tensor
) -> dict[str, Any]:
    """`mask`, `bias` and `query_offset` for `attend`, from the model's mask and its word on what is visible."""
    queries, keys = query.shape[2], key.shape[2]
    masks: list[Mask] = []
    bias, query_offset = request.position_bias, None
    if (recipe := recipe_of(attention_mask)) is not None:
        _same_length(recipe, queries, keys)
        query_offset = recipe.query_offset
        if recipe.structure is not None:
            masks.append(recipe.structure)
    elif attention_mask is not None:
        dense = _dense(attention_mask, query.dtype)
        if dense.dtype == torch.bool:
            masks.append(Dense(dense))
        else:  # additive: what it hides, it hides by the dtype's minimum, which `attend` knows
            bias = dense if bias is None else bias + dense
    else:
        masks += _without_mask(module, request, queries, keys)
    if request.indices is not None:
        masks.append(Dense(_chosen_keys(request.indices, keys)))
    if request.cu_seq_lens_q is not None:
        masks.append(_packed(request, query.shape[0], queries, keys))
    mask = reduce(Mask.__and__, masks) if masks else None
    return {"mask": mask, "bias": bias, "query_offset": query_offset}


def recipe_of(attention_mask: Tensor | None) -> HFMask | None:
    """How a lazy mask is made; None for a dense one, and for a lazy one that was written to."""
    recipe = attention_mask.recipe if isinstance(attention_mask, LazyMask) else None
    return recipe if isinstance(recipe, HFMask) else None


def _dense(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(attention_mask, Tensor):
        got = type(attention_mask).__name__
        raise UnsupportedError(f"attention_mask: expected a tensor or None, got a {got}, another implementation's own")
    dense = attention_mask.dense() if isinstance(attention_mask, LazyMask) else attention_mask
    return dense if dense.dtype == torch.bool or dense.is_floating_point() else dense.to(dtype)  # eager adds integers


def _same_length(recipe: HFMask, queries: int, keys: int) -> None:
    if (recipe.queries, recipe.keys) != (queries, keys):
        raise UnsupportedError(
            f"attention_mask: expected {queries} queries and {keys} keys, got {recipe.queries} and {recipe.keys}"
        )


def _without_mask(module: nn.Module, request: Request, queries: int, keys: int) -> list[Mask]:
    """What the model's word on causality hides where it gives no mask.

    Our mask function never leaves a causal mask out, so this is a module called by itself. Silence means no mask, as in
    eager: a missing attribute does not make an attention causal.
    """
    said = request.is_causal if request.is_causal is not None else getattr(module, "is_causal", False)
    if not said or queries == 1:
        return []
    if queries != keys:
        raise UnsupportedError(
            f"is_causal: expected a mask, or as many queries as keys (which is earlier?), got {queries} and {keys}"
        )
    return [Causal()] + ([] if request.sliding_window is None else [Window(request.sliding_window)])


def _chosen_keys(indices: Tensor, keys: int) -> Tensor:
    """(B, 1, L, S) True at the keys that indices (B, L, k) name; negative indices name none."""
    chosen = torch.zeros(*indices.shape[:2], keys + 1, dtype=torch.bool, device=indices.device)
    chosen.scatter_(-1, torch.where(indices < 0, keys, indices).long(), True)
    return chosen[:, None, :, :keys]


def _packed(request: Request, batch: int, queries: int, keys: int) -> Mask:
    """Sequences packed into a batch of one: each sees itself only. Bounds (n + 1,) as for flash attention's varlen."""
    q, k = request.cu_seq_lens_q, request.cu_seq_lens_k
    assert q is not None
    k = q if k is None else k
    if batch != 1 or int(q[-1]) != queries or int(k[-1]) != keys or len(q) != len(k):
        raise UnsupportedError(
            f"cu_seq_lens: expected bounds of one batch entry with {queries} queries and {keys} keys, "
            f"got a batch of {batch}, bounds ending at {int(q[-1])} and {int(k[-1])}"
        )
    return Documents(_sequence_of_each(k), _sequence_of_each(q))


def _sequence_of_each(bounds: Tensor) -> Tensor:
    """(length,) the number of the sequence that each position belongs to."""
    return torch.repeat_interleave(torch.arange(len(bounds) - 1, device=bounds.device), bounds.diff())
