"""The recurrence of linear attention without gates by the native engine's kernel, where no gradient is wanted."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..engines.library import Sequence, Strided, load


def added(query: Tensor, key: Tensor, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor] | None:
    """(B, H, L, E), (B, H, L, E), (B, H, L, Ev), the state (B, H, E, Ev) before -> out (B, H, L, Ev) and the state after; None
    where the kernel does not serve. Inputs are finite."""
    tensors = query, key, value, state
    if any(x.dtype != torch.float32 or x.device.type != "cpu" or type(x) is not Tensor for x in tensors):
        return None
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
        return None
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    if any(wrapped(x) or forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        return None
    library, _ = load()
    if library is None:
        return None
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    state, out = state.clone(memory_format=torch.contiguous_format), torch.empty(*query.shape[:3], value.shape[-1])
    sequence = Sequence(
        *query.shape, value.shape[-1], *(Strided.of(x) for x in (query, key, value)), state.data_ptr(), out.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return None if library.sl_recur(ctypes.byref(sequence)) else (out, state)
