"""The native CPU engine: one fused pass in C++ (csrc/) that gives the output and all statistics of the cheap set."""

from __future__ import annotations

import ctypes
from functools import partial

import torch
from torch import Tensor

from ..biases import DenseBias
from ..outcome import Outcome
from ..problem import Problem
from ..scores import AdditiveForm, LorentzDistance, Product, SoftCap
from ..summary import DERIVED, Summary, source
from . import library, native_entmax, streaming
from .native_problem import done, gradients, lookup_of
from .node import ALWAYS, Readings, conclude, summarize

name = "native"
WIDEST = 512
FEW, SOME = 3, 16
"""Up to FEW queries (SOME where heads are too few for all threads) the kernels for few queries are faster than a panel that is
mostly empty: they read keys once for all query heads, and cut them into parts for the threads."""
SHORT = 512
"""Keys up to which a differentiated call takes the kernels for few queries: they do not cut keys into parts for the threads."""
SCATTERED = 2**22
"""Pairs up to which queries may stand anywhere: what they see is written out then."""


def refusal(problem: Problem) -> str | None:
    """Why this engine cannot run the problem, or None."""
    found, why = library.load()
    if found is None:
        return why
    form, query = problem.form, problem.query
    length = query.shape[2]
    if query.device.type != "cpu":
        return f"it runs on the CPU, and the inputs are on {query.device}"
    if problem.accumulate != torch.float32:
        return f"it computes in float32, and the inputs are {str(problem.value.dtype).removeprefix('torch.')}"
    if not isinstance(form, Product | AdditiveForm):
        return "it scores by products of queries and keys or additively"
    if isinstance(form, Product) and not isinstance(form.pointwise, SoftCap | LorentzDistance | None):
        return f"it has no {type(form.pointwise).__name__} of the scores"
    if any(not isinstance(x, DenseBias) and x.by_offset(torch.zeros(1, dtype=torch.int64)) is None for x in problem.biases):
        return "it adds biases by tensor or by i - j only"
    if problem.rule is not None and not native_entmax.serves(problem):
        return f"its weights are those of Softmax, Entmax(1.5) or Sparsemax, not of {problem.rule!r}"
    if problem.hard:
        return "it takes temperatures above 0, got 0"
    if isinstance(problem.place.queries, Tensor) and (length * problem.key.shape[2] > SCATTERED or not _by_place(problem)):
        return "where queries stand anywhere it takes few of them, and all keys, without dropout or ALiBi"
    if max(query.shape[-1], problem.value.shape[-1]) > WIDEST:
        return f"it takes widths up to {WIDEST}, got {query.shape[-1]} and {problem.value.shape[-1]}"
    return None


def _by_place(problem: Problem) -> bool:
    """Whether nothing but the mask and distances depends on where queries stand."""
    return problem.place.key_offset == 0 and problem.dropout is None and all(isinstance(x, DenseBias) for x in problem.biases)


def runs_on(device: torch.device) -> bool:
    """Whether it is there at all for tensors of a device."""
    return device.type == "cpu" and library.load()[0] is not None


def run(problem: Problem) -> Summary | Outcome:
    """The summary of every query, shapes (B, H, L), or the outcome where weights are not a softmax's."""
    if problem.rule is not None:
        forth = native_entmax.forward
        return conclude(problem, partial(forth, slopes=True), native_entmax.backward, forth)
    few = few_queries(problem)
    back = few and comes_back_by_rows(problem)
    return summarize(
        problem, partial(forward, few=back), partial(backward, few=back), partial(forward, few=few, derived=DERIVED)
    )


def few_queries(problem: Problem) -> bool:
    """Whether the kernels for few queries are faster."""
    batch, heads, length, _ = problem.query.shape
    return length <= (SOME if batch * heads < torch.get_num_threads() else FEW)


def comes_back_by_rows(problem: Problem) -> bool:
    """Whether the backward for few queries gives all gradients that are wanted."""
    learned = any(bias.tensor.requires_grad for bias in problem.biases) or isinstance(problem.temperature, Tensor)
    return problem.key.shape[2] <= SHORT and not learned and isinstance(problem.place.queries, int)


def forward(problem: Problem, few: bool = False, derived: tuple[str, ...] = ()) -> Readings:
    """`average` and what `problem.needs` asks for; inputs that are not finite are left to the streaming engine's care.

    few: by the kernels for few queries, whose scores round otherwise than those of panels: the backward must be theirs too.
    derived: statistics that follow from what is asked for, to be given as well.
    """
    described = lookup_of(problem, few)
    read = None if described is None else read_lookup(described[0], few, readings(problem, derived))
    return streaming.forward(problem) if read is None else read


def readings(problem: Problem, derived: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What the kernels are to write: all statistics, with which of these follow from what is asked for, or none."""
    if not problem.needs:
        return ALWAYS
    asked = {*ALWAYS, *problem.needs}
    return (*library.READINGS, *(x for x in derived if source(x) in asked))


def read_lookup(lookup: library.Lookup, few: bool, wanted: tuple[str, ...]) -> Readings | None:
    """What the forward kernels give, None where inputs are not finite; whoever calls keeps alive what the lookup points to."""
    native, _ = library.load()
    assert native is not None
    rows = lookup.batch, lookup.heads, lookup.queries
    read: Readings = {}
    for reading in wanted:
        dtype = torch.int64 if reading in ("visible", "argmax") else torch.float32
        read[reading] = torch.empty((*rows, lookup.value_width) if reading == "average" else rows, dtype=dtype)
    out = library.Summary(**{name: x.data_ptr() for name, x in read.items()})
    return read if done((native.sl_decode if few else native.sl_forward)(ctypes.byref(lookup), ctypes.byref(out))) else None


def backward(problem: Problem, read: Readings, grads: Readings, few: bool = False) -> list[Tensor]:
    """Gradients of query, key, value (and key bias) from those of the readings; few: as the forward was."""
    described = lookup_of(problem, few)
    if described is None:
        return streaming.backward(problem, read, grads)
    lookup, kept = described
    rows = streaming.coefficients(read, grads)
    share = streaming.inverse_z(rows.log_z)
    planes = {"max_logit": read["max_logit"], "inverse_z": share, "c0": rows.c0 * share}
    planes |= {f"c{k}": c if k > 3 else c * share * (share if k == 3 else 1) for k, c in rows.c.items()}
    planes |= {name.removesuffix("_mass"): g * share for name, g in rows.grads.items()}
    shape = read["max_logit"].shape
    planes = {name: x.reshape(shape) for name, x in planes.items()}
    found = gradients(problem, lookup, grads.get("average"), planes, few)
    del kept
    return streaming.backward(problem, read, grads) if found is None else found


def received(problem: Problem, read: Readings) -> Tensor:
    """(B, H, S) the weight that each key receives, from the maxima and log-normalizers of all queries."""
    native, _ = library.load()
    assert native is not None
    described = lookup_of(problem, few=False)
    out = torch.zeros((*problem.query.shape[:2], problem.key.shape[2]))
    if described is not None:
        m, share = read["max_logit"].contiguous(), streaming.inverse_z(read["log_z"]).contiguous()
        if done(native.sl_received(ctypes.byref(described[0]), m.data_ptr(), share.data_ptr(), out.data_ptr())):
            return out
    return streaming.received(problem, read)
