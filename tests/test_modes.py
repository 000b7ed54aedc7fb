"""The operator under autocast, compile, no_grad, inference_mode and checkpoints; copies; and what importing loads."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import softlookup as sl
from tests.cases import MASKS, SCORES, Distance, case_of, mask_of, score_case, tensors

# ---- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_casts_what_torch_casts(dtype):
    q, k, v = tensors(dtype=dtype)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    with torch.autocast("cpu", torch.bfloat16):
        want = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
        got, stats = sl.attend(q, k, v, stats=True)
        drop_in = sl.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        lookup = sl.lookup(q, k, v).value
    assert got.dtype == drop_in.dtype == lookup.dtype == want.dtype
    assert stats.entropy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(stats.entropy, sl.attend(q, k, v, stats="entropy")[1].entropy, rtol=1e-2, atol=1e-2)
    grads = torch.autograd.grad(got.float().cos().sum() + stats.entropy.sum(), leaves)
    assert [g.dtype for g in grads] == [dtype] * 3


def test_autocast_does_not_reach_the_statistics():
    """Inputs are rounded once; everything after that is float32, as without autocast on the rounded inputs."""
    q, k, v = tensors(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value, stats = sl.attend(q, k, v, stats=True)
        received = sl.received(q, k)
        merged = sl.merge(
            *(sl.lookup(q, k[:, :, a:b], v[:, :, a:b], key_offset=a, total_keys=13) for a, b in ((0, 5), (5, 13)))
        )
    q, k, v = (t.bfloat16() for t in (q, k, v))
    want, want_stats = sl.attend(q, k, v, stats=True)
    torch.testing.assert_close(value, want)
    for each in sl.CHEAP:
        torch.testing.assert_close(stats[each], want_stats[each], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(merged.stats(each), want_stats[each], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(received, sl.received(q, k), rtol=1e-6, atol=1e-6)


def test_backward_under_autocast_and_with_a_learned_score():
    case = score_case("network", torch.float32)
    leaves = case.leaves()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sl.attend(case.query, case.key, case.value, **case.arguments).float().square().sum()
        got = torch.autograd.grad(loss, leaves)
    want = torch.autograd.grad(sl.attend(case.query, case.key, case.value, **case.arguments).square().sum(), leaves)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == torch.float32
        torch.testing.assert_close(g, w, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_with_a_score_of_its_own(dtype, any_engine):
    case = score_case("network", torch.float32)
    case.leaves()
    want = sl.attend(case.query, case.key, case.value, **case.arguments)
    half = copy.deepcopy(case.arguments["score"])
    half.first, half.second = half.first.to(dtype), half.second.to(dtype)
    q, k, v = (t.detach().to(dtype).requires_grad_() for t in (case.query, case.key, case.value))
    got, stats = sl.attend(q, k, v, score=half, stats=True)
    assert got.dtype == dtype and stats.entropy.dtype == torch.float32
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)
    grads = torch.autograd.grad(got.float().sum() + stats.entropy.sum(), [q, k, v, *half.tensors()])
    assert all(g.dtype == dtype and g.isfinite().all() for g in grads)


# ---- no gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("score", SCORES)
def test_without_gradients(mode, score, any_engine):
    case = score_case(score)
    want, want_stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=[*sl.CHEAP, "received"])
    for t in case.inputs:
        t.requires_grad_()
    with mode():
        got, stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=[*sl.CHEAP, "received"])
        assert not got.requires_grad and not stats.entropy.requires_grad and not stats.received.requires_grad
        kl = sl.divergence((case.query, case.key), (case.query, case.key), **case.arguments)
        assert not kl.requires_grad and (kl.abs() < 1e-12).all()
    torch.testing.assert_close(got, want)
    for each in want_stats:
        torch.testing.assert_close(stats[each], want_stats[each])


def test_inputs_made_in_inference_mode():
    with torch.inference_mode():
        q, k, v = tensors()
    want = F.scaled_dot_product_attention(*(t.clone() for t in (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))))
    torch.testing.assert_close(sl.attend(q, k, v), want)


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 2), (3,), (1, 3)])
@pytest.mark.parametrize("score", ["bilinear", "network", "additive", "gaussian"])
def test_gradients_of_only_some_inputs(which, score):
    case = score_case(score)
    whole = case.leaves()
    want = torch.autograd.grad(sl.attend(case.query, case.key, case.value, **case.arguments).cos().sum(), whole)
    for n, t in enumerate(whole):
        t.requires_grad_(n in which)
    y = sl.attend(case.query, case.key, case.value, **case.arguments)
    got = torch.autograd.grad(y.cos().sum(), [whole[n] for n in which])
    torch.testing.assert_close(got, tuple(want[n] for n in which))


def test_gradients_add_up_and_the_graph_can_be_kept():
    q, k, v = (t.requires_grad_() for t in tensors())
    y, stats = sl.attend(q, k, v, stats="entropy")
    both = torch.autograd.grad(y.sum() + stats.entropy.sum(), (q, k, v), retain_graph=True)
    first = torch.autograd.grad(y.sum(), (q, k, v), retain_graph=True)
    second = torch.autograd.grad(stats.entropy.sum(), (q, k, v), materialize_grads=True, allow_unused=True)
    torch.testing.assert_close(both, tuple(a + b for a, b in zip(first, second, strict=True)))


def test_checkpointing():
    q, k, v = (t.requires_grad_() for t in tensors())

    def run(q, k, v):
        y, stats = sl.attend(q, k, v, mask=sl.Causal(), stats=("entropy", "sink_mass"))
        return y.cos().sum() + stats.entropy.sum() + stats.sink_mass.sum()

    want = torch.autograd.grad(run(q, k, v), (q, k, v))
    for reentrant in (False, True):
        loss = torch.utils.checkpoint.checkpoint(run, q, k, v, use_reentrant=reentrant)
        loss.backward()
        torch.testing.assert_close(tuple(t.grad for t in (q, k, v)), want)
        for t in (q, k, v):
            t.grad = None


def test_inputs_are_never_written_to():
    case = score_case("softcap")
    case.arguments["mask"] = mask_of("padding")
    before = [t.clone() for t in case.inputs]
    leaves = case.leaves()
    value, stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=[*sl.CHEAP, "received"])
    kept = value.detach().clone(), stats.entropy.detach().clone()
    (value.sum() + stats.entropy.sum() + stats.received.cos().sum()).backward()
    sl.attend(case.query * 2, case.key, case.value, **case.arguments, stats=True)
    torch.testing.assert_close([t.detach() for t in leaves], before, rtol=0, atol=0)
    torch.testing.assert_close((value.detach(), stats.entropy.detach()), kept, rtol=0, atol=0)


# ---- compile ---------------------------------------------------------------------------------------------------------


# Where a graph breaks, dynamo itself looks at the gradients of tensors that are no leaves.
dynamo_looks = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


class Layer(nn.Module):
    """A small attention layer that adds the statistics' gradient to its loss."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.sink = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        y, stats = sl.attend(
            torch.relu(q), k, v, mask=sl.Causal() & sl.Window(5), normalizer=sl.Softmax(sink=self.sink), stats=True
        )
        return torch.tanh(self.out(y.transpose(1, 2).flatten(2))), stats.entropy, stats.visible


