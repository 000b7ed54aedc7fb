"""A small call like one before it: what was found out about that one holds again, over other tensors.

To check a call and to describe it to the kernels takes some fifty microseconds, much longer than attention itself over a few
tokens. All of it follows from shapes, strides and arguments; so the description of a plain call is kept under those, and the
next one like it only puts its tensors' addresses in.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .engines import library, native
from .engines.node import ALWAYS
from .masks import Mask, key_of
from .normalizers import Softmax
from .running import canonical, choose, forced
from .scores import ScaledDot
from .summary import DERIVED, Summary

SMALL = 2**20
"""Scores of all heads, up to which a call counts as small: beyond, the kernels take milliseconds."""
MOST = 128
"""Descriptions kept."""


@dataclass(frozen=True)
class _Description:
    lookup: library.Lookup
    few: bool
    wanted: tuple[str, ...]
    fields: tuple[str, ...]
    kept: tuple[object, ...]


_known: dict[Hashable, _Description | None] = {}


def attend(
    query: Tensor, key: Tensor, value: Tensor, names: tuple[str, ...], arguments: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]] | None:
    """The value and the statistics of these names; None where a call is not of the plain kind that is kept."""
    label = _label(query, key, value, names, arguments)
    if label is None:
        return None
    if label not in _known:
        if len(_known) >= MOST:
            _known.clear()
        _known[label] = _describe(query, key, value, names, arguments)
    known = _known.get(label)
    if known is None:
        return None
    lookup = library.Lookup.from_buffer_copy(known.lookup)
    lookup.query.data, lookup.key.data, lookup.value.data = query.data_ptr(), key.data_ptr(), value.data_ptr()
    read = native.read_lookup(lookup, known.few, known.wanted)
    if read is None:
        return None
    if not names:
        return read["average"], {}
    derived = {name: read[name] for name in known.wanted if name in DERIVED}
    summary = Summary(**{name: read[name] for name in known.fields}, derived=derived)  # type: ignore[arg-type]
    return summary.value, {name: summary.stats(name) for name in names}  # type: ignore[misc]


_NUMBERS = (int, float, type(None))


def _label(query: Tensor, key: Tensor, value: Tensor, names: tuple[str, ...], arguments: dict[str, Any]) -> Hashable | None:
    """All that the description of a call follows from; None for a call that is not plain inference over few tokens."""
    for x in (query, key, value):
        if type(x) is not Tensor or x.dtype != torch.float32 or x.ndim != 4 or not x.is_cpu:
            return None
        if x.requires_grad and torch.is_grad_enabled():
            return None
    score, mask, normalizer = arguments["score"], arguments["mask"], arguments["normalizer"]
    shape, keys = query.shape, key.shape
    if type(score) is not ScaledDot or type(normalizer) is not Softmax:
        return None
    if score.ssmax is not None or normalizer.sink is not None:
        return None
    if shape[0] * shape[1] * shape[2] * keys[2] > SMALL or arguments["bias"] is not None or arguments["dropout_p"]:
        return None
    numbers = score.softcap, normalizer.temperature, arguments["scale"], arguments["query_offset"], arguments["sinks"]
    for each in numbers:
        if type(each) not in _NUMBERS:
            return None
    seen = None
    if mask is not None:
        seen = key_of(mask) if isinstance(mask, Mask) else None
        if seen is None:
            return None
    if forced() is not None or torch.is_autocast_enabled("cpu") or "received" in names:
        return None
    strides = query.stride(), key.stride(), value.stride()
    return shape, keys, value.shape, strides, numbers, seen, names, torch.get_num_threads()


def _describe(
    query: Tensor, key: Tensor, value: Tensor, names: tuple[str, ...], arguments: dict[str, Any]
) -> _Description | None:
    """The description of this call, or None where it is not for the native engine or its tensors are not taken as they are."""
    problem, _, _ = canonical(query, key, value, names=names, **arguments)
    if choose(problem) is not native:
        return None
    few = native.few_queries(problem)
    described = native.lookup_of(problem, few)
    taken = query.data_ptr(), key.data_ptr(), value.data_ptr()
    if described is None:
        return None
    lookup, kept = described
    if (lookup.query.data, lookup.key.data, lookup.value.data) != taken:
        return None
    fields = tuple({*ALWAYS, *problem.needs})
    kept = tuple(x for x in kept if not (isinstance(x, Tensor) and x.data_ptr() in taken))
    return _Description(lookup, few, native.readings(problem, DERIVED if names else ()), fields, kept)
