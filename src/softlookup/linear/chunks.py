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
from ..problem import flatten, same_length
from . import native

CHUNK = 64
"""Steps at a time: more compute more pairs, fewer make more rounds."""
AT_ONCE = 2048
"""Steps whose chunks are computed together: what they make stays near the processor."""


def checked(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The next L steps (B, H, L, E), (B, Hkv, L, E), (B, Hkv, L, Ev) of a sequence; L may be 0."""
    named = {"query": query, "key": key, "value": value}
    for name, x in named.items():
        if not isinstance(x, Tensor) or x.ndim != 4:
            raise SoftlookupError(f"{name}: expected 4 dimensions (B, H, L, width), got {describe(x)}")
    same_length(query, keys=key, values=value)
    length = query.shape[2]
    q, k, v, _ = flatten(*map(filled, named.values()))
    assert v is not None
    return q[:, :, :length], k[:, :, :length], v[:, :, :length]


def filled(x: Tensor) -> Tensor:
    """With a row where (…, L, width) has none, for what expects some; what is no such tensor as it is."""
    none = isinstance(x, Tensor) and x.ndim > 1 and not x.shape[-2]
    return pad(x, (0, 0, 0, 1)) if none else x


def unfit(*tensors: Tensor | None) -> Tensor | None:
    """(B, H, N), True where one of the tensors (B, H, N, W) has something that is not finite; None if they have nothing, which
    a graph cannot know."""
    given = [x.detach() for x in tensors if x is not None]
    if not torch.compiler.is_compiling() and all(math.isfinite(x.sum()) for x in given):
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
        return _parts(query, key, value, log_gate, rate, state, chunk)
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
    out, state = _parts(query, key, value, log_gate, rate, state, chunk)
    return out.masked_fill(out_bad[..., None], math.nan), state.masked_fill(of_head[..., None, None], math.nan)


def _parts(
    query: Tensor, key: Tensor, value: Tensor, log_gate: Tensor | None, rate: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """As `recurrence`, of what is finite."""
    if log_gate is None and rate is None and (found := native.added(query, key, value, state)) is not None:
        return found
    wide = 1 if log_gate is None else log_gate.shape[-1]
    each = max(AT_ONCE // (chunk * wide), 1) * chunk
    given, out = (query, key, value, log_gate, rate), []
    parts = [[None] * -(-query.shape[2] // each) if x is None else x.split(each, 2) for x in given]
    for q, k, v, gate, b in zip(*parts, strict=True):  # of `split`, whose gradient is one `cat`
        assert q is not None and k is not None and v is not None
        part, state = _chunks(q, k, v, gate, b, state, min(chunk, q.shape[2]))
        out.append(part)
    return torch.cat(out, 2) if len(out) > 1 else out[0], state


def _chunks(
    query: Tensor, key: Tensor, value: Tensor, log_gate: Tensor | None, rate: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """All chunks at once, (B, H, C, c, …), but for the states between them, each of which needs the one before."""
    length = query.shape[2]
    q, k, v, gate, b = (None if x is None else _cut(x, chunk) for x in (query, key, value, log_gate, rate))
    assert q is not None and k is not None and v is not None
    held, late, kept = k, k, None
    between = None if gate is None else _left(gate)
    pairs = _pairs(q, k, between)
    if gate is not None and between is not None:
        since = gate.cumsum(3).exp()
        q, held, late, kept = q * since, k * since, k * between[:, :, :, -1], since[:, :, :, -1, :, None]
    read = None
    if b is not None:
        # What each step writes depends on what those before it wrote: a triangular system (the "WY" form).
        system = (b * _pairs(k, k, between)).tril(-1)
        both = torch.linalg.solve_triangular(system, b * torch.cat([v, held], -1), upper=False, unitriangular=True)
        v, read = both.split([v.shape[-1], held.shape[-1]], -1)
    befores = []
    if read is None:
        for new, keep in zip((late.mT @ v).unbind(2), [None] * q.shape[2] if kept is None else kept.unbind(2), strict=True):
            befores.append(state)
            state = new + (state if keep is None else keep * state)
    else:
        steps = [[None] * q.shape[2] if x is None else x.unbind(2) for x in (late.mT, v, read, kept)]
        for to, new, of, keep in zip(*steps, strict=True):
            befores.append(state)
            state = to @ (new - of @ state) + (state if keep is None else keep * state)
    before = torch.stack(befores, 2)
    v = v if read is None else v - read @ before
    return (q @ before + pairs.tril() @ v).flatten(2, 3)[:, :, :length], state


def _cut(x: Tensor, chunk: int) -> Tensor:
    """(B, H, L, W) -> (B, H, C, c, W), filled with steps that neither write nor forget."""
    fill = -x.shape[2] % chunk
    return (pad(x, (0, 0, 0, fill)) if fill else x).unflatten(2, (-1, chunk))


def _left(log_gate: Tensor) -> Tensor:
    """(B, H, C, c, W) -> (B, H, C, c, c, W): what is left at step i of what was written at step j <= i."""
    steps = torch.arange(log_gate.shape[3], device=log_gate.device)
    later = (steps[:, None] > steps)[..., None]
    return log_gate[:, :, :, :, None].where(later, 0).cumsum(3).exp()


def _pairs(x: Tensor, y: Tensor, between: Tensor | None) -> Tensor:
    """(B, H, C, c, c): x_i . y_j, of which `between` (B, H, C, c, c, 1 or E) is left."""
    if between is None:
        return x @ y.mT
    if between.shape[-1] == 1:
        return (x @ y.mT) * between[..., 0]
    return ((y[:, :, :, None] * between) @ x[..., None])[..., 0]
