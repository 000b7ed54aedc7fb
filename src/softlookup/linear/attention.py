"""Attention by features: softmax's exp(q . k) replaced by phi(q) . phi(k), so that one sum over keys serves every query.

    value_i = phi(q_i)^T S / phi(q_i)^T z       S = sum_j phi(k_j) v_j^T,   z = sum_j phi(k_j)

(Katharopoulos et al. 2020, eq. 5), over all keys or, causal, over those up to i. The causal form goes chunk by chunk: within
a chunk all pairs, from the chunks before it their sum S. What it has read is a `State` of fixed size, and goes on from there:
with one query at a time it is a recurrent network. The cost is linear in the length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..problem import flatten
from .features import EluPlusOne, FeatureMap

CHUNK = 64
"""Queries at a time: more compute more pairs, fewer make more steps."""
AT_ONCE = 2048
"""Queries whose chunks are computed together: what they make stays near the processor."""


@dataclass(frozen=True, eq=False)
class State:
    """What is kept of `position` keys: sums (B, H, F, Ev + 1) of phi(k) (v, 1)^T."""

    sums: Tensor
    position: int

    def __repr__(self) -> str:
        return f"State(position={self.position}, sums={tuple(self.sums.shape)})"


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

    Args:
        query: (…, H, L, E). key: (…, Hkv, S, E). value: (…, Hkv, S, Ev). H is a multiple of Hkv.
        features: phi of queries and keys.
        causal: query i averages keys up to i; L and S must be equal. Otherwise all.
        keep: (…, S) boolean, True where a key is real; the batch's dimensions broadcast.
        chunk: queries at a time in the causal form.

    Returns:
        (…, H, L, Ev); 0 for a query without any weight.
    """
    q, k, v, shapes = flatten(query, key, value)
    assert v is not None
    if causal:
        out = advance(q, k, v, None, features=features, keep=_kept(keep, shapes.lead, k), chunk=chunk)[0]
    else:
        of_query, of_key, pairs = _ready(q, k, v, features, _kept(keep, shapes.lead, k), 0)
        out = _averaged(of_query @ (of_key.mT @ pairs)).to(value.dtype)
    return shapes.restore(out, 1)


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
    if query.shape[-2] != key.shape[-2]:
        raise SoftlookupError(f"causal: expected as many keys as queries, {query.shape[-2]}, got {key.shape[-2]}")
    if chunk < 1:
        raise SoftlookupError(f"chunk: expected at least 1, got {chunk}")
    if (length := query.shape[-2]) > AT_ONCE:
        parts = []
        for start in range(0, length, AT_ONCE):
            some = slice(start, start + AT_ONCE)
            here = None if keep is None else keep[:, some]
            part, state = advance(
                query[:, :, some], key[:, :, some], value[:, :, some], state, features=features, keep=here, chunk=chunk
            )
            parts.append(part)
        assert state is not None
        return torch.cat(parts, 2), state
    first = 0 if state is None else state.position
    of_query, of_key, pairs = _ready(query, key, value, features, keep, first)
    before = of_query.new_zeros(*of_key.shape[:2], of_key.shape[-1], pairs.shape[-1]) if state is None else state.sums
    if before.shape != (*of_key.shape[:2], of_key.shape[-1], pairs.shape[-1]):
        want = (*of_key.shape[:2], of_key.shape[-1], pairs.shape[-1])
        raise SoftlookupError(f"state: expected sums of shape {want}, got {tuple(before.shape)}")
    chunk = min(chunk, length)
    fill = -length % chunk
    if fill:  # with keys that weigh nothing
        of_query, of_key, pairs = (torch.nn.functional.pad(x, (0, 0, 0, fill)) for x in (of_query, of_key, pairs))
    of_query, of_key, pairs = (x.unflatten(2, (-1, chunk)) for x in (of_query, of_key, pairs))
    each = of_key.mT @ pairs  # (B, H, C, F, Ev + 1)
    after = each.cumsum(2) + before[:, :, None]
    inside = (of_query @ of_key.mT).tril() @ pairs
    out = inside + of_query @ torch.cat([before[:, :, None], after[:, :, :-1]], 2)
    out = _averaged(out.flatten(2, 3)[:, :, :length])
    return out.to(value.dtype), State(after[:, :, -1], first + length)


def _kept(keep: Tensor | None, lead: tuple[int, ...], key: Tensor) -> Tensor | None:
    """(B, S)"""
    if keep is None:
        return None
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.shape[-1] != key.shape[-2]:
        got = f"{keep.dtype} {tuple(keep.shape)}" if isinstance(keep, Tensor) else type(keep).__name__
        raise SoftlookupError(f"keep: expected a boolean tensor (…, {key.shape[-2]}), got {got}")
    return keep.expand(*lead, keep.shape[-1]).reshape(-1, keep.shape[-1])


def _ready(
    query: Tensor, key: Tensor, value: Tensor, features: FeatureMap, keep: Tensor | None, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of queries and keys (B, H, N, F), 0 where a key is not real, and values with a 1 appended (B, H, S, Ev + 1)."""
    if not isinstance(features, FeatureMap):
        raise SoftlookupError(f"features: expected a FeatureMap, such as EluPlusOne(), got {type(features).__name__}")
    if not query.dtype.itemsize > 2:  # sums of many terms
        query, key, value = query.float(), key.float(), value.float()
    heads = query.shape[1]
    of_query, of_key = features.query(query, first), features.key(key, first)
    pairs = torch.cat([value, torch.ones_like(value[..., :1])], -1)
    of_key, pairs = (x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1) for x in (of_key, pairs))
    if of_query.shape[-1] != of_key.shape[-1]:
        got = f"{of_query.shape[-1]} and {of_key.shape[-1]}"
        raise SoftlookupError(f"features: expected as many of queries as of keys, got {got}")
    if keep is not None:
        of_key = of_key.masked_fill(~keep[:, None, :, None], 0)
    return of_query, of_key, pairs


def _averaged(sums: Tensor) -> Tensor:
    """Weighted sums (…, Ev + 1) by the sum of their weights, 0 where that is 0."""
    total = sums[..., -1:]
    return torch.where(total == 0, 0, sums[..., :-1] / torch.where(total == 0, 1, total))
