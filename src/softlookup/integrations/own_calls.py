"""Models that call `attend` themselves, those made of `softlookup.nn` among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..masks import And, Causal, Lengths, Mask, Padding
from ..operator import attend
from ..running import StatsLike, follower
from ..summary import Stats, chosen
from .recording import Sighting, Watcher, attend_seen, followed, unseen
from .sight import real_queries

_following: ContextVar[int] = ContextVar("softlookup_following", default=0)


@contextmanager
def following() -> Iterator[None]:
    """Within, calls of `attend` by watched models are seen; until the last has left, in whatever order they leave."""
    _following.set(_following.get() + 1)
    follower.set(_attend)
    try:
        yield
    finally:
        _following.set(_following.get() - 1)
        if not _following.get():
            follower.set(None)


def _attend(query: Tensor, key: Tensor, value: Tensor, stats: StatsLike | None, arguments: dict[str, Any]) -> Any:
    """`attend`, seen, with the statistics that the model itself asks for."""
    names = chosen(stats)
    dimensions = {x.ndim if isinstance(x, Tensor) else 0 for x in (query, key, value)}
    if not followed() or "received" in names or dimensions not in ({2}, {3}, {4}):
        with unseen():
            return attend(query, key, value, **arguments, stats=stats)
    lead = 4 - query.ndim
    q, k, v = (x[(None,) * lead] for x in (query, key, value))
    output, found = attend_seen(q, k, v, arguments, lambda w: _sight(w, q, k, arguments["mask"]), names=names)
    output = output[(0,) * lead]
    if stats is None or stats is False:
        return output
    return output, Stats({name: found[name][(0,) * lead] for name in names} if found else {})


def _sight(watcher: Watcher, query: Tensor, key: Tensor, mask: Any) -> Sighting | None:
    frame = watcher.paths.frame_of()
    if frame is None:
        return None
    batch, queries, keys = query.shape[0], query.shape[2], key.shape[2]
    if not _has(mask, Causal) and watcher.looks_cross(frame, queries, keys):
        return Sighting(frame, watcher.rows_beside(frame, batch, queries), True)
    return Sighting(frame, _real(mask, batch, queries, keys), False)


def _has(mask: Any, kind: type[Mask]) -> bool:
    """Whether a mask, or one that it is an intersection of, is of a kind."""
    return isinstance(mask, kind) or (isinstance(mask, And) and (_has(mask.a, kind) or _has(mask.b, kind)))


def _real(mask: Any, batch: int, queries: int, keys: int) -> Tensor | None:
    """(B, L) real queries of a self-attention, or None where its mask tells of no padding."""
    if isinstance(mask, Tensor):
        return real_queries(mask, batch, queries, keys)
    if queries != keys:
        return None
    if isinstance(mask, And):
        a, b = (_real(part, batch, queries, keys) for part in (mask.a, mask.b))
        return a & b if a is not None and b is not None else (b if a is None else a)
    if isinstance(mask, Padding):
        return mask.keep.expand(batch, keys)
    if isinstance(mask, Lengths):
        lengths = torch.as_tensor(mask.length).reshape(-1, 1)
        return (torch.arange(keys, device=lengths.device) < lengths).expand(batch, keys)
    return None
