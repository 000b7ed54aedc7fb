"""The native CPU engine: one fused pass in C++ (csrc/) that gives the output and all statistics of the cheap set."""

from __future__ import annotations

import ctypes
from functools import partial

import torch
from torch import Tensor, nn

from ..biases import Bias, DenseBias
from ..masks import hidden
from ..problem import Problem
from ..scores import AdditiveForm, LorentzDistance, Product, SoftCap
from ..summary import DERIVED, Summary, source
from . import library, streaming
from .block_lists import all_pairs, block_lists, written_out
from .dropout import mixed_seed, threshold
from .node import ALWAYS, Readings, summarize

name = "native"
WIDEST = 512
FEW, SOME = 3, 16
"""Up to FEW queries (SOME where heads are too few for all threads) the kernels for few queries are faster than a panel that is
mostly empty: they read keys once for all query heads, and cut them into parts for the threads."""
SHORT = 512
"""Keys up to which a differentiated call takes the kernels for few queries: they do not cut keys into parts for the threads."""
SCATTERED = 2**22
"""Pairs up to which queries may stand anywhere: what they see is written out then."""
MOST_PARTS = 2**23
"""Numbers in the query gradients of all parts of the keys together."""


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
    if problem.rule is not None:
        return f"its weights are a softmax's, not those of {type(problem.rule).__name__}"
    if problem.hard:
        return "its temperature is above 0"
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


def run(problem: Problem) -> Summary:
    """The summary of every query, shapes (B, H, L)."""
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
    return read if _done((native.sl_decode if few else native.sl_forward)(ctypes.byref(lookup), ctypes.byref(out))) else None


def backward(problem: Problem, read: Readings, grads: Readings, few: bool = False) -> list[Tensor]:
    """Gradients of query, key, value (and key bias) from those of the readings; few: as the forward was."""
    native, _ = library.load()
    assert native is not None
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
    planes = {name: x.reshape(shape).contiguous() for name, x in planes.items()}
    average = grads.get("average")
    average = None if average is None else _readable(average)
    upstream = library.Upstream(
        library.Strided(None, 0, 0, 0) if average is None else library.Strided.of(average),
        *(planes[name].data_ptr() if name in planes else None for name in library.COEFFICIENTS),
    )
    sums = _Sums(problem, few)
    run = native.sl_backward_few if few else native.sl_backward
    if not _done(run(ctypes.byref(lookup), ctypes.byref(upstream), ctypes.byref(sums.described()))):
        return streaming.backward(problem, read, grads)
    del kept
    return sums.gradients()


def _done(result: int) -> bool:
    """False where something was not finite."""
    if result == 2:
        raise MemoryError("softlookup: not enough memory for the native engine's buffers")
    return result == 0


def received(problem: Problem, read: Readings) -> Tensor:
    """(B, H, S) the weight that each key receives, from the maxima and log-normalizers of all queries."""
    native, _ = library.load()
    assert native is not None
    described = lookup_of(problem, few=False)
    out = torch.zeros((*problem.query.shape[:2], problem.key.shape[2]))
    if described is not None:
        m, share = read["max_logit"].contiguous(), streaming.inverse_z(read["log_z"]).contiguous()
        if _done(native.sl_received(ctypes.byref(described[0]), m.data_ptr(), share.data_ptr(), out.data_ptr())):
            return out
    return streaming.received(problem, read)


