"""What each key received, R_j = sum_i p_ij ("heavy hitters" of a KV cache), in a second pass with the log-normalizer.

Its gradient needs no formula of its own: sum_j g_j R_j = sum_i E_p[g], the value of a lookup whose value vectors are g.
With several query heads per key-value head, each has a column of the value and looks at its own.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from ..problem import Problem
from ..summary import Summary
from .node import Readings, hand_out, revive, skeleton


def received(problem: Problem, engine: ModuleType, known: Summary | None = None) -> Tensor:
    """(B, H, S) in the accumulation dtype. engine: by what; known: this problem's summary, if there is one already."""
    read = None if known is None else {"max_logit": known.max_logit.detach(), "log_z": known.log_z.detach()}
    return _Received.apply(problem, engine, read, *problem.tensors())


class _Received(torch.autograd.Function):
    @staticmethod
    def forward(ctx, problem: Problem, engine: ModuleType, read: Readings | None, *tensors: Tensor) -> Tensor:  # noqa: ANN001
        problem = replace(problem, needs=frozenset(), dropout=None)
        ctx.skeleton, ctx.engine = skeleton(problem), engine
        ctx.save_for_backward(*tensors)
        problem = problem.with_tensors([t.detach() for t in tensors])
        return engine.received(problem, engine.forward(replace(problem, value=_blank(problem))) if read is None else read)

    @staticmethod
    def backward(ctx, grad: Tensor):  # noqa: ANN001, ANN205
        tensors = ctx.saved_tensors
        problem = revive(ctx.skeleton, tensors)
        batch, heads, length, _ = problem.query.shape
        kv, group = problem.key.shape[1], problem.group
        own = grad.view(batch, kv, group, -1).mT.contiguous()  # (B, Hkv, S, G): column g is for the g-th query head
        one = torch.eye(group, dtype=grad.dtype, device=grad.device).repeat(kv, 1)[None, :, None, :]
        problem = replace(problem, value=own)
        with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
            read = ctx.engine.forward(problem)
            into = ctx.engine.backward(problem, read, {"average": one.expand(batch, heads, length, group)})
        into[2] = torch.zeros_like(tensors[2])
        return None, None, None, *hand_out(into, tensors, ctx.needs_input_grad[3:])


def _blank(problem: Problem) -> Tensor:
    """Values of width 1 for a pass that only needs the log-normalizer."""
    return problem.value.new_zeros(1).expand(*problem.value.shape[:3], 1)
