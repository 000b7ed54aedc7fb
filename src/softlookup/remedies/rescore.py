"""Another score for a model's attention: soft-capped logits, or logits that grow with the context."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from torch import nn

from ..errors import SoftlookupError, UnsupportedError
from ..integrations.projections import Parts, parts
from ..nn import MultiHeadAttention
from ..scores import ScaledDot


def soft_cap_(model: nn.Module, cap: float = 50.0) -> nn.Module:
    """Logits become cap tanh(logit / cap): never beyond, and hardly changed where they are small (Gemma 2, 2024, sec. 2).

    Hugging Face models attend with softlookup from here on (`attn_implementation="softlookup"`, registered); so do those made
    of `softlookup.nn.MultiHeadAttention` anyway. Elsewhere: `attend(…, score=ScaledDot(softcap=cap))`.

    Returns: the model itself.
    """
    return _rescored(model, lambda part: ScaledDot(softcap=cap))


def ssmax_(model: nn.Module, length: int) -> nn.Module:
    """Logits are multiplied by kappa log(visible keys), kappa learned per head, so that attention does not fade as the context
    grows (Nakanishi 2025, "Scalable-Softmax Is Superior for Attention"). Models as `soft_cap_` has them.

    length: of contexts where logits stay as they are at first: kappa begins at 1 / log(length). The parameters, `ssmax` of each
    attention layer, are new: call it before the optimizer is made.

    Returns: the model itself.
    """
    if length < 2:
        raise SoftlookupError(f"ssmax_: expected a length of at least 2, got {length}")

    def score(part: Parts) -> ScaledDot:
        begin = torch.full((len(part.query),), 1 / math.log(length), device=part.query.device)
        part.module.register_parameter("ssmax", nn.Parameter(begin))
        return ScaledDot(ssmax=part.module.ssmax)  # type: ignore[arg-type]

    return _rescored(model, score)


def _rescored(model: nn.Module, score: Callable[[Parts], ScaledDot]) -> nn.Module:
    found = parts(model)
    ours = all(isinstance(part.module, MultiHeadAttention) for part in found)
    attribute = "score" if ours else _attends_with_softlookup(model)
    for part in found:
        setattr(part.module, attribute, score(part))
    return model


def _attends_with_softlookup(model: nn.Module) -> str:
    """Switch a Hugging Face model for good; the name of the attribute under which its attention modules keep a score."""
    if "transformers" in sys.modules:
        from transformers import PreTrainedModel

        if isinstance(model, PreTrainedModel) and model._can_set_attn_implementation():
            from ..integrations import huggingface

            huggingface.register()
            model.set_attn_implementation(huggingface.NAME)
            return huggingface.SCORE
    raise UnsupportedError(
        f"score: expected a Hugging Face model or one of softlookup.nn, got a {type(model).__name__}; "
        "in a model of your own: attend(…, score=ScaledDot(…))"
    )
