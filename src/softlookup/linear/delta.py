"""Recurrences that forget: linear attention whose state is not only added to.

    gated          S_t = a_t S_{t-1} + k_t v_t^T                              (RetNet, Sun et al. 2023; Mamba-2, Dao & Gu 2024)
    delta rule     S_t = a_t S_{t-1} + b_t k_t (v_t - a_t S_{t-1}^T k_t)^T    (Schlag et al. 2021; gated: Yang et al. 2025)

and value_t = S_t^T q_t, with a_t a number or one for each of a key's dimensions, Diag(a_t) (Gated Linear Attention, Yang et al.
2024; with the delta rule Kimi Delta Attention, Kimi Team 2025). The delta rule writes the difference between a value and what
the state has at its key: what was there is replaced. All run chunk by chunk, equal to the recurrence step by step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SoftlookupError, at_least_one
from ..masks import describe
from ..running import without_autocast
from .chunks import CHUNK, checked, recurrence

FINE = 16
"""The longest chunk with a gate for each dimension, which makes (FINE, FINE, E) numbers of a chunk."""


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

    Computed and kept in float32, or in float64 if the inputs are. A value is NaN where something up to it is not finite.

    Args:
        log_gate: (B, H, L), or (B, H, L, E) for each dimension: log a_t <= 0, -inf where all before is forgotten; None:
            nothing is.
        rate: (B, H, L) b_t of the delta rule, usually in (0, 1) with keys of length 1; None: values are added.
        state: (B, H, E, Ev) before the first step; zeros by default.
        chunk: steps at a time; no more than 16 with a gate for each dimension.
    """
    query, key, value = checked(query, key, value)
    if query.shape != key.shape:
        got = f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        raise SoftlookupError(f"recur: expected query and key (B, H, L, E) and value (B, H, L, Ev), got {got}")
    at_least_one("recur", chunk=chunk)
    kept = torch.float64 if key.dtype == torch.float64 else torch.float32
    steps = tuple(key.shape[:3])
    gate, written = _each("log_gate", log_gate, key, steps, tuple(key.shape)), _each("rate", rate, key, steps)
    if gate is not None and gate.shape[-1] > 1:
        chunk = min(chunk, FINE)
    if gate is not None and not torch.compiler.is_compiling() and (gate > 0).any():
        raise SoftlookupError(f"log_gate: expected logs of at most 0, got {float(gate.max()):.3g}")
    shape = (*key.shape[:2], key.shape[-1], value.shape[-1])
    if state is None:
        state = key.new_zeros(shape, dtype=kept)
    elif not isinstance(state, Tensor) or state.shape != shape or state.dtype != kept or state.device != key.device:
        raise SoftlookupError(f"state: expected {kept} {shape} on {key.device}, got {describe(state)}")
    if not key.shape[2]:
        return value, state
    with without_autocast(key.device.type):
        q, k, v = (x.to(kept) for x in (query, key, value))
        gate, written = (None if x is None else x.to(kept) for x in (gate, written))
        out, state = recurrence(q, k, v, gate, written, state, chunk)
    return out.to(value.dtype), state


def _each(name: str, x: Tensor | None, key: Tensor, *shapes: tuple[int, ...]) -> Tensor | None:
    """Numbers of one of these shapes, (B, H, L) or (B, H, L, E), as (B, H, L, 1 or E)."""
    if x is None:
        return None
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape not in shapes or x.device != key.device:
        want = " or ".join(str(shape) for shape in shapes)
        raise SoftlookupError(f"{name}: expected shape {want} on {key.device}, got {describe(x)}")
    return x if x.ndim == 4 else x[..., None]
