"""Additive attention against Keras's formula, written out here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import softlookup as sl
from softlookup.nn import AdditiveAttention


def by_hand(module, query, key, value, keep=None):
    """scores = sum(scale * tanh(query + value)), as Keras's AdditiveAttention has it, over projected queries and keys."""
    q, k = module.of_query(query), module.of_key(key)
    scores = (module.u[0] * torch.tanh(q.unsqueeze(-2) + k.unsqueeze(-3))).sum(-1)
    if keep is not None:
        scores = scores.masked_fill(~keep[:, None, :], -torch.inf)
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_formula_with_gradients(padded):
    torch.manual_seed(0)
    module = AdditiveAttention(12, 10, 16).double()
    query, key, value = torch.randn(3, 5, 12), torch.randn(3, 7, 10), torch.randn(3, 7, 6)
    lengths = torch.tensor([7, 3, 1])
    keep = torch.arange(7) < lengths[:, None] if padded else None
    leaves = [x.double().requires_grad_() for x in (query, key, value)]
    got = module(*leaves, mask=sl.Lengths(lengths) if padded else None)
    want = by_hand(module, *leaves, keep)
    torch.testing.assert_close(got, want)
    sources = [*leaves, *module.parameters()]
    g = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, sources, g), torch.autograd.grad(want, sources, g), strict=True):
        torch.testing.assert_close(a, b)


def test_keys_projected_once_are_asked_many_times():
    torch.manual_seed(0)
    module = AdditiveAttention(12, 10, 16)
    query, states = torch.randn(3, 5, 12), torch.randn(3, 7, 10)
    keys = module.keys(states)
    whole, seen = module(query, states, stats=("entropy", "max_weight"))
    for t in range(5):
        part, here = module.ask(query[:, t : t + 1], keys, states, stats="entropy")
        torch.testing.assert_close(part, whole[:, t : t + 1])
        torch.testing.assert_close(here.entropy, seen.entropy[:, :, t : t + 1])


def test_widths_are_checked():
    with pytest.raises(sl.SoftlookupError, match="widths of at least 1"):
        AdditiveAttention(4, 0, 4)


def test_it_learns_to_look_where_it_should():
    torch.manual_seed(0)
    module = AdditiveAttention(8, 8, 32)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(300):
        keys = nn.functional.one_hot(torch.argsort(torch.rand(64, 8), -1), 8).float()
        at = torch.randint(8, (64, 1))
        found = module(nn.functional.one_hot(at, 8).float(), keys)
        loss = (found - nn.functional.one_hot(at, 8)).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def test_a_graph_is_compiled_whole():
    module, query, states = AdditiveAttention(12, 10, 16), torch.randn(3, 5, 12), torch.randn(3, 7, 10)
    compiled = torch.compile(lambda: module(query, states), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), module(query, states))
