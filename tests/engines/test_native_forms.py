"""The native engine beyond plain products: additive and hyperbolic scores, temperatures per row, dropout, learned biases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import softlookup as sl
from softlookup.engines import library
from softlookup.summary import DERIVED

from .test_native import close, inputs

pytestmark = pytest.mark.skipif(library.load()[0] is None, reason=f"no native engine: {library.load()[1]}")

Arguments = Callable[..., dict[str, Any]]


def agree(
    tensors: list[Tensor], parameters: list[Tensor], arguments: Arguments, within: float = 5e-6, grads_within: float = 2e-5
):
    """Value, statistics and the gradients of inputs and parameters equal the float64 oracle's; without gradients too.

    within: of the largest entry, as `grads_within`, which counts gradients below a thousandth of all gradients as that."""

    def look(engine: str, dtype: torch.dtype) -> tuple[list[str], list[Tensor], list[Tensor]]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in (*tensors, *parameters)]
        said = arguments(*leaves[3:])
        with sl.engine(engine):
            y, s = sl.attend(*leaves[:3], stats=[*sl.CHEAP, "received"], **said)
            with torch.no_grad():
                plain = sl.attend(*leaves[:3], **said)
        torch.testing.assert_close(y, plain, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)
        torch.manual_seed(1)
        outputs = [y, *(s[name] for name in s.names if s[name].requires_grad)]
        loss = sum((x * torch.randn(x.shape, dtype=torch.float64).to(dtype)).sum() for x in outputs)
        return ["value", *s.names], [y, *(s[name] for name in s.names)], list(torch.autograd.grad(loss, leaves))

    leaves = [t.detach().float().requires_grad_() for t in (*tensors, *parameters)]
    assert sl.explain(*leaves[:3], **arguments(*leaves[3:])).engine == "native"
    names, got, grads = look("native", torch.float32)
    _, want, want_grads = look("reference", torch.float64)
    for name, a, b in zip(names, got, want, strict=True):
        close(name, a, b, within)
    floor = 1e-3 * max(float(g.abs().max()) for g in want_grads)
    for place, (a, b) in enumerate(zip(grads, want_grads, strict=True)):
        scale = max(float(b.abs().max()), floor)
        error = float((a.double() - b).abs().max()) / scale
        assert error <= grads_within, f"gradient {place}: error {error:.1e}"


@pytest.mark.parametrize("n", [1, 4, 9, 250])
@pytest.mark.parametrize("size", [0.5, 1.5, 8.0], ids=["eight to a division", "four to a division", "by tanh"])
def test_additive(n, size):
    torch.manual_seed(0)
    parameters = [torch.randn(4, 21), torch.randn(4, 21, 16) * size / 4, torch.randn(1, 21, 16) * size / 4]
    agree(
        inputs(n, 257, 16, 12, kv_heads=2),
        parameters,
        lambda u, a, b: {"score": sl.Additive(u, a, b), "mask": sl.Causal()},
        2e-5,
    )


def test_additive_ranges_are_what_the_test_above_says():
    for size, low, high in ((0.5, 0, 5), (1.5, 5, 10), (8.0, 10, 99)):
        torch.manual_seed(0)
        w = [torch.randn(4, 21), torch.randn(4, 21, 16) * size / 4, torch.randn(1, 21, 16) * size / 4]
        form = sl.Additive(*w).lower(*inputs(250, 257, 16, 12, kv_heads=2)[:2])
        reach = max(float(form.query.abs().max()), float(form.key.abs().max()))
        assert low < reach <= high


def test_additive_with_one_weight_for_all_heads_biases_and_temperature():
    torch.manual_seed(0)
    parameters = [torch.randn(1, 8), torch.randn(4, 8, 16) / 4, torch.randn(4, 8, 16) / 4, torch.rand(4), torch.rand(4) + 0.5]
    agree(
        inputs(97, 130, 16, 16),
        parameters,
        lambda u, a, b, slopes, t: {
            "score": sl.Additive(u, a, b),
            "bias": sl.ALiBi(slopes),
            "normalizer": sl.Softmax(temperature=t),
        },
    )


@pytest.mark.parametrize("n", [3, 200])
def test_hyperbolic(n):
    tensors = inputs(n, 230, 7, 16, kv_heads=2)
    tensors[:2] = [sl.Hyperbolic.lift(t.double() * 0.5) for t in tensors[:2]]
    tensors = [t.float() for t in tensors]
    agree(tensors, [], lambda: {"score": sl.Hyperbolic(), "mask": sl.Causal()}, 2e-5, 1e-4)


@pytest.mark.parametrize("shape", [(), (4,), (2, 4, 201), (1, 1, 201)])
@pytest.mark.parametrize(
    "score", [sl.ScaledDot(), sl.ScaledDot(softcap=2.0), sl.Gaussian(2.0)], ids=["scaled", "softcap", "gaussian"]
)
def test_learned_temperature(shape, score):
    torch.manual_seed(0)
    agree(
        inputs(201, 201, 16, 16, kv_heads=2),
        [torch.rand(shape) + 0.5],
        lambda t: {"score": score, "normalizer": sl.Softmax(temperature=t), "mask": sl.Causal()},
    )


@pytest.mark.parametrize("n", [3, 200])
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropout_drops_what_the_other_engines_drop(n, p):
    agree(inputs(n, 300, 16, 16, kv_heads=2), [], lambda: {"dropout_p": p, "seed": 2**40 + 7, "mask": sl.Causal()})


@pytest.mark.parametrize(
    "shape",
    [
        (2, 4, 200, 301),
        (1, 4, 200, 301),
        (2, 1, 200, 301),
        (1, 1, 200, 301),
        (2, 4, 1, 301),
        (200, 301),
        (2, 4, 200, 1),
        (1, 1, 1, 1),
    ],
)
def test_gradient_of_a_dense_bias(shape):
    torch.manual_seed(0)
    agree(
        inputs(200, 301, 16, 16, kv_heads=2),
        [torch.randn(shape)],
        lambda bias: {"bias": bias, "mask": sl.Causal(), "score": sl.ScaledDot(softcap=2.0)},
        # What adds to a whole row moves no weight: what is left of its gradient is a difference of large sums.
        grads_within=1e-4 if shape[-1] == 1 else 2e-5,
    )


def test_gradient_of_a_dense_bias_is_the_same_every_time():
    torch.manual_seed(0)
    q, k, v = inputs(300, 300, 16, 16)
    bias = torch.randn(300, 300, requires_grad=True)
    first, *others = (torch.autograd.grad(sl.attend(q, k, v, bias=bias).square().sum(), bias)[0] for _ in range(5))
    assert all(torch.equal(first, g) for g in others)


@pytest.mark.parametrize(
    "mask", [None, sl.Causal(), sl.Window(30), ~sl.Prefix(300)], ids=["all", "causal", "window", "nothing"]
)
@pytest.mark.parametrize(("heads", "kv_heads", "threads"), [(4, 4, 2), (4, 1, 2), (1, 1, 2), (4, 2, 3)])
def test_received(mask, heads, kv_heads, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    q, k = torch.randn(2, heads, 250, 16), torch.randn(2, kv_heads, 300, 16)
    single, double = ([t.detach().to(dtype).requires_grad_() for t in (q, k)] for dtype in (torch.float32, torch.float64))
    got, want = (sl.received(*pair, mask=mask) for pair in (single, double))
    close("received", got, want, 5e-6)
    torch.manual_seed(1)
    g = torch.randn(want.shape, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(got, single, g.float()), torch.autograd.grad(want, double, g), strict=True):
        close("gradient", a, b, 2e-5)


@pytest.mark.parametrize("length", [1, 40, 250], ids=["few", "some", "many"])
@pytest.mark.parametrize("mask", [None, sl.Causal(), ~sl.Prefix(300)], ids=["all", "causal", "nothing"])
def test_what_follows_from_a_summary_is_the_same_from_the_kernel(length, mask):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, length, 16), torch.randn(2, 2, 300, 16), torch.randn(2, 2, 300, 8)
    summary = sl.lookup(q, k, v, mask=mask)
    assert set(summary.derived) == set(DERIVED)
    plain = replace(summary, derived={})
    for name in DERIVED:
        close(name, summary.stats(name), plain.stats(name), 2e-6)


def test_what_follows_from_a_summary_follows_again_from_a_merged_one():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 50, 16), torch.randn(1, 2, 90, 16), torch.randn(1, 2, 90, 8)
    stands = {"query_offset": 40, "total_keys": 90}
    parts = [sl.lookup(q, k[:, :, a:b], v[:, :, a:b], key_offset=a, **stands) for a, b in ((0, 30), (30, 90))]
    assert parts[0].derived and not sl.merge(*parts).derived
    for name in DERIVED:
        close(name, sl.merge(*parts).stats(name), sl.lookup(q, k, v).stats(name), 5e-6)
