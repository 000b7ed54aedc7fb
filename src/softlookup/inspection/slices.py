"""Parts of an attention call, for what is too large to compute whole: some of its query rows, some of its heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..masks import And, Causal, Dense, Dilated, Documents, Everything, Mask, Not, Or, Padding, Prefix, Window
from ..normalizers import Softmax
from ..scores import ScaledDot
from ..watching import Call


def positions_of(call: Call) -> Tensor:
    """(L,) absolute position of each query: right-aligned with the keys unless the call says otherwise."""
    length, keys = call.query.shape[-2], call.key.shape[-2]
    offset = call.arguments.get("query_offset")
    if isinstance(offset, Tensor) and offset.ndim:
        return offset.cpu()
    return torch.arange(length) + (keys - length if offset is None else int(offset))


def at_rows(call: Call, rows: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Query rows ``rows`` (R,) of a call and the arguments that go with them, for ``scores_of`` and ``weights_of``.

    Structured masks and biases are functions of absolute positions and stay as they are; whatever has an entry per
    row of the query tensor has its rows picked too.
    """
    rows = rows.to(call.query.device)
    mask, bias = call.arguments.get("mask"), call.arguments.get("bias")
    picked = {
        "mask": _picked(mask, rows) if isinstance(mask, Mask) else _rows(mask, rows),
        "bias": _rows(bias, rows),
        "query_offset": positions_of(call).to(rows.device)[rows],
    }
    return call.query.index_select(-2, rows), call.arguments | picked


def at_heads(call: Call, heads: Tensor) -> Call | None:
    """The same call for the heads ``heads`` (K,) only; None where something may depend on the head in an unknown way.

    That covers what language models ask for; a user's own score or mask function is asked for all heads, at more cost.
    """
    arguments = call.arguments
    score, normalizer = arguments.get("score", ScaledDot()), arguments.get("normalizer", Softmax())
    mask, bias = arguments.get("mask"), arguments.get("bias")
    single = all(
        not isinstance(value, Tensor) or value.ndim == 0 for value in (arguments.get("scale"), *vars(score).values())
    )
    if (
        type(score) is not ScaledDot
        or not single
        or not isinstance(bias, (Tensor, type(None)))
        or not _same_for_all(mask)
    ):
        return None
    heads = heads.to(call.query.device)
    group = call.query.shape[-3] // call.key.shape[-3]
    sink = normalizer.sink
    if isinstance(sink, Tensor) and sink.ndim:
        normalizer = Softmax(normalizer.temperature, sink[heads.to(sink.device)])
    picked = {"normalizer": normalizer, "mask": _heads(mask, heads), "bias": _heads(bias, heads)}
    return replace(
        call,
        query=call.query.index_select(-3, heads),
        key=call.key.index_select(-3, heads // group),
        value=call.value.index_select(-3, heads // group),
        arguments=arguments | picked,
    )


def _same_for_all(mask: Any) -> bool:
    """Whether a mask is known not to depend on the head, a tensor's head dimension aside."""
    if isinstance(mask, (And, Or)):
        return _same_for_all(mask.a) and _same_for_all(mask.b)
    if isinstance(mask, Not):
        return _same_for_all(mask.a)
    if isinstance(mask, Dense):
        return mask.tensor.ndim < 3 or mask.tensor.shape[-3] == 1
    return mask is None or isinstance(mask, (Tensor, Causal, Dilated, Documents, Everything, Padding, Prefix, Window))


def _heads(value: Any, heads: Tensor) -> Any:
    """Heads of a tensor broadcastable to (B, H, L, S); anything else, and what serves all heads, unchanged."""
    if isinstance(value, Tensor) and value.ndim >= 3 and value.shape[-3] > 1:
        return value.index_select(-3, heads.to(value.device))
    return value


def _picked(mask: Mask, rows: Tensor) -> Mask:
    """The same mask for the query rows ``rows``."""
    if isinstance(mask, (And, Or)):
        return type(mask)(_picked(mask.a, rows), _picked(mask.b, rows))
    if isinstance(mask, Not):
        return Not(_picked(mask.a, rows))
    if isinstance(mask, Dense):
        return Dense(_rows(mask.tensor, rows))
    if isinstance(mask, Documents) and mask.query_ids is not None:
        return Documents(mask.ids, mask.query_ids[:, rows.to(mask.query_ids.device)])
    return mask


def _rows(value: Any, rows: Tensor) -> Any:
    """Rows of a tensor broadcastable to (B, H, L, S); anything else, and a row that serves all queries, unchanged."""
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[-2] > 1:
        return value.index_select(-2, rows.to(value.device))
    return value
