"""`attend` inside torch.compile and torch.export: one operator in an unbroken graph, the same numbers, the same gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import softlookup as sl
from softlookup import compiled

from .cases import Distance

LENGTHS, WEIGHT, W_Q, W_K = torch.tensor([20, 33]), torch.randn(4, 6), torch.randn(4, 6, 8), torch.randn(1, 6, 8)
FAR = sl.Causal() & ~sl.Window(5)
SLOPES, TABLE, DENSE, DIRECTIONS = torch.rand(4), torch.randn(8, 4), torch.randn(4, 33, 33), torch.randn(4, 3, 8)
CALLS: dict[str, Callable] = {
    "plain": lambda q, k, v: sl.attend(q, k, v, stats=True),
    "causal window": lambda q, k, v: sl.attend(q, k, v, mask=FAR, stats=("entropy", "received")),
    "lengths": lambda q, k, v: sl.attend(q, k, v, mask=sl.Lengths(LENGTHS) | sl.Prefix(3), stats="distance"),
    "not": lambda q, k, v: sl.attend(q, k, v, mask=sl.masks.Not(sl.Causal() & sl.Window(2)), stats=True),
    "tensor mask": lambda q, k, v: sl.attend(q, k, v, mask=DENSE > 0, stats=True),
    "softcap": lambda q, k, v: sl.attend(q, k, v, score=sl.ScaledDot(softcap=3.0), scale=0.5, stats=True),
    "gaussian": lambda q, k, v: sl.attend(q, k, v, score=sl.Gaussian(2.0), stats=True),
    "mahalanobis": lambda q, k, v: sl.attend(q, k, v, score=sl.Mahalanobis(DIRECTIONS), stats=True),
    "additive": lambda q, k, v: sl.attend(q, k, v, score=sl.Additive(WEIGHT, W_Q, W_K), stats=True),
    "sink": lambda q, k, v: sl.attend(q, k, v, normalizer=sl.Softmax(temperature=0.7, sink=0.5), stats=True),
    "alibi": lambda q, k, v: sl.attend(q, k, v, bias=sl.ALiBi(SLOPES), stats=True),
    "dropout": lambda q, k, v: sl.attend(q, k, v, dropout_p=0.3, seed=5, stats=True),
}


def inputs(kv_heads: int = 2, dtype: torch.dtype = torch.float32, length: int = 33) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, h, length, 8, dtype=dtype, requires_grad=True) for h in (4, kv_heads, kv_heads)]


def everything(call: Callable, leaves: list[Tensor]) -> list[Tensor]:
    """Value, statistics and the gradients of all of them."""
    y, stats = call(*leaves[:3])
    outputs = [y, *(stats[name] for name in stats)]
    loss = sum((x * (n + 1)).sin().sum() for n, x in enumerate(outputs) if x.requires_grad)
    return [*outputs, *torch.autograd.grad(loss, leaves)]


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()


def test_a_mask_that_is_turned_round_inside_breaks_the_graph_only():
    """torch does not trace ~ of an object."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, sl.Stats]:
        return sl.attend(q, k, v, mask=~(sl.Causal() & sl.Window(2)), stats=True)

    leaves = inputs()
    got = everything(torch.compile(call, backend="aot_eager"), leaves)
    assert all(map(torch.equal, got, everything(CALLS["not"], leaves)))


@pytest.mark.parametrize("name", CALLS)
def test_a_compiled_call_is_the_call(name):
    leaves = inputs()
    want = everything(CALLS[name], leaves)
    got = everything(torch.compile(CALLS[name], fullgraph=True, backend="aot_eager"), leaves)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("dtype", "engine"), [(torch.float64, "streaming"), (torch.bfloat16, "native")])
