"""Parts of an attention call, for what is too large to compute whole: some of its query rows, some of its heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..masks import Mask, pick
from ..normalizers import Softmax
from ..scores import ScaledDot
from .call import Call


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
        "mask": _rows(mask, rows),
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
    mask, bias = _heads(arguments.get("mask"), heads), arguments.get("bias")
    single = all(
        not isinstance(value, Tensor) or value.ndim == 0 for value in (arguments.get("scale"), *vars(score).values())
    )
    if (
        type(score) is not ScaledDot
        or not single
        or not isinstance(bias, (Tensor, type(None)))
        or (mask is None and arguments.get("mask") is not None)
    ):
        return None
    heads = heads.to(call.query.device)
    group = call.query.shape[-3] // call.key.shape[-3]
    sink = normalizer.sink
    if isinstance(sink, Tensor) and sink.ndim:
        normalizer = Softmax(normalizer.temperature, sink[heads.to(sink.device)])
    picked = {"normalizer": normalizer, "mask": mask, "bias": _heads(bias, heads)}
    return replace(
        call,
        query=call.query.index_select(-3, heads),
        key=call.key.index_select(-3, heads // group),
        value=call.value.index_select(-3, heads // group),
        arguments=arguments | picked,
    )


def _heads(value: Any, heads: Tensor) -> Any:
    if isinstance(value, Mask):
        return value.at_heads(heads)
    return pick(value, -3, heads) if isinstance(value, Tensor) else None


def _rows(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Mask):
        return value.at_rows(rows)
    return pick(value, -2, rows) if isinstance(value, Tensor) else value
