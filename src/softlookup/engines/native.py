"""The native CPU engine: one fused pass in C++ (csrc/), with all statistics of the cheap set at a few percent of its time."""

from __future__ import annotations

import ctypes
from functools import partial

import torch
from torch import Tensor

from ..biases import DenseBias
from ..masks import hidden
from ..problem import Problem
from ..scores import Product, SoftCap
from ..summary import Summary
from . import library, streaming
from .block_lists import all_pairs, block_lists
from .node import ALWAYS, Readings, summarize

name = "native"
WIDEST = 512
FEW = 16
"""Up to this many queries the kernels read keys once for all of them, instead of filling a panel of queries."""
MOST_PARTS = 2**23
"""Numbers in the query gradients of all parts of the keys together."""



def refusal(problem: Problem) -> str | None:
    """Why this engine cannot run the problem, or None."""
    found, why = library.load()
    if found is None:
        return why
    form, query = problem.form, problem.query
    if query.device.type != "cpu":
        return f"it runs on the CPU, and the inputs are on {query.device}"
    if problem.accumulate != torch.float32:
        return f"it computes in float32, and the inputs are {str(problem.value.dtype).removeprefix('torch.')}"
    if not isinstance(form, Product):
        return "it scores by products of queries and keys only"
    if not isinstance(form.pointwise, SoftCap | None):
        return f"it has no {type(form.pointwise).__name__} of the scores"
    if any(not isinstance(x, DenseBias) and x.by_offset(torch.zeros(1, dtype=torch.int64)) is None for x in problem.biases):
        return "it adds biases by tensor or by i - j only"
    if torch.is_grad_enabled() and any(isinstance(x, DenseBias) and x.tensor.requires_grad for x in problem.biases):
        return "it has no gradient of a dense bias"
    if problem.dropout is not None:
        return "it has no dropout"
    if isinstance(problem.temperature, Tensor) or problem.hard:
        return "its temperature is one positive number"
    if isinstance(problem.place.queries, Tensor):
        return "its queries stand at consecutive positions"
    if max(query.shape[-1], problem.value.shape[-1]) > WIDEST:
        return f"it takes widths up to {WIDEST}, got {query.shape[-1]} and {problem.value.shape[-1]}"
    return None


def run(problem: Problem) -> Summary:
    """The summary of every query, shapes (B, H, L)."""
    return summarize(problem, forward, backward, partial(forward, few=problem.query.shape[2] <= FEW))


def forward(problem: Problem, few: bool = False) -> Readings:
    """`average` and what `problem.needs` asks for; inputs that are not finite are left to the streaming engine's care.

    few: by the kernels for few queries, whose scores round otherwise than those that the backward computes again.
    """
    native, _ = library.load()
    assert native is not None
    batch, heads, length, _ = problem.query.shape
    described = _described(problem, few)
    if described is None:
        return streaming.forward(problem)
    lookup, kept = described
    wanted = library.READINGS if problem.needs else ALWAYS
    read: Readings = {}
    for reading in wanted:
        dtype = torch.int64 if reading in ("visible", "argmax") else torch.float32
        shape = (batch, heads, length, *([problem.value.shape[-1]] if reading == "average" else []))
        read[reading] = torch.empty(shape, dtype=dtype)
    out = library.Summary(*(read[x].data_ptr() if x in read else None for x in library.READINGS))
    if not _done((native.sl_decode if few else native.sl_forward)(ctypes.byref(lookup), ctypes.byref(out))):
        return streaming.forward(problem)
    del kept
    return read


