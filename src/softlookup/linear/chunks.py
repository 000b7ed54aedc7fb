"""The recurrence beneath linear attention, chunk by chunk: a state that is added to, and may forget.

    S_t = Diag(a_t) S_{t-1} + k_t w_t^T        out_t = S_t^T q_t
    w_t = v_t    or, by the delta rule,    w_t = b_t (v_t - S_{t-1}^T Diag(a_t) k_t)

Within a chunk all pairs, from the chunks before it their state. What is left at step i of what was written at step j is exp of
the log gates between them, summed for each pair: as a difference of two sums from the chunk's start it would lose its digits
where gates are strong, and be NaN where one forgets all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import SoftlookupError
from ..masks import describe
from ..problem import flatten

CHUNK = 64
"""Steps at a time: more compute more pairs, fewer make more rounds."""


def checked(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The next L steps (B, H, L, E), (B, Hkv, L, E), (B, Hkv, L, Ev) of a sequence; L may be 0."""
    named = {"query": query, "key": key, "value": value}
    for name, x in named.items():
        if not isinstance(x, Tensor) or x.ndim != 4:
            raise SoftlookupError(f"{name}: expected 4 dimensions (B, H, L, width), got {describe(x)}")
    length = query.shape[2]
    for name, x in named.items():
        if x.shape[2] != length:
            raise SoftlookupError(f"causal: expected as many {name}s as queries, {length}, got {x.shape[2]}")
    if not length:
        flatten(*(pad(x, (0, 0, 0, 1)) for x in named.values()))
        return query, key, value
    q, k, v, _ = flatten(query, key, value)
    assert v is not None
    return q, k, v


def unfit(*tensors: Tensor | None) -> Tensor | None:
    """(B, H, N), True where one of the tensors (B, H, N, W) has something that is not finite; None if they have nothing."""
    given = [x.detach() for x in tensors if x is not None]
    if all(math.isfinite(x.sum()) for x in given):
        return None
    return torch.stack([~x.isfinite().all(-1) for x in given]).any(0)


def recurrence(
    query: Tensor, key: Tensor, value: Tensor, log_gate: Tensor | None, rate: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """(B, H, L, E), (B, H, L, E), (B, H, L, Ev) and, if any, log gates (B, H, L, 1 or E), rates (B, H, L, 1); the state
    (B, H, E, Ev) before -> out (B, H, L, Ev) and the state after.

    Where a step is not finite, `out` is NaN from there on, and so is the state, by which this goes on in the next call."""
    of_gate = None if log_gate is None else log_gate.detach().clamp(min=-1)  # -inf forgets all, and is fit
    spoilt, bad_query, bad_state = unfit(key, value, of_gate, rate), unfit(query), unfit(state)
    if spoilt is None and bad_query is None and bad_state is None:
        return _chunks(query, key, value, log_gate, rate, state, chunk)
    of_head = torch.zeros_like(state[:, :, 0, 0], dtype=torch.bool) if bad_state is None else bad_state.any(-1)
    state = state.masked_fill(of_head[..., None, None], 0)
    out_bad = of_head[..., None].expand(query.shape[:3])
    if spoilt is not None:
        # 0 * NaN is NaN: in products of whole chunks it would reach earlier steps.
        key, value = (x.masked_fill(spoilt[..., None], 0) for x in (key, value))
        log_gate, rate = (None if x is None else x.masked_fill(spoilt[..., None], 0) for x in (log_gate, rate))
        out_bad = out_bad | (spoilt.cumsum(-1) > 0)
        of_head = of_head | spoilt.any(-1)
    if bad_query is not None:
        query = query.masked_fill(bad_query[..., None], 0)
        out_bad = out_bad | bad_query
    out, state = _chunks(query, key, value, log_gate, rate, state, chunk)
    return out.masked_fill(out_bad[..., None], math.nan), state.masked_fill(of_head[..., None, None], math.nan)


def _chunks(
    query: Tensor, key: Tensor, value: Tensor, log_gate: Tensor | None, rate: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """As `recurrence`, of what is finite."""
    parts = [x.split(chunk, 2) for x in (query, key, value)]  # `split`, whose gradient is one `cat`
    gates, rates = ([None] * len(parts[0]) if x is None else x.split(chunk, 2) for x in (log_gate, rate))
    out = []
    for q, k, v, gate, b in zip(*parts, gates, rates, strict=True):
        between = since = None
        if gate is not None:
            between, since = _left(gate), gate.cumsum(2).exp()
        if b is not None:
            # What each step writes depends on what those before it wrote: a triangular system (the "WY" form).
            system = (b * _pairs(k, k, between)).tril(-1)
            rest = b * (v - (k if since is None else k * since) @ state)
            v = torch.linalg.solve_triangular(system, rest, upper=False, unitriangular=True)
        out.append((q if since is None else q * since) @ state + _pairs(q, k, between).tril() @ v)
        if between is not None and since is not None:
            k, state = k * between[:, :, -1], since[:, :, -1, :, None] * state
        state = state + k.mT @ v
    return torch.cat(out, 2), state


def _left(log_gate: Tensor) -> Tensor:
    """(B, H, c, W) -> (B, H, c, c, W): what is left at step i of what was written at step j <= i."""
    steps = torch.arange(log_gate.shape[2], device=log_gate.device)
    later = (steps[:, None] > steps)[..., None]
    return log_gate[:, :, :, None].where(later, 0).cumsum(2).exp()


def _pairs(x: Tensor, y: Tensor, between: Tensor | None) -> Tensor:
    """(B, H, c, c): x_i . y_j, of which `between` (B, H, c, c, 1 or E) is left."""
    if between is None:
        return x @ y.mT
    if between.shape[-1] == 1:
        return (x @ y.mT) * between[..., 0]
    return ((y[:, :, None] * between) @ x[..., None])[..., 0]
