"""Rounding: the engines in float32 and half precision against the float64 oracle and the materialized formula."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import softlookup as sl
from softlookup.engines import library

REAL = [n for n in sl.CHEAP if n not in ("argmax", "visible", "sink_weight")]


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest error relative to the largest finite entry of what was wanted (1e-6 at least: below, a statistic is 0)."""
    fine = want.isfinite()
    assert torch.equal(got.isfinite(), fine)
    scale = want[fine].abs().max().item()
    return (got.double() - want)[fine].abs().max().item() / max(scale, 1e-6)


def oracle(q, k, v, **arguments):
    with sl.engine("reference"):
        return sl.attend(q.double(), k.double(), v.double(), stats=REAL, **arguments)


@pytest.mark.parametrize(("heads", "n"), [(2, 512), (1, 2048)])
@pytest.mark.parametrize("score", [sl.ScaledDot(), sl.Cosine(), sl.ScaledDot(softcap=5.0)], ids=["scaled", "cosine", "softcap"])
@pytest.mark.parametrize("causal", [False, True])
def test_dot_family(heads, n, score, causal):
    q, k, v = (torch.randn(1, heads, n, 64) for _ in range(3))
    arguments = {"score": score, "mask": sl.Causal() if causal else None}
    want, want_stats = oracle(q, k, v, **arguments)
    assert want_stats.max_logit.max() <= 10
    # torch's own fused kernel is beyond the aim of 2e-6 on one of these inputs; we must not be worse than it there
    torch_error = error(F.scaled_dot_product_attention(q, k, v, is_causal=causal), want) if type(score) is sl.ScaledDot else 0
    for engine in ("native", "streaming") if library.load()[0] else ("streaming",):
        with sl.engine(engine):
            value, stats = sl.attend(q, k, v, stats=REAL, **arguments)
        assert error(value, want) <= max(2e-6, torch_error), engine
        for each in REAL:
            assert error(stats[each], want_stats[each]) <= 5e-6, f"{engine}: {each}"


def hard_case(kind: str) -> tuple[list[torch.Tensor], dict]:
    q, k, v = (torch.randn(1, 2, 512, 64) for _ in range(3))
    match kind:
        case "large logits":
            return [q * 30, k * 30, v], {}
        case "offset":
            return [q + 1000, k + 1000, v], {}
        case "equal":
            return [q, q.clone(), v], {"mask": sl.Causal()}
        case "hyperbolic":
            return [sl.Hyperbolic.lift(q * 0.3), sl.Hyperbolic.lift(k * 0.3), v], {"score": sl.Hyperbolic()}
        case "gaussian":
            return [q, k, v], {"score": sl.Gaussian(2.0)}
        case "gaussian, offset":
            return [q + 1000, k + 1000, v], {"score": sl.Gaussian(2.0)}
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["large logits", "offset", "equal", "hyperbolic", "gaussian", "gaussian, offset"])
def test_hard_inputs_no_worse_than_twice_the_materialized_formula(kind):
    tensors, arguments = hard_case(kind)
    want, want_stats = oracle(*tensors, **arguments)
    value, stats = sl.attend(*tensors, stats=REAL, **arguments)
    with sl.engine("reference"):
        plain, plain_stats = sl.attend(*tensors, stats=REAL, **arguments)
    assert error(value, want) <= 2 * error(plain, want) + 1e-6
    for each in REAL:
        ours, theirs = error(stats[each], want_stats[each]), error(plain_stats[each], want_stats[each])
        assert ours <= 2 * theirs + 1e-6, f"{each}: {ours:.1e}, materialized {theirs:.1e}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_no_worse_than_twice_torch(dtype):
    q, k, v = (torch.randn(1, 2, 512, 64).to(dtype) for _ in range(3))
    want = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    value, stats = sl.attend(q, k, v, stats=True)
    assert value.dtype == dtype and stats.entropy.dtype == torch.float32
    assert error(value, want) <= 2 * error(F.scaled_dot_product_attention(q, k, v), want)