def backward(problem: Problem, read: Readings, grads: Readings) -> list[Tensor]:
    """Gradients of query, key, value (and key bias) from those of the readings."""
    native, _ = library.load()
    assert native is not None
    described = _described(problem, few=False)
    if described is None:
        return streaming.backward(problem, read, grads)
    lookup, kept = described
    rows = streaming.coefficients(read, grads)
    share = streaming.inverse_z(rows.log_z)
    planes = {"max_logit": read["max_logit"], "inverse_z": share, "c0": rows.c0 * share}
    planes |= {f"c{k}": c if k > 3 else c * share * (share if k == 3 else 1) for k, c in rows.c.items()}
    planes |= {name.removesuffix("_mass"): g * share for name, g in rows.grads.items()}
    shape = read["max_logit"].shape
    planes = {name: x.reshape(shape).contiguous() for name, x in planes.items()}
    average = grads.get("average")
    average = None if average is None else _readable(average)
    upstream = library.Upstream(
        library.Strided(None, 0, 0, 0) if average is None else library.Strided.of(average),
        *(planes[name].data_ptr() if name in planes else None for name in library.COEFFICIENTS),
    )
    tensors, parts = problem.tensors(), _parts(problem)
    first_bias = len(tensors) - len(problem.biases)  # query, key, value, perhaps a bias of the keys, then the other biases
    into = [torch.zeros_like(t, dtype=torch.float32, memory_format=torch.contiguous_format) for t in tensors[:first_bias]]
    query = into[0] if parts == 1 else into[0].new_empty((parts, *into[0].shape))
    out = library.Gradients(query.data_ptr(), into[1].data_ptr(), into[2].data_ptr(), parts=parts)
    if first_bias > 3:
        out.key_bias = into[3].data_ptr()
    batch, heads, length, _ = query.shape[-4:]
    relative = None
    if any(bias.tensor.requires_grad for bias in problem.biases):
        relative = query.new_zeros((parts, batch, heads, length + problem.key.shape[2] - 1))
        out.relative = relative.data_ptr()
    if not _done(native.sl_backward(ctypes.byref(lookup), ctypes.byref(upstream), ctypes.byref(out))):
        return streaming.backward(problem, read, grads)
    del kept
    if parts > 1:
        into[0] = query.sum(0)
    if first_bias > 3 and _folds(problem):
        into[3] /= problem.temperature
    return into + _bias_gradients(problem, None if relative is None else relative.sum((0, 1)))


def _done(result: int) -> bool:
    """False where something was not finite."""
    if result == 2:
        raise MemoryError("softlookup: not enough memory for the native engine's buffers")
    return result == 0


def _bias_gradients(problem: Problem, by_offset: Tensor | None) -> list[Tensor]:
    """Gradients of the biases from those of their values at each offset, (H, L + S - 1); zeros where none is wanted."""
    grads = []
    for bias in problem.biases:
        tensor = bias.tensor.detach().requires_grad_()
        if by_offset is None or not bias.tensor.requires_grad:
            grads.append(tensor.new_zeros(()))
            continue
        with torch.enable_grad():
            table = bias.with_tensor(tensor).by_offset(_offsets(problem))
        assert table is not None
        grads.extend(torch.autograd.grad(table, tensor, by_offset.to(table.dtype)))
    return grads


def _offsets(problem: Problem) -> Tensor:
    """(L + S - 1,) every i - j of the lookup, ascending."""
    first, keys = problem.place.queries, problem.key.shape[2]
    assert isinstance(first, int)
    start = first - problem.place.key_offset - keys + 1
    return torch.arange(start, start + problem.query.shape[2] + keys - 1)


def _folds(problem: Problem) -> bool:
    """Whether the temperature can divide the scale and the bias of the keys instead of every score."""
    assert isinstance(problem.form, Product)
    return problem.form.pointwise is None and not problem.biases


def _biases(problem: Problem) -> tuple[Tensor | None, Tensor | None]:
    """The sum of biases by i - j, (H, L + S - 1), and of all others, (B, H, L, S) expanded."""
    relative: Tensor | None = None
    dense: Tensor | None = None
    offsets = _offsets(problem)
    for bias in problem.biases:
        table = bias.by_offset(offsets)
        if table is not None:
            table = table.detach().to(torch.float32)
            relative = table if relative is None else relative + table
            continue
        assert isinstance(bias, DenseBias)
        tensor = bias.tensor.detach()
        if hidden(tensor.amin()):
            tensor = tensor.masked_fill(hidden(tensor), 0.0)
        if tensor.shape[-1] > 1:  # a column for every key of the whole
            tensor = tensor.narrow(-1, problem.place.key_offset, problem.key.shape[2])
        tensor = tensor.to(torch.float32)
        dense = tensor if dense is None else dense + tensor
    if dense is not None:
        batch, heads, length, _ = problem.query.shape
        dense = dense.expand(batch, heads, length, problem.key.shape[2])
    return None if relative is None else relative.contiguous(), dense


