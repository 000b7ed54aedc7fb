"""Any other torch model: attention followed where torch itself computes it.

A torch function mode sees every call of `F.scaled_dot_product_attention` made in Python, under whatever name it was
imported, and every `F.multi_head_attention_forward`, the heart of nn.MultiheadAttention. While a mode is active torch
leaves the fused fast paths of nn.MultiheadAttention and nn.TransformerEncoderLayer by itself: nothing is out of sight.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import SoftlookupError, UnsupportedError
from ..masks import Causal, Dense
from .recording import Sighting, Watcher, attend_seen, followed
from .sight import real_queries

_sdpa = F.scaled_dot_product_attention
_multi_head = F.multi_head_attention_forward


class Interception(TorchFunctionMode):
    """Sends the attention of watched models through the operator, and leaves everything else alone.

    It holds no state (who watches is the matter of `recording`), so that it does not matter whose is left first.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (_sdpa, _multi_head) and followed():
            return (scaled_dot_product if func is _sdpa else multi_head)(*args, **kwargs)
        return func(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class Told:
    """What nn.MultiheadAttention knows. cross: queries are not the keys; rows: real queries (B, L), or None."""

    cross: bool
    rows: Tensor | None


def scaled_dot_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    told: Told | None = None,
) -> Tensor:
    """`F.scaled_dot_product_attention`, seen. Fewer than four dimensions are taken as a batch of single heads."""

    def as_torch_does() -> Tensor:
        return _sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    if query.is_nested:
        raise UnsupportedError("watch: expected dense tensors in scaled_dot_product_attention, got nested ones")
    if not all(t.numel() for t in (query, key, value)):
        return as_torch_does()  # no distribution to speak of
    try:
        q, k, v, mask, lead = _four_dimensional(query, key, value, attn_mask)
        if not enable_gqa and q.shape[1] != k.shape[1]:
            raise SoftlookupError(f"key: expected {q.shape[1]} heads without enable_gqa, got {k.shape[1]}")
        arguments = {
            **_visibility(mask, is_causal),
            "scale": scale,
            "dropout_p": dropout_p,
            # Torch's causality is aligned to the top left, and MultiheadAttention appends its extra keys at the end.
            "query_offset": 0 if is_causal or (told is not None and not told.cross) else None,
        }

        def own() -> Tensor:
            return as_torch_does().reshape(*q.shape[:3], v.shape[3])

        output, _ = attend_seen(q, k, v, arguments, lambda watcher: _sight(watcher, q, k, mask, is_causal, told), own)
    except SoftlookupError:
        as_torch_does()  # torch's own error comes first, where it has one
        raise
    return output.reshape(*lead, *output.shape[-2:])


def _visibility(mask: Tensor | None, is_causal: bool) -> dict[str, Any]:
    """`mask` and `bias` for `attend`. Where both a mask and causality are given, torch's CPU kernels apply both."""
    if not is_causal:
        return {"mask": mask}
    if mask is None or mask.dtype != torch.bool:
        return {"mask": Causal(), "bias": mask}
    return {"mask": Causal() & Dense(mask)}


def multi_head(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """`F.multi_head_attention_forward`, seen; the weights it may return are torch's own."""
    call = inspect.signature(_multi_head).bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    told = Told(*_told(given["query"], given["key"], given["key_padding_mask"]))
    if not given["need_weights"]:
        return _with_sdpa_seen(told)(*args, **kwargs)
    # With weights wanted torch materializes them. Its result stands; statistics come from a second look, without.
    result = _multi_head(*args, **kwargs)
    with torch.no_grad():
        _with_sdpa_seen(told)(**{**given, "need_weights": False, "training": False})
    return result


def _with_sdpa_seen(told: Told) -> Any:
    """Torch's own function body, projections and mask handling included, with another `scaled_dot_product_attention`.

    A copy with its own globals: patching torch.nn.functional would reach other threads, and other models.
    """

    def seen(*args: Any, **kwargs: Any) -> Tensor:
        return scaled_dot_product(*args, **kwargs, told=told)

    body = {**_multi_head.__globals__, "scaled_dot_product_attention": seen, "has_torch_function": lambda _: False}
    copy = FunctionType(_multi_head.__code__, body, _multi_head.__name__, _multi_head.__defaults__)
    copy.__kwdefaults__ = _multi_head.__kwdefaults__
    return copy


if not {"scaled_dot_product_attention", "has_torch_function"} <= set(_multi_head.__code__.co_names):
    raise UnsupportedError(
        f"nn.MultiheadAttention: expected the implementation of torch 2, got torch {torch.__version__}"
    )


def _told(query: Tensor, key: Tensor, key_padding_mask: Tensor | None) -> tuple[bool, Tensor | None]:
    """Is this cross attention (queries and keys are different tensors), and which queries are real?"""
    same = query is key or (query.data_ptr(), query.shape, query.stride()) == (key.data_ptr(), key.shape, key.stride())
    if not same or key_padding_mask is None:
        return not same, None
    padding = key_padding_mask if key_padding_mask.dtype == torch.bool else key_padding_mask == -math.inf
    return False, ~(padding if padding.ndim == 2 else padding[None])


def _four_dimensional(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, tuple[int, ...]]:
    """Query, key, value in four dimensions, a mask that broadcasts to (B, H, L, S), the output's leading shape."""
    try:
        lead = torch.broadcast_shapes(*(t.shape[:-3] for t in (query, key, value)))
        if query.ndim == 4:
            return query, key, value, mask, (*lead, query.shape[1])
        if query.ndim < 4:
            lead = torch.broadcast_shapes(*(t.shape[:-2] for t in (query, key, value)))
            q, k, v = (t.expand(*lead, *t.shape[-2:]).reshape(-1, 1, *t.shape[-2:]) for t in (query, key, value))
            return q, k, v, mask if mask is None or mask.ndim < 3 else mask[:, None], lead
        q, k, v = (t.expand(*lead, *t.shape[-3:]).reshape(-1, *t.shape[-3:]) for t in (query, key, value))
        if mask is not None and mask.ndim > 4:
            mask = mask.expand(*lead, *mask.shape[-3:]).reshape(-1, *mask.shape[-3:])
        return q, k, v, mask, (*lead, q.shape[1])
    except RuntimeError as error:
        raise SoftlookupError(f"scaled_dot_product_attention: expected shapes that broadcast, got {error}") from error


def _sight(
    watcher: Watcher, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, told: Told | None
) -> Sighting | None:
    frame = watcher.paths.frame_of()
    if frame is None:
        return None
    batch, queries, keys = query.shape[0], query.shape[2], key.shape[2]
    cross = told.cross if told is not None else not is_causal and watcher.looks_cross(frame, queries, keys)
    if cross:
        return Sighting(frame, watcher.rows_beside(frame, batch, queries), True)
    rows = told.rows if told is not None else real_queries(mask, batch, queries, keys)
    return Sighting(frame, rows, False)