GRADIENTS = ["large logits", "equal", "hyperbolic", "gaussian", "gaussian, offset"]


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_on_hard_inputs_no_worse_than_twice_the_materialized_formula(kind):
    tensors, arguments = hard_case(kind)
    up = torch.randn(tensors[2].shape)
    grads = []
    for which, dtype in (("streaming", torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        leaves = [t.to(dtype).detach().requires_grad_() for t in tensors]
        with sl.engine(which):
            grads.append(torch.autograd.grad(sl.attend(*leaves, **arguments), leaves, up.to(dtype)))
    for ours, theirs, want, what in zip(*grads, ("query", "key", "value"), strict=True):
        ours, theirs = error(ours, want), error(theirs, want)
        assert ours <= 2 * theirs + 1e-6, f"{what}: {ours:.1e}, materialized {theirs:.1e}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [1.0, 4.0])
def test_half_precision_gradients_and_statistics(dtype, causal, size):
    q, k, v = (torch.randn(1, 2, 256, 64).mul(s).to(dtype) for s in (size, 1, 1))
    mask = sl.Causal() if causal else None
    stats = sl.attend(q, k, v, mask=mask, stats=REAL)[1]
    want_stats = oracle(q, k, v, mask=mask)[1]
    for each in REAL:  # accumulated in float32: as exact as float32 inputs of these values
        assert error(stats[each], want_stats[each]) <= 5e-6 * size, each
    up = torch.randn(1, 2, 256, 64).to(dtype)
    grads = []
    for function, to in (
        (lambda *t: sl.attend(*t, mask=mask), dtype),
        (lambda *t: F.scaled_dot_product_attention(*t, is_causal=causal), dtype),
        (lambda *t: F.scaled_dot_product_attention(*t, is_causal=causal), torch.float64),
    ):
        leaves = [t.to(to).detach().requires_grad_() for t in (q, k, v)]
        grads.append(torch.autograd.grad(function(*leaves), leaves, up.to(to)))
    for ours, theirs, want in zip(*grads, strict=True):
        assert ours.dtype == dtype and error(ours, want) <= 2 * error(theirs, want)


@pytest.mark.parametrize("shift", [0, 1000])
def test_a_gaussian_is_as_exact_as_its_differences(shift):
    """The product of matrices loses no more than sums of squared differences would, wherever the data lie."""
    q, k, v = (torch.randn(1, 2, 300, 3) for _ in range(3))
    q, k = q + shift, k + shift

    def by_differences(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        s = -(q[..., :, None, :] - k[..., None, :, :]).square().sum(-1) / 2
        return torch.softmax(s, -1) @ v

    want = by_differences(q.double(), k.double(), v.double())
    plain = error(by_differences(q, k, v), want)
    assert error(sl.attend(q, k, v, score=sl.Gaussian()), want) <= 2 * plain + 2e-6


def test_hyperbolic_distance_on_a_line():
    """On a geodesic the distance is |x - y|; near q = k the product itself is rounded, by eps cosh^2, and d is its root."""
    x = torch.tensor([0.0, 1e-3, 0.5, 1.0], dtype=torch.float64)
    points = torch.stack([x.cosh(), x.sinh()], -1)
    s = sl.operator.scores_of(points, points, points, score=sl.Hyperbolic())
    torch.testing.assert_close(s, -(x[:, None] - x[None]).abs(), rtol=1e-8, atol=8e-8)


def test_entropy_by_an_independent_way():
    """Values [V, K] give E_p[k], so E_p[s] = scale q . E_p[k] and H = lse - E_p[s]."""
    q, k, v = (torch.randn(2, 3, 200, 16, dtype=torch.float64) for _ in range(3))
    both, stats = sl.attend(q, k, torch.cat([v, k], -1), mask=sl.Causal(), stats=True)
    expected = (q * both[..., 16:]).sum(-1) / 4
    torch.testing.assert_close(expected, stats.expected_logit)
    torch.testing.assert_close(stats.logsumexp - expected, stats.entropy)


def test_scaled_dot_product_is_a_gaussian_smoother_with_a_prior():
    """softmax(q.k / sqrt(d)) is the Nadaraya-Watson smoother, h^2 = sqrt(d), under the key prior exp(|k|^2 / (2 sqrt(d)))."""
    q, k, v = (torch.randn(2, 3, 50, 16, dtype=torch.float64) for _ in range(3))
    prior = k.square().sum(-1)[:, :, None, :] / (2 * 4)
    torch.testing.assert_close(sl.attend(q, k, v), sl.attend(q, k, v, score=sl.Gaussian(2.0), bias=prior))
