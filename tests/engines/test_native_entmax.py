"""Entmax 1.5 and sparsemax of the native engine against the float64 oracle: value, statistics, and the value's gradients."""

from __future__ import annotations

import pytest
import torch

import softlookup as sl
from softlookup.engines import library, native_entmax, whole_rows
from softlookup.summary import CHEAP
from tests.engines.test_native import MASKS, additive, close, inputs

pytestmark = pytest.mark.skipif(library.load()[0] is None, reason=f"no native engine: {library.load()[1]}")

RULES = {"entmax": sl.Entmax, "sparsemax": sl.Sparsemax}


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]


@pytest.fixture
def never_whole_rows(monkeypatch):
    """Fails where the kernels leave the work to torch."""

    def refuse(*_):
        raise AssertionError("expected the kernels to run")

    monkeypatch.setattr(whole_rows, "forward", refuse)
    monkeypatch.setattr(whole_rows, "backward", refuse)


def agrees(tensors, **arguments) -> None:
    """Value and all statistics."""
    names = [*CHEAP, "support", "total_weight", "threshold"]
    if tensors[0].shape[2] > tensors[1].shape[2]:
        names.remove("distance")
    y, got = sl.attend(*tensors, stats=names, **arguments)
    with sl.engine("reference"):
        want_y, want = sl.attend(*(t.double() for t in tensors), stats=names, **arguments)
    close("value", y, want_y, 4e-6)  # by its slope u, a weight u^2 follows an error of its score more than softmax's u^2 does
    for name in names:
        close(name, got[name], want[name], 1e-5)


def value_agrees(tensors, learned=(), **arguments) -> None:
    """Value and gradients, where the value alone has one. learned: makes arguments of tensors."""
    single = [t.detach().requires_grad_() for t in tensors]
    double = [t.detach().double().requires_grad_() for t in tensors]
    y = sl.attend(*single[:3], **(arguments | (learned(*single[3:]) if learned else {})))
    torch.manual_seed(1)
    weights = torch.randn_like(y)
    grads = torch.autograd.grad((y * weights).sum(), single)
    with sl.engine("reference"):
        want = sl.attend(*double[:3], **(arguments | (learned(*double[3:]) if learned else {})))
        want_grads = torch.autograd.grad((want * weights.double()).sum(), double)
    close("value", y, want, 4e-6)
    for n, (g, w) in enumerate(zip(grads, want_grads, strict=True)):
        close(f"gradient {n}", g, w, 1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("n", "s"), [(300, 300), (65, 257), (3, 5000), (2, 200)])
def test_masks(mask, n, s, rule):
    torch.manual_seed(0)
    agrees(inputs(n, s, 16, 16), mask=MASKS[mask](n, s), normalizer=rule())


@pytest.mark.parametrize("mask", MASKS)
def test_gradients_of_the_value(mask, rule, never_whole_rows):
    torch.manual_seed(0)
    value_agrees(inputs(300, 300, 24, 16, kv_heads=2), mask=MASKS[mask](300, 300), normalizer=rule())


@pytest.mark.parametrize(
    ("n", "s", "width", "value_width"), [(1, 1, 1, 1), (2, 3, 7, 5), (193, 97, 8, 1), (97, 193, 1, 8), (40, 200, 512, 512)]
)
def test_shapes(n, s, width, value_width, rule, never_whole_rows):
    value_agrees(inputs(n, s, width, value_width), normalizer=rule())


ARGUMENTS = {
    "cool": {"scale": 0.4},
    "sharp": {"scale": 0.6},
    "gaussian": {"score": sl.Gaussian(2.0)},
    "soft-cap": {"score": sl.ScaledDot(softcap=2.0)},
    "dropout": {"dropout_p": 0.3, "seed": 3},
    "slopes": {"bias": sl.ALiBi(torch.tensor([0.5, 0.25, 0.1, 0.0]))},
    "additive": {"score": additive(18)},
    "sinks": {"sinks": 3},
    "moved": {"query_offset": 7},
    "anywhere": {"query_offset": torch.arange(150).flip(0)},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name, rule):
    agrees(inputs(150, 220, 18, 20), mask=sl.Causal(), normalizer=rule(), **ARGUMENTS[name])


def test_learned_temperatures_and_biases(rule, never_whole_rows):
    torch.manual_seed(0)
    temperature, table, dense = torch.rand(1, 4, 201) + 0.5, torch.randn(8, 4), torch.randn(1, 4, 201, 301)
    tensors = inputs(201, 301, 16, 16)
    value_agrees([*tensors, temperature], lambda t: {"normalizer": rule(temperature=t)}, mask=sl.Causal())
    value_agrees([*tensors, table], lambda t: {"bias": sl.RelativeTable(t, max_distance=40)}, normalizer=rule(temperature=0.7))
    value_agrees([*tensors, dense], lambda t: {"bias": t}, normalizer=rule(), mask=sl.Window(50))


def test_scores_far_apart_and_ties(rule, never_whole_rows):
    """Thousands of equal keys, one far above, all far from 0: the search ends, and weights sum to 1."""
    for level, spread in ((0.0, 0.0), (1e4, 1e-3), (-3e4, 1.0), (0.0, 1e4)):
        s = level + spread * torch.randn(5, 3000)
        s[0, 7] += 50
        value, stats = sl.attend(
            torch.eye(5),
            s.T.contiguous(),
            torch.ones(3000, 2),
            score=sl.Dot(),
            normalizer=rule(),
            stats=["total_weight", "support"],
        )
        near = 1e-5 + 4e-7 * (abs(level) + spread) * 55  # scores of 1e4 are known to 5e-4
        assert (value - 1).abs().max() < near and (stats.total_weight - 1).abs().max() < near
        assert (stats.support >= 1).all() and (spread > 0 or (stats.support[1:] == 3000).all())


def test_what_is_not_finite_is_left_to_torch(rule):
    q, k, v = inputs(50, 60, 8, 8)
    k[0, 1, 3] = torch.nan
    y, stats = sl.attend(q, k, v, mask=sl.Causal(), normalizer=rule(), stats="entropy")
    with sl.engine("reference"):
        want = sl.attend(q, k, v, mask=sl.Causal(), normalizer=rule())
    assert torch.equal(y.isnan(), want.isnan()) and y.isnan().any() and not y.isnan().all()
    q, k = q * 1e19, k.nan_to_num() * 1e19
    assert sl.attend(q, k, v, normalizer=rule()).isnan().all(-1).any()


def test_who_runs_what():
    q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))
    for normalizer, engine in (
        (sl.Entmax(1.5), "native"),
        (sl.Entmax(2), "native"),
        (sl.Entmax(1.3), "streaming"),
        (sl.TopK(2), "streaming"),
    ):
        assert sl.explain(q, k, v, normalizer=normalizer).engine == engine
    assert not native_entmax.serves(sl.running.canonical(q, k, v, normalizer=sl.Entmax(torch.tensor(1.5)))[0])
    plan = str(sl.explain(q, k, v, normalizer=sl.TopK(2)))
    assert "its weights are those of Softmax, Entmax(1.5) or Sparsemax, not of TopK(" in plan