class _Sums:
    """Where the kernels sum gradients, and the gradients of `problem.tensors()` from those sums."""

    def __init__(self, problem: Problem, few: bool):
        self.problem = problem
        form, (batch, heads, length, width), keys = problem.form, problem.query.shape, problem.key.shape[2]
        self.key_bias = self.relative = self.additive = self.temperature = self.dense = None
        wanted = [bias for bias in problem.biases if bias.tensor.requires_grad]
        dense = [bias.tensor.shape for bias in wanted if isinstance(bias, DenseBias)]
        if dense:
            shape = torch.broadcast_shapes((1, 1, 1, 1), *dense)
            self.dense = torch.zeros((*shape[:3], 1 if shape[3] == 1 else keys))
        self.parts = parts = 1 if few else _parts(problem, self.dense)
        self.query = torch.empty((parts, *problem.query.shape))
        self.key, self.value = (torch.empty(x.shape) for x in (problem.key, problem.value))
        if isinstance(form, Product) and form.key_bias is not None:
            self.key_bias = torch.zeros(form.key_bias.shape)
        if isinstance(form, AdditiveForm):
            self.additive = torch.zeros((parts, batch, heads, width))
        if isinstance(problem.temperature, Tensor):
            self.temperature = torch.zeros((parts, batch, heads, length))
        if any(not isinstance(bias, DenseBias) for bias in wanted):
            self.relative = torch.zeros((parts, batch, heads, length + keys - 1))

    def described(self) -> library.Gradients:
        out = library.Gradients(parts=self.parts)
        for name in ("query", "key", "value", "key_bias", "relative", "additive", "temperature", "dense"):
            tensor = getattr(self, name)
            setattr(out, name, None if tensor is None else tensor.data_ptr())
        if self.dense is not None:
            steps = [0 if size == 1 else step for size, step in zip(self.dense.shape, self.dense.stride(), strict=True)]
            out.dense_batch, out.dense_head, out.dense_row, out.dense_column = steps
        return out

    def gradients(self) -> list[Tensor]:
        problem = self.problem
        grads = [self.query[0] if self.parts == 1 else self.query.sum(0), self.key, self.value]
        if self.temperature is not None:
            assert isinstance(problem.temperature, Tensor)
            t = problem.temperature.detach()
            grads.append((-self.temperature.sum(0).unsqueeze(-1) / t).sum_to_size(t.shape))
        if self.key_bias is not None:
            grads.append(self.key_bias / problem.temperature if _folds(problem) else self.key_bias)
        if self.additive is not None:
            assert isinstance(problem.form, AdditiveForm)
            grads.append(self.additive.sum((0, 1)).sum_to_size(problem.form.weight.shape))
        return grads + [self._of_bias(bias) for bias in problem.biases]

    def _of_bias(self, bias: Bias) -> Tensor:
        """Zeros where no gradient is wanted."""
        problem, tensor = self.problem, bias.tensor.detach()
        if not bias.tensor.requires_grad:
            return tensor.new_zeros(())
        if isinstance(bias, DenseBias):
            assert self.dense is not None
            start, keys = problem.place.key_offset, problem.key.shape[2]
            if tensor.shape[-1] == 1:
                return self.dense.sum_to_size(tensor.shape)
            grad = torch.zeros(tensor.shape)  # a column for every key of the whole
            grad.narrow(-1, start, keys).copy_(self.dense.sum_to_size((*tensor.shape[:-1], keys)))
            return grad
        assert self.relative is not None
        tensor.requires_grad_()
        with torch.enable_grad():
            table = bias.with_tensor(tensor).by_offset(_offsets(problem))
        assert table is not None
        (grad,) = torch.autograd.grad(table, tensor, self.relative.sum((0, 1)).to(table.dtype))
        return grad


def _offsets(problem: Problem) -> Tensor:
    """(L + S - 1,) every i - j of the lookup, ascending."""
    first, keys = problem.place.queries, problem.key.shape[2]
    assert isinstance(first, int)
    start = first - problem.place.key_offset - keys + 1
    return torch.arange(start, start + problem.query.shape[2] + keys - 1)


def _folds(problem: Problem) -> bool:
    """Whether the temperature can divide the scale and the bias of the keys instead of every score."""
    form, plain = problem.form, not isinstance(problem.temperature, Tensor) and not problem.biases
    return plain and isinstance(form, Product) and form.pointwise is None


def _biases(problem: Problem) -> tuple[Tensor | None, Tensor | None]:
    """The sum of biases by i - j, (H, L + S - 1), and of all others, (B, H, L, S) expanded."""
    relative: Tensor | None = None
    dense: Tensor | None = None
    if not problem.biases:
        return relative, dense
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
    if x.dtype != torch.float32:
        x = x.to(torch.float32)
    return x if x.stride(-1) == 1 else x.contiguous()


