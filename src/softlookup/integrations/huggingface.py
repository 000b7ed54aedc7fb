"""Hugging Face models: attention and mask function registered together, and models switched to them and back.

    softlookup.integrations.huggingface.register()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="softlookup")

or `model.set_attn_implementation("softlookup")` at any time. What the model computes stays what its eager attention
computes, to rounding; the real tokens', that is: a padding query that sees nothing gets 0 here, and a meaningless
average in eager.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers import masking_utils as hf
from transformers.utils import output_capturing

from ..errors import UnsupportedError
from ..normalizers import Softmax
from ..operator import attend
from ..scores import ScaledDot, Score
from . import hf_switch
from .hf_arguments import OUTPUT_ATTENTIONS, sort_arguments
from .hf_masks import HFMask
from .hf_own import own_attention
from .hf_visible import recipe_of, visibility
from .lazy_mask import LazyMask
from .recording import Sighting, Watcher, attend_seen
from .sight import real_queries

NAME = "softlookup"
SCORE = "softlookup_score"
"""Attribute of an attention module that holds its score, where that is not the scaled product that the model asks for."""


def register() -> None:
    """Make `attn_implementation="softlookup"` known to transformers. Safe to call again."""
    # Both or neither: with an unregistered mask key transformers passes no mask at all, and causality is lost silently.
    AttentionMaskInterface.register(NAME, mask)
    AttentionInterface.register(NAME, attention)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = hf.causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_bidirectional_skip: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    use_vmap: bool = False,
    **asked: Any,
) -> Tensor | None:
    """A mask as transformers asks for it: a `LazyMask` of shape (B, 1, L, S), or None where eager would give None.

    mask_function(b, h, q, kv) -> bool, in absolute positions from q_offset and kv_offset; attention_mask: (B, n)
    padding, True (or 1) where real. Other keywords tell other implementations when they may skip the mask.
    """
    padding = None if attention_mask is None else hf.prepare_padding_mask(attention_mask.bool(), kv_length, kv_offset)
    if torch.compiler.is_compiling():  # a graph has no place for a tensor subclass of ours
        return hf.eager_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,  # type: ignore[arg-type]
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=padding,
            dtype=dtype,
            allow_is_bidirectional_skip=allow_is_bidirectional_skip,
            use_vmap=use_vmap,
            device=device,
            local_size=local_size,
        )
    near = local_size is None or kv_length < local_size
    if allow_is_bidirectional_skip and near and (padding is None or bool(padding.all())):
        return None
    return LazyMask(
        HFMask(
            function=mask_function,
            batch=batch_size,
            queries=q_length,
            keys=kv_length,
            q_offset=int(q_offset),
            kv_offset=kv_offset,
            padding=padding,
            dtype=dtype,
            device=torch.device(device),
            use_vmap=use_vmap,
            asked={**asked, "local_size": local_size, "allow_is_bidirectional_skip": allow_is_bidirectional_skip},
        )
    )


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | Tensor | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query (B, H, L, E), key (B, Hkv, S, E), value (B, Hkv, S, Ev).

    Returns (B, L, H, Ev), contiguous, and no weights. `UnsupportedError` for anything that would have to be ignored.
    """
    given_query, given_scaling = query, scaling
    request = sort_arguments(kwargs)
    if _attentions_are_collected():
        raise UnsupportedError(OUTPUT_ATTENTIONS)
    if isinstance(scaling, Tensor):
        query, scaling = query * scaling, 1.0
    if query.shape[0] != key.shape[0]:  # learned queries, one set for the whole batch
        query = query.expand(key.shape[0], *query.shape[1:])
    arguments = {
        "score": score if isinstance(score := getattr(module, SCORE, None), Score) else ScaledDot(softcap=request.softcap),
        "normalizer": Softmax(sink=None if request.s_aux is None else request.s_aux.flatten()),
        "scale": scaling,
        "dropout_p": dropout if module.training else 0.0,
        **visibility(module, attention_mask, request, query, key),
    }

    def own() -> Tensor:
        function = own_attention(module, NAME)
        if function is None:
            return attend(query, key, value, **arguments)
        told = {**kwargs, "mask": attention_mask, "scaling": given_scaling, "dropout": dropout}
        return function(module, given_query, key, value, **told)[0].transpose(1, 2)

    output, _ = attend_seen(query, key, value, arguments, lambda w: _sight(w, module, query, key, attention_mask), own)
    return output.transpose(1, 2).contiguous(), None


def switched(model: nn.Module) -> AbstractContextManager[int]:
    """Within, the Hugging Face models in `model` attend with softlookup. Yields how many configurations changed."""
    return hf_switch.switched(model, NAME)


def _attentions_are_collected() -> bool:
    """True if the running model was asked for its attention weights, which transformers collects from return values."""
    collected = output_capturing._active_collector.get()
    return bool(collected) and any("attentions" in key for key in collected)


def _sight(
    watcher: Watcher, module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None
) -> Sighting | None:
    frame = watcher.paths.frame_of(module)
    if frame is None:
        return None
    batch, queries, keys = query.shape[0], query.shape[2], key.shape[2]
    recipe = recipe_of(attention_mask)
    if not (recipe is not None and recipe.one_sequence) and watcher.looks_cross(frame, queries, keys):
        return Sighting(frame, watcher.rows_beside(frame, batch, queries), True)
    rows = real_queries(attention_mask, batch, queries, keys) if recipe is None else recipe.rows
    return Sighting(frame, rows if rows is None else rows.expand(batch, queries), False)
