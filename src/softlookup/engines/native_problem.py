"""A problem as the kernels take it, and its gradients as they give them (csrc/softlookup.h)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from ..biases import Bias, DenseBias
from ..masks import hidden
from ..problem import Problem
from ..scores import AdditiveForm, Product, SoftCap
from . import library
from .block_lists import all_pairs, block_lists, written_out
from .dropout import mixed_seed, threshold

MOST_PARTS = 2**23
"""Numbers in the query gradients of all parts of the keys together."""


def done(result: int) -> bool:
    """False where something was not finite."""
    if result == 2:
        raise MemoryError("softlookup: not enough memory for the native engine's buffers")
    return result == 0


def gradients(
    problem: Problem, lookup: library.Lookup, average: Tensor | None, planes: dict[str, Tensor], few: bool
) -> list[Tensor] | None:
    """Gradients of `problem.tensors()` by a backward kernel, None where something is not finite. average: that of the average;
    planes: coefficients by their names in `library.COEFFICIENTS`, (B, H, L)."""
    native, _ = library.load()
    assert native is not None
    planes = {name: x.contiguous() for name, x in planes.items()}
    average = None if average is None else readable(average)
    upstream = library.Upstream(
        library.Strided(None, 0, 0, 0) if average is None else library.Strided.of(average),
        *(planes[name].data_ptr() if name in planes else None for name in library.COEFFICIENTS),
    )
    sums = Sums(problem, few)
    run = native.sl_backward_few if few else native.sl_backward
    good = done(run(ctypes.byref(lookup), ctypes.byref(upstream), ctypes.byref(sums.described())))
    return sums.gradients() if good else None


class Sums:
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


def readable(x: Tensor) -> Tensor:
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
    query, key, value = (readable(x) for x in (form.query, form.key, problem.value))
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
