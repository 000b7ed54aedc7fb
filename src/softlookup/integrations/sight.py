"""What can be told about an attention call from the outside: self or cross, and which queries are real."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..masks import hidden


def other_sequence(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """True if a forward was called with states of another sequence to attend to.

    Read from the names of its own parameters (`encoder_hidden_states`, `key_value_states`, `cross_attention_states`),
    which are the same in every encoder-decoder of transformers, and `context` in `softlookup.nn`; or `is_cross_attention`,
    where a module says it.
    """
    if getattr(module, "is_cross_attention", False) is True:
        return True
    try:
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    except TypeError:
        return False
    return any(
        isinstance(x, Tensor) and x.is_floating_point() and _names_other_states(name) for name, x in given.items()
    )


def _names_other_states(name: str) -> bool:
    other = name == "context" or any(word in name for word in ("encoder", "cross", "key_value"))
    return other and not any(word in name for word in ("mask", "bias", "position", "past"))


def real_queries(mask: Tensor | None, batch: int, queries: int, keys: int) -> Tensor | None:
    """(B, L) real queries of a self-attention with this dense mask, or None where the mask does not tell.

    A key that no query sees, not even the token itself, is padding, and so is the query at the same place. A mask that
    hides every token from itself has another meaning, and tells nothing.
    """
    if mask is None or queries != keys:
        return None
    visible = mask if mask.dtype == torch.bool else ~hidden(mask)
    visible = visible[(None,) * (4 - visible.ndim)]
    if visible.shape[3] != keys:
        return None
    real = visible.any(dim=2).any(dim=1)  # (B or 1, S)
    itself = visible.any(dim=1).expand(-1, queries, -1).diagonal(dim1=1, dim2=2)
    return real.expand(batch, keys) if bool(itself.any()) and not bool(real.all()) else None
