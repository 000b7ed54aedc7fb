"""QK-clip: heads whose logits grew too large get smaller projections."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import SoftlookupError, UnsupportedError
from ..integrations.projections import Parts, parts
from ..watching import LayerSeen, Seen


@torch.no_grad()
def qk_clip_(model: nn.Module, seen: Seen, threshold: float = 100.0, alpha: float = 0.5) -> dict[str, Tensor]:
    """After an optimizer's step: every head whose largest logit, since `seen` was cleared, passed the threshold has its query
    and key projections rescaled, so that the same inputs would just reach it (Kimi K2 2025, algorithm 1, "QK-Clip").

    With g = threshold / largest logit, W_Q is multiplied by g^alpha and W_K by g^(1 - alpha), biases too. Where heads share
    keys, these shrink as the head needs that needs it least, and each query does the rest: no head is clipped for another.
    Rotary positions turn queries and keys but do not stretch them, so nothing changes for those.

    seen: of a watch of this model, with `max_logit` among its statistics, to be cleared after each call: what it saw before a
    clip says nothing of the weights after it. Layers that were not called are left alone. Of sampled rows it knows the largest
    logit of the sample; a bias that is added to the logits is no part of what shrinks.

    Returns: by layer, what the logits of each head are multiplied by, (H,); only layers where some head was clipped.

    Raises:
        UnsupportedError: where queries or keys are normalized after they are projected (QK-norm bounds logits already), or
            their weights are parametrized (σReparam).
        SoftlookupError: where `seen` is of another model, or was not cleared since the last clip.
    """
    if threshold <= 0 or not 0 <= alpha <= 1:
        raise SoftlookupError(f"qk_clip_: expected threshold > 0 and alpha from 0 to 1, got {threshold} and {alpha}")
    if "max_logit" not in seen.stats:
        raise SoftlookupError(f"qk_clip_: expected a watch of max_logit, got one of {', '.join(seen.stats)}")
    found, called = parts(model), [layer for layer in seen.layers.values() if layer.count]
    for part in found:
        if part.normalized:
            raise UnsupportedError(f"qk_clip_: expected {part.path} without QK-norm (which bounds logits), got one with it")
        if any(parametrize.is_parametrized(x) for x in (part.module, part.reader)):
            raise UnsupportedError(f"qk_clip_: expected plain weights in {part.path}, got parametrized ones")
    if any(layer.clipped for layer in called):
        raise SoftlookupError("qk_clip_: expected seen.clear() since the last clip, got what was seen before it")
    names = {_name(part, model) for part in found}
    if called and not any(_module(layer.name) in names for layer in called):
        raise SoftlookupError(f"qk_clip_: expected what was seen of this model, got layers such as {called[0].name}")
    clipped = {}
    for part in found:
        largest = _largest(part, _name(part, model), seen)
        if largest is None or not bool((largest > threshold).any()):
            continue
        factor = torch.where(largest > threshold, threshold / largest, 1.0)
        _shrink(part, factor, alpha)
        clipped[part.path] = factor
        for layer in called:
            layer.clipped |= _module(layer.name) == _name(part, model)
    return clipped


def _name(part: Parts, model: nn.Module) -> str:
    """What a watch of the model calls the layer."""
    return part.path.replace("_orig_mod.", "") or type(model).__name__


def _largest(part: Parts, path: str, seen: Seen) -> Tensor | None:
    """(H,) largest logit over all calls of the layer that a watch calls `path`."""
    layers: list[LayerSeen] = [x for name, x in seen.layers.items() if _module(name) == path and x.count]
    values = [x.max("max_logit") for x in layers if x.heads == len(part.query)]
    return torch.stack(values).amax(0) if values else None


def _module(layer: str) -> str:
    """The path of the module that a layer of `seen` is: without "#2" and " (cross)"."""
    return layer.split(" (")[0].split("#")[0]


def _shrink(part: Parts, factor: Tensor, alpha: float) -> None:
    groups = len(part.key)
    of_keys = factor.view(groups, -1).amax(1) ** (1 - alpha)
    of_queries = factor / of_keys.repeat_interleave(len(factor) // groups)
    for weight, bias, by in ((part.query, part.query_bias, of_queries), (part.key, part.key_bias, of_keys)):
        by = by.to(weight)
        weight.mul_(by.view(-1, 1, 1))
        if bias is not None:
            bias.mul_(by.view(-1, 1))
