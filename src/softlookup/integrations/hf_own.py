"""A switched Hugging Face model's own attention: the implementation that it would use, and the mask as that one has it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .hf_switch import original_of
from .hf_visible import recipe_of
from .lazy_mask import LazyMask

Attention = Callable[..., tuple[Tensor, Any]]


def own_attention(module: nn.Module, name: str) -> Attention | None:
    """The attention function of the implementation that `module` has when it is not switched to `name`; None where it has no
    other. It takes the module, query, key, value and, by keyword, the `mask` of `name` and the rest; it gives (B, L, H, Ev)."""
    original = original_of(module)
    if original in (None, name):
        return None
    file = sys.modules.get(type(module).__module__)
    known: AttentionInterface = getattr(file, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    own: Attention | None = getattr(file, "eager_attention_forward", None) if original == "eager" else known[original]
    return None if own is None else partial(_attend, own, original)


def _attend(own: Attention, implementation: str, module: nn.Module, *tensors: Tensor, mask: Any, **arguments: Any) -> Any:
    return own(module, *tensors, _own_mask(mask, implementation), **arguments)


def _own_mask(mask: Any, implementation: str) -> Any:
    """The mask that the implementation would have been given; made once for all layers that share a mask."""
    if not isinstance(mask, LazyMask):
        return mask
    recipe, interface = recipe_of(mask), AttentionMaskInterface()
    if recipe is None or implementation not in interface:
        return mask.dense()
    if implementation not in mask.made:
        mask.made[implementation] = recipe.made_by(interface[implementation])
    return mask.made[implementation]