@dynamo_looks
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_inside_a_compiled_module(backend):
    torch._dynamo.reset()
    layer, x = Layer(), torch.randn(2, 11, 16)
    results = []
    for run in (layer, torch.compile(layer, backend=backend)):
        layer.zero_grad()
        y, entropy, visible = run(x)
        (y.square().sum() - 0.1 * entropy.mean()).backward()
        results.append((y, entropy, visible, *(p.grad.clone() for p in layer.parameters())))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@dynamo_looks
@pytest.mark.parametrize("name", ["attend", "lookup", "received", "divergence", "drop in"])
def test_compiled_functions(name):
    torch._dynamo.reset()
    functions = {
        "attend": lambda q, k, v: sl.attend(q * 2, k, v, mask=sl.Causal(), stats="entropy")[1].entropy * 3,
        "lookup": lambda q, k, v: sl.merge(sl.lookup(q, k, v, total_keys=26), sl.lookup(q, k, v, key_offset=13)).value * 3,
        "received": lambda q, k, v: sl.received(q * 2, k) * 3,
        "divergence": lambda q, k, v: sl.divergence((q, k), (q * 2, k)) * 3,
        "drop in": lambda q, k, v: sl.scaled_dot_product_attention(q * 2, k, v, enable_gqa=True) * 3,
    }
    q, k, v = (t.requires_grad_() for t in tensors())
    run = functions[name]
    compiled = torch.compile(run, backend="aot_eager")
    want, got = run(q, k, v), compiled(q, k, v)
    torch.testing.assert_close(got, want)
    both = [torch.autograd.grad(x.cos().sum(), (q, k, v), allow_unused=True, materialize_grads=True) for x in (want, got)]
    torch.testing.assert_close(*both)