def _parts(problem: Problem, dense: Tensor | None) -> int:
    """In how many parts keys are taken, so that every thread has work: each part sums query gradients of its own.

    dense: the gradient of the dense biases. Heads that share it are one task (csrc/dispatch.cpp), and parts must not."""
    (batch, heads), threads = problem.key.shape[:2], torch.get_num_threads()
    tasks = batch * heads
    if dense is not None and dense.shape[3] == 1 and problem.key.shape[2] > 1:
        return 1
    if dense is not None and (dense.shape[0] < batch or dense.shape[1] < problem.query.shape[1]):
        tasks = 1
    if tasks % threads == 0 or tasks >= 4 * threads:
        return 1
    affordable = max(1, MOST_PARTS // problem.query.numel())
    return min(-(-2 * threads // tasks), -(-problem.key.shape[2] // library.KEYS), affordable)


def lookup_of(problem: Problem, few: bool) -> tuple[library.Lookup, tuple[object, ...]] | None:
    """The problem as the kernels take it, and what must live as long as that; None where a bias is not finite."""
    form, temperature = problem.form, problem.temperature
    place, positions = problem.place, None
    if isinstance(place.queries, Tensor):
        problem = written_out(problem)
    assert isinstance(form, Product | AdditiveForm) and isinstance(problem.place.queries, int)
    query, key, value = (_readable(x) for x in (form.query, form.key, problem.value))
    batch, heads, length, width = query.shape
    fold = float(temperature) if _folds(problem) else 1.0
    bias = weight = coolness = None
    if isinstance(form, AdditiveForm):
        weight = form.weight.detach().to(torch.float32).contiguous()
    elif form.key_bias is not None:
        bias = (form.key_bias / fold).to(torch.float32).contiguous()
    if isinstance(temperature, Tensor):
        coolness = (1 / temperature.detach().to(torch.float32)).expand(batch, heads, length, 1).contiguous()
    relative, dense = _biases(problem)
    if any(x is not None and not bool(x.isfinite().all()) for x in (bias, relative, dense)):
        return None
    first = problem.first_key
    firsts = (ctypes.c_int64 * batch)(*([first] * batch if isinstance(first, int) else first.expand(batch).tolist()))
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
        scale=1.0,
        inverse_temperature=1.0 if coolness is not None else fold / float(temperature),
        query_position=problem.place.queries,
        key_position=problem.place.key_offset,
        first_sink=ctypes.addressof(firsts),
        sinks=problem.sinks,
        statistics=bool(problem.needs),
        threads=torch.get_num_threads(),
    )
    if isinstance(form, Product):
        lookup.scale = float(form.scale) / fold
        if isinstance(form.pointwise, SoftCap):
            lookup.map, lookup.softcap = library.SOFTCAP, form.pointwise.cap
        elif form.pointwise is not None:
            lookup.map = library.LORENTZ
    if weight is not None:
        lookup.additive, lookup.additive_head = weight.data_ptr(), 0 if weight.shape[0] == 1 else weight.stride(0)
    if coolness is not None:
        lookup.inverse_temperatures = coolness.data_ptr()
    if problem.dropout is not None:
        drop, p = problem.dropout, problem.dropout.p
        scale = 1 / (1 - p) if p < 1 else 0.0  # at p = 1 the threshold, 2^32, does not fit
        lookup.dropout = library.Dropout(1, min(threshold(drop), 2**32 - 1), int(mixed_seed(drop)), scale)
    if bias is not None:
        lookup.key_bias, lookup.key_bias_batch, lookup.key_bias_head = bias.data_ptr(), *bias.stride()[:2]
    if relative is not None:
        lookup.relative, lookup.relative_head = relative.data_ptr(), relative.stride(0)
    if dense is not None:
        lookup.dense = dense.data_ptr()
        lookup.dense_batch, lookup.dense_head, lookup.dense_row, lookup.dense_column = dense.stride()
    if isinstance(place.queries, Tensor):  # read by whole panels
        positions = nn.functional.pad(place.queries.contiguous(), (0, -length % library.QUERIES))
    elif few:
        positions = place.positions(length, query.device)
    if positions is not None:
        lookup.query_positions = positions.data_ptr()
    kept = query, key, value, weight, coolness, bias, relative, dense, firsts, positions
    visible: object
    if few:
        visible = seen = all_pairs(problem)
        if seen is not None:
            lookup.seen, (lookup.seen_batch, lookup.seen_head, lookup.seen_row) = seen.data_ptr(), seen.stride()[:3]
        return lookup, (*kept, visible)
    visible = lists = block_lists(problem)
    arrays = (lists.pattern, lists.start, lists.block, lists.bits_of, lists.bits)
    lookup.blocks = library.Blocks(*(x.ctypes.data for x in arrays))
    return lookup, (*kept, visible)
