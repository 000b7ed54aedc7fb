"""Another score for a model's attention: soft-capped logits, or logits that grow with the context."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SoftlookupError, UnsupportedError
from ..integrations.projections import Parts, parts
from ..nn import MultiHeadAttention
from ..scores import Product, ScaledDot


def soft_cap_(model: nn.Module, cap: float = 50.0) -> nn.Module:
    """Logits become cap tanh(logit / cap): never beyond, and hardly changed where they are small (Gemma 2, 2024, sec. 2).

    Hugging Face models attend with softlookup from here on (`attn_implementation="softlookup"`, registered); so do those made
    of `softlookup.nn.MultiHeadAttention` anyway. Elsewhere: `attend(…, score=ScaledDot(softcap=cap))`.

    SSMax stays where `ssmax_` was called before.

    Returns: the model itself.
    """
    ScaledDot(softcap=cap)  # raises before anything is changed

    def score(part: Parts, old: ScaledDot) -> ScaledDot:
        return _SSMax(part.module, cap) if isinstance(old, _SSMax) else ScaledDot(cap, old.ssmax)

    return _rescored(model, score)


def ssmax_(model: nn.Module, length: int) -> nn.Module:
    """Logits are multiplied by kappa log(visible keys), kappa learned per head, so that attention does not fade as the context
    grows (Nakanishi 2025, "Scalable-Softmax Is Superior for Attention"). Models as `soft_cap_` has them; a cap stays, after it.

    length: of contexts where logits stay as they are at first: kappa begins at 1 / log(length). The parameters, `ssmax` of each
    attention layer, are new: call it before the optimizer is made.

    Returns: the model itself.
    """
    if length < 2:
        raise SoftlookupError(f"ssmax_: expected a length of at least 2, got {length}")

    def score(part: Parts, old: ScaledDot) -> ScaledDot:
        if old.ssmax is not None or isinstance(old, _SSMax):
            raise UnsupportedError(f"ssmax_: expected logits without SSMax, got {part.path} with it")
        begin = torch.full((len(part.query),), 1 / math.log(length), device=part.query.device)
        part.module.register_parameter("ssmax", nn.Parameter(begin))
        return _SSMax(part.module, old.softcap)

    return _rescored(model, score)


class _SSMax(ScaledDot):
    """SSMax whose kappa is the parameter `ssmax` of a module, read there at each call: what is assigned to it later counts."""

    def __init__(self, module: nn.Module, softcap: float | None):
        super().__init__(softcap)
        self._module = module

    def hands_on(self) -> bool:
        return False

    def lower(self, query: Tensor, key: Tensor) -> Product:
        kappa: Any = self._module.ssmax
        return replace(super().lower(query, key), ssmax=kappa)


def _rescored(model: nn.Module, score: Callable[[Parts, ScaledDot], ScaledDot]) -> nn.Module:
    """The model with other scores, each made of a layer and the score that it had."""
    found = parts(model)
    ours = all(isinstance(part.module, MultiHeadAttention) for part in found)
    attribute = "score" if ours else _attends_with_softlookup(model)
    old = [_score(part, attribute) for part in found]
    for part, each in zip(found, old, strict=True):
        setattr(part.module, attribute, score(part, each))
    return model


def _score(part: Parts, attribute: str) -> ScaledDot:
    """What a layer scores with now; a cap of the model's own (Gemma 2) is one."""
    score = getattr(part.module, attribute, None)
    if score is None:
        return ScaledDot(getattr(part.module, "attn_logit_softcapping", None))
    if not isinstance(score, ScaledDot):
        raise UnsupportedError(f"score: expected scaled products in {part.path}, got {type(score).__name__}")
    return score


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
