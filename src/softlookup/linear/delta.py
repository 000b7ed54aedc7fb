"""Recurrences that forget: linear attention whose state is not only added to.

    gated          S_t = a_t S_{t-1} + k_t v_t^T                              (RetNet, Sun et al. 2023; Mamba-2, Dao & Gu 2024)
    delta rule     S_t = a_t S_{t-1} + b_t k_t (v_t - a_t S_{t-1}^T k_t)^T    (Schlag et al. 2021; gated: Yang et al. 2025)

and value_t = S_t^T q_t. The delta rule writes the difference between a value and what the state has at its key: what was there
is replaced. Both run chunk by chunk, equal to the recurrence step by step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SoftlookupError

CHUNK = 64


def recur(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    log_gate: Tensor | None = None,
    rate: Tensor | None = None,
    state: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, H, L, E), values (B, H, L, Ev) -> values (B, H, L, Ev) and the state after them, (B, H, E, Ev).

    Args:
        log_gate: (B, H, L) log a_t <= 0; None: nothing is forgotten.
        rate: (B, H, L) b_t of the delta rule, usually in (0, 1) with keys of length 1; None: values are added.
        state: (B, H, E, Ev) before the first step; zeros by default.
        chunk: steps at a time.
    """
    batch, heads, length, width = key.shape
    if query.shape != key.shape or value.shape[:3] != key.shape[:3]:
        got = f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        raise SoftlookupError(f"recur: expected query and key (B, H, L, E) and value (B, H, L, Ev), got {got}")
    for name, x in (("log_gate", log_gate), ("rate", rate)):
        if x is not None and x.shape != key.shape[:3]:
            raise SoftlookupError(f"{name}: expected shape {(batch, heads, length)}, got {tuple(x.shape)}")
    if chunk < 1:
        raise SoftlookupError(f"chunk: expected at least 1, got {chunk}")
    want = (batch, heads, width, value.shape[-1])
    state = key.new_zeros(want) if state is None else state
    if tuple(state.shape) != want:
        raise SoftlookupError(f"state: expected shape {want}, got {tuple(state.shape)}")
    out = []
    for start in range(0, length, chunk):
        some = slice(start, start + chunk)
        q, k, v = query[:, :, some], key[:, :, some], value[:, :, some]
        gates = k.new_zeros(k.shape[:3]) if log_gate is None else log_gate[:, :, some]
        past = gates.cumsum(-1)[..., None]  # log of what is left at each step of what was there before the chunk
        left = (past - past.mT).tril().exp().tril()  # … of what was written at step j, at step i >= j
        before = past.exp() * (k @ state)
        if rate is not None:
            # What each step writes depends on what those before it wrote: a triangular system (the "WY" form).
            b = rate[:, :, some, None]
            system = (b * (k @ k.mT) * left).tril(-1)
            eye = torch.eye(k.shape[2], dtype=k.dtype, device=k.device)
            v = torch.linalg.solve_triangular(eye + system, b * (v - before), upper=False, unitriangular=True)
        out.append(past.exp() * (q @ state) + ((q @ k.mT) * left) @ v)
        state = past[:, :, -1:].exp() * state + (k * left[:, :, -1, :, None]).mT @ v
    return torch.cat(out, 2), state
