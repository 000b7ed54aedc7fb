"""Attention to a fixed number of mixtures of keys."""

from __future__ import annotations

from typing import overload

from torch import Tensor

from ..errors import SoftlookupError
from ..masks import describe
from ..operator import attend
from ..running import StatsLike, autocast, without_autocast
from ..scores import single
from ..summary import Stats, across


@overload
def linformer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    e: Tensor,
    f: Tensor | None = ...,
    *,
    scale: float | Tensor | None = ...,
    stats: None = ...,
) -> Tensor: ...


@overload
def linformer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    e: Tensor,
    f: Tensor | None = ...,
    *,
    scale: float | Tensor | None = ...,
    stats: StatsLike,
) -> tuple[Tensor, Stats]: ...


def linformer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    e: Tensor,
    f: Tensor | None = None,
    *,
    scale: float | Tensor | None = None,
    stats: StatsLike | None = None,
) -> Tensor | tuple[Tensor, Stats]:
    """softmax(Q (E K)^T / sqrt(d)) F V (Wang et al. 2020, eq. 7), over all keys; in at least float32.

    Args:
        query: (…, H, L, d).
        key: (…, Hkv, S, d).
        value: (…, Hkv, S, dv). H is a multiple of Hkv.
        e: of keys, (m, S), or one for each key head, (Hkv, m, S).
        f: of values, e by default.
        scale: of the logits, 1/sqrt(d) by default.
        stats: as `sl.attend` has them, of the distribution over mixtures; without "distance", as mixtures have no positions.
    """
    query, key, value, e, f = autocast(query, key, value, e, f)
    with without_autocast(query.device.type if isinstance(query, Tensor) else "cpu"):
        given = query, _mixed("key", key, "e", e), _mixed("value", value, "f", e if f is None else f)
        q, k, v = (single(x) if isinstance(x, Tensor) else x for x in given)
        if stats is None or stats is False:
            return attend(q, k, v, scale=scale).to(value.dtype)
        out, seen = attend(q, k, v, scale=scale, stats=across(stats))
    return out.to(value.dtype), seen


def _mixed(of: str, x: Tensor, name: str, by: Tensor) -> Tensor:
    """(m, S) or (H, m, S) @ (…, H, S, d) -> (…, H, m, d)."""
    if not isinstance(x, Tensor) or x.ndim < 2:
        raise SoftlookupError(f"{of}: expected a tensor of at least 2 dimensions (…, length, width), got {describe(x)}")
    heads = x.shape[-3:-2]
    if not isinstance(by, Tensor) or by.ndim < 2 or by.shape[-1] != x.shape[-2] or by.shape[:-2] not in ((), heads):
        want = f"(m, {x.shape[-2]})" + (f" or ({heads[0]}, m, {x.shape[-2]})" if heads else "")
        raise SoftlookupError(f"{name}: expected a tensor of shape {want}, got {describe(by)}")
    if by.dtype != x.dtype or by.device != x.device:
        raise SoftlookupError(f"{name}: expected the {of}'s {x.dtype} on {x.device}, got {by.dtype} on {by.device}")
    return single(by) @ single(x)