def _readable(x: Tensor) -> Tensor:
    """A tensor in float32 with unit stride in its last dimension; itself where it is so already."""
    x = x.to(torch.float32)
    return x if x.stride(-1) == 1 else x.contiguous()


def _parts(problem: Problem) -> int:
    """In how many parts keys are taken, so that every thread has work: each part sums query gradients of its own."""
    threads, tasks = torch.get_num_threads(), problem.key.shape[0] * problem.key.shape[1]
    if tasks % threads == 0 or tasks >= 4 * threads:
        return 1
    affordable = max(1, MOST_PARTS // problem.query.numel())
    return min(-(-2 * threads // tasks), -(-problem.key.shape[2] // library.KEYS), affordable)


def _described(problem: Problem, few: bool) -> tuple[library.Lookup, tuple[object, ...]] | None:
    """The problem as the kernels take it, and what must live as long as that; None where a bias is not finite."""
    form, temperature = problem.form, problem.temperature
    assert isinstance(form, Product) and isinstance(temperature, (int, float)) and isinstance(problem.place.queries, int)
    query, key, value = (_readable(x) for x in (form.query, form.key, problem.value))
    batch, heads, length, width = query.shape
    fold = temperature if _folds(problem) else 1.0
    bias = None if form.key_bias is None else (form.key_bias / fold).to(torch.float32).contiguous()
    relative, dense = _biases(problem)
    if any(x is not None and not bool(x.isfinite().all()) for x in (bias, relative, dense)):
        return None
    first = torch.as_tensor(problem.first_key).to("cpu", torch.int64).expand(batch).contiguous()
    lookup = library.Lookup(
        batch=batch,
        heads=heads,
        kv_heads=key.shape[1],
        queries=length,
        keys=key.shape[2],
        width=width,
        value_width=value.shape[-1],
        query=library.Strided.of(query),
        key=library.Strided.of(key),
        value=library.Strided.of(value),
        scale=float(form.scale) / fold,
        softcap=form.pointwise.cap if isinstance(form.pointwise, SoftCap) else 0.0,
        inverse_temperature=fold / temperature,
        query_position=problem.place.queries,
        key_position=problem.place.key_offset,
        first_sink=first.data_ptr(),
        sinks=problem.sinks,
        statistics=bool(problem.needs),
        threads=torch.get_num_threads(),
    )
    if bias is not None:
        lookup.key_bias, lookup.key_bias_batch, lookup.key_bias_head = bias.data_ptr(), *bias.stride()[:2]
    if relative is not None:
        lookup.relative, lookup.relative_head = relative.data_ptr(), relative.stride(0)
    if dense is not None:
        lookup.dense = dense.data_ptr()
        lookup.dense_batch, lookup.dense_head, lookup.dense_row, lookup.dense_column = dense.stride()
    visible: object
    if few:
        visible = seen = all_pairs(problem)
        positions = problem.place.positions(length, query.device)
        lookup.query_positions = positions.data_ptr()
        if seen is not None:
            lookup.seen, (lookup.seen_batch, lookup.seen_head, lookup.seen_row) = seen.data_ptr(), seen.stride()[:3]
        return lookup, (query, key, value, bias, relative, dense, first, visible, positions)
    visible = lists = block_lists(problem)
    arrays = (lists.pattern, lists.start, lists.block, lists.bits_of, lists.bits)
    lookup.blocks = library.Blocks(*(x.ctypes.data for x in arrays))
    return lookup, (query, key, value, bias, relative, dense, first, visible)
