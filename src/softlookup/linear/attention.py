"""Attention by features: softmax's exp(q . k) replaced by phi(q) . phi(k), so that one sum over keys serves every query.

    value_i = phi(q_i)^T S / phi(q_i)^T z       S = sum_j phi(k_j) v_j^T,   z = sum_j phi(k_j)

(Katharopoulos et al. 2020, eq. 5), over all keys or, causal, over those up to i. The causal form goes chunk by chunk: within
a chunk all pairs, from the chunks before it their sum S. What it has read is a `State` of fixed size, and goes on from there:
with one query at a time it is a recurrent network. The cost is linear in the length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import SoftlookupError, at_least_one
from ..masks import describe
from ..problem import Shapes, flatten, same_length, scrub
from ..running import without_autocast
from ..scores import single
from .chunks import AT_ONCE, CHUNK, checked, filled, recurrence, unfit
from .features import EluPlusOne, FeatureMap


@dataclass(frozen=True, eq=False)
class State:
    """What is kept of `position` keys: sums (B, H, F, Ev + 1) of phi(k) (v, 1)^T, in float32 or float64.

    log_size: (B, H, 1, 1), the sums are divided by its exp; None where the map has features in range. features: the map whose
    sums these are, by its `identity`. A head that has read what is not finite has NaN. `torch.load` takes it for safe.
    """

    sums: Tensor
    position: int
    log_size: Tensor | None
    features: str

    def __repr__(self) -> str:
        return f"State(position={self.position}, sums={tuple(self.sums.shape)}, features={self.features})"


torch.serialization.add_safe_globals([State])


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    features: FeatureMap = EluPlusOne(),  # noqa: B008
    causal: bool = False,
    keep: Tensor | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """Attention by features. Its error beside softmax on your own inputs: `error_against_exact`.

    Computed in float32, or in float64 if the inputs are. A query's value is NaN where it or a key or value that it reads is
    not finite.

    Args:
        query: (…, H, L, E).
        key: (…, Hkv, S, E).
        value: (…, Hkv, S, Ev). H is a multiple of Hkv.
        features: phi of queries and keys.
        causal: query i averages keys up to i; L and S must be equal. Otherwise all.
        keep: (…, S) boolean, True where a key is real; the batch's dimensions broadcast.
        chunk: queries at a time in the causal form.

    Returns:
        (…, H, L, Ev); 0 for a query without any weight.
    """
    q, k, v, shapes = flatten(filled(query), *(map(filled, (key, value)) if causal else (key, value)))
    assert v is not None
    at_least_one("attend", chunk=chunk)
    if causal:
        same_length(query, keys=key, values=value)
    kept = _kept(keep, shapes, key)
    if not query.shape[-2]:
        return shapes.restore(v.new_empty(*q.shape[:2], 0, v.shape[-1]), 1)
    with without_autocast(q.device.type):
        if causal:
            q, k, v = checked(q, k, v)
            out = _go_on(q, k, v, None, features, kept, chunk)[0]
        else:
            of_query, of_key, pairs, size = _ready(q, k, v, features, kept, 0)
            top = None
            if size is not None:
                top = size.detach().amax(2, keepdim=True)
                of_key = of_key * (size - top).exp()
            spoilt, bad_query = unfit(of_key, pairs), unfit(of_query)
            if spoilt is not None:
                of_key, pairs = (x.masked_fill(spoilt[..., None], 0) for x in (of_key, pairs))
            if bad_query is not None:
                of_query = of_query.masked_fill(bad_query[..., None], 0)
            sums = of_query @ (of_key.mT @ pairs)
            for bad in (None if spoilt is None else spoilt.any(-1, keepdim=True), bad_query):
                sums = sums if bad is None else sums.masked_fill(bad[..., None], torch.nan)
            out = _averaged(sums, top)
    return shapes.restore(out.to(value.dtype), 1)


def advance(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: State | None,
    *,
    features: FeatureMap = EluPlusOne(),  # noqa: B008
    keep: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, State]:
    """The next queries, keys and values of a causal sequence, (B, H, L, E), (B, Hkv, L, E), (B, Hkv, L, Ev), after what `state`
    has read (None: nothing): their average (B, H, L, Ev) and the state after them. L = 1 is a step of decoding, O(1).

    keep: (B, L) boolean, True where a key is real."""
    query, key, value = checked(query, key, value)
    at_least_one("advance", chunk=chunk)
    made_by = _checked(features).identity()
    if state is not None and not isinstance(state, State):
        raise SoftlookupError(f"state: expected None or a State that advance returned, got {describe(state)}")
    if state is not None and state.features != made_by:
        raise SoftlookupError(f"state: expected one of {made_by}, got one of {state.features}")
    kept = _kept(keep, Shapes((len(query),), query.shape[1], False), key)
    with without_autocast(query.device.type):
        if query.shape[2]:
            out, state = _go_on(query, key, value, state, features, kept, chunk)
            return out.to(value.dtype), replace(state, features=made_by)
        if state is None:  # that after one step which is not real
            query, key, value = (torch.nn.functional.pad(x, (0, 0, 0, 1)) for x in (query, key, value))
            nothing = torch.zeros(len(query), 1, dtype=torch.bool, device=query.device)
            out, state = _go_on(query, key, value, None, features, nothing, 1)
            return out[:, :, :0].to(value.dtype), replace(state, position=0, features=made_by)
    return value.new_empty(*query.shape[:3], value.shape[-1]), state


def _go_on(
    query: Tensor, key: Tensor, value: Tensor, state: State | None, features: FeatureMap, keep: Tensor | None, chunk: int
) -> tuple[Tensor, State]:
    """As `advance`, of what was checked; values are not yet in their dtype, and the state does not say its map."""
    if query.shape[2] > AT_ONCE:
        rows = (x.split(AT_ONCE, 2) for x in (query, key, value))
        keeps = [None] * -(-query.shape[2] // AT_ONCE) if keep is None else keep.split(AT_ONCE, 1)
        parts = []
        for q, k, v, here in zip(*rows, keeps, strict=True):
            part, state = _go_on(q, k, v, state, features, here, chunk)
            parts.append(part)
        assert state is not None
        return torch.cat(parts, 2), state
    first = 0 if state is None else state.position
    of_query, of_key, pairs, size = _ready(query, key, value, features, keep, first)
    shape = (*of_key.shape[:2], of_key.shape[-1], pairs.shape[-1])
    if state is None:
        sums, top = of_key.new_zeros(shape), None if size is None else torch.full_like(size[:, :, :1], _least(size))
    else:
        _check(state, of_key.new_empty(0), shape)
        sums, top = state.sums, state.log_size
    gates = tops = None
    if size is not None and top is not None:
        # Sums are relative to the largest key so far, as online softmax has them: a larger one shrinks what was there.
        tops = torch.maximum(size.detach().cummax(2).values, top)
        before = torch.cat([top, tops], 2)
        gates, top, of_key = before[:, :, :-1] - tops, tops[:, :, -1:], of_key * (size - tops).exp()
    out, sums = recurrence(of_query, of_key, pairs, gates, None, sums, chunk)
    return _averaged(out, tops), State(sums, first + query.shape[2], top, "")


def _check(state: State, like: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless features like these can go on from the state."""
    if tuple(state.sums.shape) != shape:
        raise SoftlookupError(f"state: expected sums of shape {shape}, got {tuple(state.sums.shape)}")
    if state.sums.dtype != like.dtype or state.sums.device != like.device:
        got = f"{state.sums.dtype} on {state.sums.device}"
        raise SoftlookupError(f"state: expected {like.dtype} on {like.device}, got {got}")


