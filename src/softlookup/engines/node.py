"""One lookup as one node of autograd's graph, whichever engine computes it; saves inputs, value and a few scalars per query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..outcome import Outcome
from ..problem import Problem
from ..summary import DERIVED, Summary

Readings = dict[str, Tensor]
"""`average` (B, H, L, Ev) and fields of a `Summary` or an `Outcome`, each (B, H, L)."""

DIFFERENTIABLE = "average log_z excess entropy expected_logit_var collision logit_mean logit_var sink_mass distance".split()
PLAIN = ["max_logit", "visible", "argmax"]
ALWAYS = ("average", "log_z", "max_logit", "visible")


class _Fields(NamedTuple):
    """Those that are always there, those that have a gradient, those that have none, and those that a backward reads."""

    always: tuple[str, ...]
    real: tuple[str, ...]
    plain: tuple[str, ...]
    saved: tuple[str, ...]


_SUMMARY = _Fields(
    ALWAYS,
    tuple(DIFFERENTIABLE),
    tuple(PLAIN),
    tuple(name for name in (*DIFFERENTIABLE, *PLAIN) if name not in ("argmax", "logit_var", "entropy")),
)
_OUTCOME = _Fields(
    ("average", "total", "max_logit", "visible"),
    (
        *("average", "total", "threshold", "logsumexp", "log_weight", "square", "first", "spread", "logit_mean", "logit_var"),
        *("sink_mass", "distance", "received"),
    ),
    ("max_logit", "visible", "argmax", "max_weight", "jacobian_trace", "support"),
    ("offset", "max_logit", "slopes"),
)


def summarize(
    problem: Problem,
    forward: Callable[[Problem], Readings],
    backward: Callable[[Problem, Readings, Readings], list[Tensor]],
    inference: Callable[[Problem], Readings] | None = None,
) -> Summary:
    """The summary that `forward` computes, with gradients by `backward` (problem, readings, gradients of the readings).

    inference: used instead of `forward` where no gradient is wanted."""
    if (fields := _differentiable(problem, forward, backward, _SUMMARY)) is None:
        return summarized(problem, (inference or forward)(problem))
    return Summary(**fields, hard=problem.hard, dtype=problem.value.dtype)


def conclude(
    problem: Problem,
    forward: Callable[[Problem], Readings],
    backward: Callable[[Problem, Readings, Readings], list[Tensor]],
    inference: Callable[[Problem], Readings] | None = None,
) -> Outcome:
    """The same where weights are not a softmax's."""
    fields = _differentiable(problem, forward, backward, _OUTCOME)
    if fields is None:
        fields = _asked_for(problem, (inference or forward)(problem), _OUTCOME.always)
    return Outcome(**fields, dtype=problem.value.dtype)


def _differentiable(problem: Problem, forward: Any, backward: Any, kind: _Fields) -> dict[str, Any] | None:
    """The fields, None where no gradient is wanted."""
    tensors = problem.tensors()
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        return None
    return dict(zip([*kind.real, *kind.plain], _Lookup.apply(problem, forward, backward, kind, *tensors), strict=True))


def summarized(problem: Problem, read: Readings) -> Summary:
    """What was asked for of what an engine read, which may have read statistics that follow from it as well."""
    fields: dict[str, Any] = _asked_for(problem, read, ALWAYS)
    derived = {name: x for name, x in read.items() if name in DERIVED}
    return Summary(**fields, derived=derived, hard=problem.hard, dtype=problem.value.dtype)


def _asked_for(problem: Problem, read: Readings, always: tuple[str, ...]) -> Readings:
    return {name: x for name, x in read.items() if name in always or name in problem.needs}


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, problem: Problem, forward, backward, kind: _Fields, *tensors: Tensor):  # noqa: ANN001, ANN205
        ctx.set_materialize_grads(False)
        ctx.skeleton, ctx.back, ctx.real = skeleton(problem), backward, kind.real
        read = forward(problem)
        ctx.names = [name for name in read if name in kind.saved]
        ctx.save_for_backward(*tensors, *(read[name] for name in ctx.names))
        asked = _asked_for(problem, read, kind.always)
        outputs = tuple(asked.get(name) for name in (*kind.real, *kind.plain))
        ctx.mark_non_differentiable(*(x for x in outputs[len(kind.real) :] if x is not None))
        return outputs

    @staticmethod
    def backward(ctx, *grads: Tensor | None):  # noqa: ANN001, ANN205
        wanted = ctx.needs_input_grad[4:]
        everything = ctx.saved_tensors  # once: reading them unpacks them, and checkpointing allows that a single time
        tensors, saved = everything[: len(wanted)], everything[len(wanted) :]
        given = {name: g for name, g in zip(ctx.real, grads, strict=False) if g is not None}
        problem = revive(ctx.skeleton, tensors)
        with torch.no_grad(), torch.autocast(tensors[0].device.type, enabled=False):
            into = ctx.back(problem, dict(zip(ctx.names, saved, strict=True)), given)
        return None, None, None, None, *hand_out(into, tensors, wanted)


def skeleton(problem: Problem) -> Problem:
    """The problem without its tensors, so that autograd alone decides how long those live."""
    return problem.with_tensors([t.detach().new_empty((0,) * t.ndim) for t in problem.tensors()])


def revive(problem: Problem, tensors: tuple[Tensor, ...]) -> Problem:
    """A skeleton with its tensors again, as leaves of a new graph."""
    return problem.with_tensors([t.detach().requires_grad_(t.requires_grad) for t in tensors])


def hand_out(into: list[Tensor], tensors: tuple[Tensor, ...], wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """The sums as gradients of the inputs, in the inputs' dtypes."""
    out = [g.to(t.dtype) if w else None for g, t, w in zip(into, tensors, wanted, strict=True)]
    return forbid_second_derivative(out, tensors)


def forbid_second_derivative(grads: list[Tensor | None], inputs: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Gradients that raise one clear line if they are differentiated again (create_graph=True is otherwise harmless)."""
    if not torch.is_grad_enabled():
        return grads
    return [None if g is None else _Once.apply(g, *inputs) for g in grads]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ANN001
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, *_: Tensor):  # noqa: ANN001, ANN205
        raise UnsupportedError(
            "a lookup has no second derivative: expected first-order gradients, got double backward "
            '(softlookup.engine("reference") has one, with the whole weight matrix in memory)'
        )