# ---- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("score", s) for s in SCORES] + [("mask", m) for m in MASKS if m not in ("function", "heads")] + [("bias", "alibi")],
)
def test_copies_compute_the_same(duplicate, kind, name):
    case = case_of(kind, name)
    want = sl.attend(case.query, case.key, case.value, **case.arguments)
    twins = {key: duplicate(x) for key, x in case.arguments.items()}
    torch.testing.assert_close(sl.attend(case.query, case.key, case.value, **twins), want, rtol=0, atol=0)


def test_a_copy_has_parameters_of_its_own():
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    score = Distance(w)
    twin = copy.deepcopy(score)
    sl.attend(*tensors(), score=twin).sum().backward()
    assert w.grad is None and twin.width.grad is not None


# ---- explain and import ----------------------------------------------------------------------------------------------


def test_explain_names_the_engine_and_why_not_the_others():
    q, k, v = tensors()
    plan = sl.explain(q, k, v, mask=sl.Causal(), stats=True)
    assert plan.engine == "streaming" and set(plan.reasons) == {e.name for e in sl.running.ENGINES} - {"streaming"}
    lines = str(plan).splitlines()
    assert lines[0] == "engine: streaming" and "  not reference: can run this, but streaming is preferred" in str(plan)
    with sl.engine("reference"):
        plan = sl.explain(q, k, v)
        assert plan.engine == "reference"
        assert 'not streaming: not asked for: inside softlookup.engine("reference")' in str(plan)
    with pytest.raises(sl.SoftlookupError, match="^temperature: expected"):
        sl.explain(q, k, v, normalizer=sl.Softmax(temperature=-1))


def test_an_engine_is_asked_for_inside_its_block_only():
    q, k, v = tensors()
    with pytest.raises(ZeroDivisionError), sl.engine("reference"):
        raise ZeroDivisionError
    assert sl.explain(q, k, v).engine == "streaming"


def test_import_loads_torch_and_numpy_only():
    heavy = "transformers typer rich pandas tokenizers safetensors gguf accelerate plotly sklearn click matplotlib"
    code = "import torch, sys; before = set(sys.modules); import softlookup\n" + (
        "softlookup.attend(*[torch.randn(3, 4)] * 3, stats=True)\n"
        f"print(sorted({{m.split('.')[0] for m in set(sys.modules) - before}} & set({heavy.split()!r})))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in sl.__all__:
        if name not in ("watch", "look", "Inspection"):
            assert getattr(sl, name) is not None
    assert set(sl.__all__) <= set(dir(sl))
    with pytest.raises(AttributeError, match="has no attribute 'attention'"):
        sl.attention  # noqa: B018