def _checked(features: FeatureMap) -> FeatureMap:
    if not isinstance(features, FeatureMap):
        raise SoftlookupError(f"features: expected a FeatureMap, such as EluPlusOne(), got {describe(features)}")
    return features


def _kept(keep: Tensor | None, shapes: Shapes, key: Tensor) -> Tensor | None:
    """(B, S)"""
    if keep is None:
        return None
    want = (*shapes.lead, key.shape[-2])
    if isinstance(keep, Tensor) and keep.dtype == torch.bool and keep.device == key.device and keep.shape[-1:] == want[-1:]:
        try:
            return keep.expand(want).reshape(math.prod(shapes.lead), want[-1])
        except RuntimeError:
            pass
    raise SoftlookupError(f"keep: expected a boolean tensor that broadcasts to {want} on {key.device}, got {describe(keep)}")


def _ready(
    query: Tensor, key: Tensor, value: Tensor, features: FeatureMap, keep: Tensor | None, first: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Features of queries and keys (B, H, N, F), values with a 1 appended (B, H, S, Ev + 1), and log sizes of keys (B, H, S, 1)
    if the map has them. Where a key is not real features are 0; where a query or key is not finite they are NaN."""
    query, key, value = single(query), single(key), single(value)  # sums of many terms
    if keep is not None:
        left_out = ~keep[:, None, :, None]
        key, value = key.masked_fill(left_out, 0), value.masked_fill(left_out, 0)
    (query, bad_query), (key, bad_key) = scrub(query), scrub(key)
    of_query = _checked(features).query(query, first)
    of_key, size = features.sized(key, first)
    for x in (of_query, of_key):
        if not isinstance(x, Tensor) or x.dtype != query.dtype:
            raise SoftlookupError(f"features: expected a tensor in {query.dtype}, in which they are summed, got {describe(x)}")
    heads, widths = query.shape[1], (of_query.shape[-1], of_key.shape[-1])
    if of_query.shape[:-1] != query.shape[:-1] or of_key.shape[:-1] not in (key.shape[:-1], (*query.shape[:2], key.shape[2])):
        got = f"{tuple(of_query.shape)} and {tuple(of_key.shape)}"
        raise SoftlookupError(f"features: expected (B, H, L, F) of queries and (B, H or Hkv, S, F) of keys, got {got}")
    if widths[0] != widths[1]:
        raise SoftlookupError(f"features: expected as many of queries as of keys, got {widths[0]} and {widths[1]}")
    pairs = torch.cat([value, torch.ones_like(value[..., :1])], -1)
    if keep is not None:
        of_key = of_key.masked_fill(left_out, 0)
        size = None if size is None else size.masked_fill(left_out, _least(size))
    if bad_query is not None:
        of_query = of_query.masked_fill(bad_query, torch.nan)
    if bad_key is not None:
        pairs = pairs.masked_fill(bad_key, torch.nan)
    of_key, pairs = _spread(of_key, heads), _spread(pairs, heads)
    return of_query, of_key, pairs, None if size is None else _spread(size, heads)


def _spread(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _least(size: Tensor) -> float:
    """The log size of no key at all; not -inf, whose differences are NaN."""
    return torch.finfo(size.dtype).min


def _averaged(sums: Tensor, top: Tensor | None) -> Tensor:
    """Weighted sums (…, Ev + 1) by the sum of their weights, 0 where that is 0; top: the log sizes they are relative to."""
    total = sums[..., -1:]
    nothing = total == 0
    mean = torch.where(nothing, 0, sums[..., :-1] / torch.where(nothing, 1, total))
    if top is None:
        return mean
    vanished = nothing & (top > _least(top))
    if torch.compiler.is_compiling():  # a graph cannot raise by what it computes
        return mean.masked_fill(vanished, torch.nan)
    if vanished.any():
        raise SoftlookupError("features: expected queries and keys with a feature in common, got a query whose weights vanish")
    return mean