def test_other_dtypes(dtype, engine):
    leaves = inputs(dtype=dtype)
    assert sl.explain(*leaves).engine == engine
    want = everything(CALLS["plain"], leaves)
    got = everything(torch.compile(CALLS["plain"], fullgraph=True, backend="aot_eager"), leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_learned_parts_get_their_gradients():
    leaves = [*inputs(), *(t.clone().requires_grad_() for t in (WEIGHT, W_Q, W_K, TABLE, torch.tensor(0.3), torch.tensor(0.8)))]

    def call(u, a, b, w, sink, t):
        return lambda q, k, v: sl.attend(
            q,
            k,
            v,
            score=sl.Additive(u, a, b),
            bias=sl.RelativeTable(w, max_distance=20),
            normalizer=sl.Softmax(temperature=t, sink=sink),
            stats=("entropy", "max_weight"),
        )

    want = everything(call(*leaves[3:]), leaves)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def traced(*tensors):
        y, stats = call(*tensors[3:])(*tensors[:3])
        return y, stats.entropy, stats.max_weight

    y, entropy, weight = traced(*leaves)
    loss = sum((x * (n + 1)).sin().sum() for n, x in enumerate((y, weight, entropy)) if x.requires_grad)
    got = [y, weight, entropy, *torch.autograd.grad(loss, leaves)]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_by_inductor_without_gradients_and_with():
    leaves = inputs()
    call = torch.compile(lambda q, k, v: sl.attend(2 * q, k, v, mask=sl.Causal()) + 1, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(call(*leaves), sl.attend(2 * leaves[0], *leaves[1:], mask=sl.Causal()) + 1)
    grads = torch.autograd.grad(call(*leaves).square().sum(), leaves)
    want = torch.autograd.grad((sl.attend(2 * leaves[0], *leaves[1:], mask=sl.Causal()) + 1).square().sum(), leaves)
    for a, b in zip(grads, want, strict=True):
        torch.testing.assert_close(a, b)


def test_other_lengths_need_no_other_graph():
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph

    call = torch.compile(lambda q, k, v: sl.attend(q, k, v, mask=sl.Causal(), stats=True), dynamic=True, backend=count)
    for length in (33, 40, 57):
        leaves = [t.detach() for t in inputs(length=length)]
        assert torch.equal(call(*leaves)[0], sl.attend(*leaves, mask=sl.Causal()))
    assert len(graphs) == 1


def test_export_keeps_it_whole():
    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            y, stats = sl.attend(q, k, v, mask=sl.Causal(), stats="entropy")
            return y, stats.entropy

    leaves = [t.detach() for t in inputs()]
    program = torch.export.export(Model(), tuple(leaves))
    assert sum(node.target is torch.ops.softlookup.attend.default for node in program.graph.nodes) == 1
    for a, b in zip(program.module()(*leaves), Model()(*leaves), strict=True):
        assert torch.equal(a, b)


def test_dropout_without_a_seed_drops_anew():
    q, k, v = (t.detach() for t in inputs())
    call = torch.compile(lambda: sl.attend(q, k, v, dropout_p=0.5), fullgraph=True, backend="aot_eager")
    assert not torch.equal(call(), call())


def test_autocast():
    q, k, v = (t.detach() for t in inputs())

    def call(q, k, v):
        with torch.autocast("cpu", torch.bfloat16):
            return sl.attend(q, k, v)

    got = torch.compile(call, fullgraph=True, backend="aot_eager")(q, k, v)
    assert got.dtype == torch.bfloat16 and torch.equal(got, call(q, k, v))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    "arguments",
    [{"score": Distance(torch.tensor(2.0))}, {"mask": lambda b, h, i, j: i >= j}],
    ids=["score of one's own", "mask function"],
)
def test_python_of_ones_own_runs_between_graphs(arguments):
    leaves = inputs()
    call = torch.compile(lambda q, k, v: sl.attend(2 * q, k, v, stats=True, **arguments), backend="aot_eager")
    want = everything(lambda q, k, v: sl.attend(2 * q, k, v, stats=True, **arguments), leaves)
    for a, b in zip(everything(call, leaves), want, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(Exception, match="of one's own is Python"):
        torch.compile(lambda q, k, v: sl.attend(q, k, v, **arguments), fullgraph=True, backend="aot_eager")(*leaves)


def test_bad_input_says_the_same_line():
    q, k, v = (t.detach() for t in inputs())
    call = torch.compile(lambda q, k, v: sl.attend(q, k, v), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="expected queries and keys of the same width"):
        call(q, k[..., :5], v)


def test_the_oracle_has_no_compiled_form():
    call = torch.compile(lambda q, k, v: sl.attend(q, k, v), fullgraph=True, backend="aot_eager")
    with (
        sl.engine("reference"),
        pytest.raises(sl.SoftlookupError, match="expected the native or the streaming engine, got reference"),
    ):
        call(*inputs())


def test_torch_finds_nothing_wrong_with_the_operator():
    tensors: list[Tensor] = []
    text = compiled.text_of(
        {"score": sl.ScaledDot(), "normalizer": sl.Softmax(), "stats": ("entropy",), "mask": sl.Lengths(LENGTHS)}, tensors
    )
    # Its schema is not checked: torch does that in a mode that sees every operation inside, and stumbles over `torch.empty`.
    checks = "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static", "test_aot_dispatch_dynamic"
    torch.library.opcheck(torch.ops.softlookup.attend.default, (*inputs(), tensors, text), test_utils=checks)


def test_what_is_written_is_read_back():
    tensors: list[Tensor] = []
    mask = (sl.Causal() & sl.Window(4)) | ~sl.Documents(LENGTHS)
    text = compiled.written(mask, tensors)
    assert text is not None and repr(compiled.read(text, tensors)) == repr(mask)
    for number in (0.1, float("inf"), float("-inf"), -3, True, None, "text", ("a", 1.5)):
        text = compiled.written(number, tensors)
        assert text is not None and compiled.read(text, tensors) == number
