"""In torch.compile and torch.export: an unbroken graph, the same numbers, the same gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from softlookup import linear


def features() -> linear.FeatureMap:
    return linear.RandomFeatures(4, 8)


MADE = {
    "features": lambda: linear.LinearAttention(8, 2, kv_heads=1, features=features()),
    "all keys": lambda: linear.LinearAttention(8, 2, causal=False),
    "gated delta": lambda: linear.GatedDelta(8, 2),
}


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()


def everything(made: torch.nn.Module, act, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = act(x)
    return [y, *torch.autograd.grad(y.cos().sum(), [x, *made.parameters()])]


@pytest.mark.parametrize("name", ["features", "gated delta"])
def test_a_compiled_module_is_the_module(name):
    torch.manual_seed(0)
    made, x = MADE[name](), torch.randn(2, 20, 8)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(everything(made, compiled, x), everything(made, made, x))
    x[1, 7, 2] = math.nan
    torch.testing.assert_close(compiled(x.requires_grad_()), made(x), equal_nan=True)


@pytest.mark.parametrize("name", MADE)
def test_an_exported_module_is_the_module(name):
    made, x = MADE[name]().eval(), torch.randn(2, 20, 8)
    torch.testing.assert_close(torch.export.export(made, (x,)).module()(x), made(x))


def test_weights_that_vanish_are_nan_in_a_graph():
    """Where they are an error otherwise."""
    q, k, v = 300 * torch.randn(1, 1, 9, 4), 300 * torch.randn(1, 1, 9, 4), torch.ones(1, 1, 9, 2)
    by = features()
    out = torch.compile(lambda *x: linear.attend(*x, features=by), fullgraph=True, backend="aot_eager")(q, k, v)
    assert out.isnan().all(-1).any() and torch.equal(out.isnan().any(-1), out.isnan().all(-1))


def test_a_compiled_step_of_a_map_that_learns_says_its_map():
    """Its checksum is outside of the graph."""
    by, x = features(), [torch.randn(1, 2, 3, 4) for _ in range(3)]
    got, state = torch.compile(lambda *x: linear.advance(*x, None, features=by), backend="aot_eager")(*x)
    torch.testing.assert_close(got, linear.advance(*x, state=None, features=by)[0])
    assert state.features == by.identity()
