"""Entmax 1.5 and sparsemax by the native engine: forward with all statistics, and the gradient of the value."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..normalizers import Entmax
from ..problem import Problem
from . import library, whole_rows
from .native_problem import done, gradients, lookup_of
from .node import Readings

_RULES = {1.5: library.ENTMAX15, 2.0: library.SPARSEMAX}
_WHOLE = ("visible", "argmax", "support")


def serves(problem: Problem) -> bool:
    """Whether there is a kernel for the problem's normalizer."""
    rule = problem.rule
    return isinstance(rule, Entmax) and not isinstance(rule.alpha, Tensor) and rule.alpha in _RULES


def forward(problem: Problem, slopes: bool = False) -> Readings:
    """What `whole_rows.forward` gives; slopes: and what the backward needs, (B, H, L, Ev)."""
    native, _ = library.load()
    described = _described(problem)
    if native is None or described is None or "received" in problem.needs:
        return whole_rows.forward(problem)
    lookup, kept = described
    rows = lookup.batch, lookup.heads, lookup.queries
    read: Readings = {}
    for name in library.SUMS if problem.needs else library.SUMS[:6]:
        if name in ("average", "slopes"):
            if name == "average" or slopes:
                read[name] = torch.empty((*rows, lookup.value_width))
        else:
            read[name] = torch.empty(rows, dtype=torch.int64 if name in _WHOLE else torch.float32)
    out = library.Outcome(**{name: x.data_ptr() for name, x in read.items()})
    if not done(native.sl_entmax(ctypes.byref(lookup), ctypes.byref(out))):
        return whole_rows.forward(problem)
    del kept
    if "threshold" in problem.needs:
        read["threshold"] = read["max_logit"] + read["offset"]
    return read


def backward(problem: Problem, read: Readings, grads: Readings) -> list[Tensor]:
    """Gradients of all of `problem.tensors()`: here where the value alone has one, else as `whole_rows.backward`."""
    described = _described(problem)
    if described is None or set(grads) != {"average"} or "slopes" not in read:
        return whole_rows.backward(problem, read, grads)
    lookup, kept = described
    average = grads["average"]
    planes = {
        "max_logit": read["max_logit"],
        "inverse_z": torch.ones_like(read["offset"]),
        "c0": -(average.to(torch.float32) * read["slopes"]).sum(-1),
        "c1": read["offset"],
    }
    found = gradients(problem, lookup, average, planes, few=False)
    del kept
    return whole_rows.backward(problem, read, grads) if found is None else found


def _described(problem: Problem) -> tuple[library.Lookup, tuple[object, ...]] | None:
    described = lookup_of(problem, few=False)
    if described is not None:
        assert isinstance(problem.rule, Entmax) and not isinstance(problem.rule.alpha, Tensor)
        described[0].rule = _RULES[problem.rule.alpha]
    return described
