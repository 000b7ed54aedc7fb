"""The native recurrence is that of torch, and serves where no gradient is wanted."""

from __future__ import annotations

import pytest
import torch

from softlookup import linear
from softlookup.engines import library
from softlookup.linear import native

needs_library = pytest.mark.skipif(library.load()[0] is None, reason="no native engine")


def steps(batch: int, heads: int, length: int, width: int, value_width: int) -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(length + width)
    shapes = [(batch, heads, length, w) for w in (width, width, value_width)] + [(batch, heads, width, value_width)]
    return [torch.randn(shape, generator=make) for shape in shapes]


@needs_library
@pytest.mark.parametrize("length", [1, 47, 48, 49, 500])
@pytest.mark.parametrize(("width", "value_width"), [(1, 1), (8, 8), (16, 5), (64, 65), (80, 16)])
def test_it_is_the_recurrence(length, width, value_width):
    q, k, v, state = steps(2, 3, length, width, value_width)
    got = native.added(q, k, v, state)
    assert got is not None
    exact, after = linear.recur(q.double(), k.double(), v.double(), state=state.double())
    for x, want in zip(got, (exact, after), strict=True):
        torch.testing.assert_close(x.double(), want, rtol=1e-5, atol=2e-6 * float(want.abs().max()))


@needs_library
def test_it_reads_tensors_however_they_lie_and_changes_none():
    q, k, v, state = steps(2, 3, 70, 8, 6)
    want = native.added(q, k, v, state)
    others = [x.mT.contiguous().mT for x in (q, k, v, state)]
    for x, y in zip(native.added(*others), want, strict=True):
        torch.testing.assert_close(x, y)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    for x, y in zip(native.added(*turned, state), want, strict=True):
        torch.testing.assert_close(x, y)
    assert torch.equal(state, steps(2, 3, 70, 8, 6)[3])


def test_tangents_are_not_lost():
    q, k, v = steps(1, 2, 10, 4, 4)[:3]
    with torch.autograd.forward_ad.dual_level():
        out = linear.recur(torch.autograd.forward_ad.make_dual(q, torch.ones_like(q)), k, v)[0]
        tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(tangent, linear.recur(torch.ones_like(q), k, v)[0])  # linear in the query


def test_small_weights_do_not_overflow():
    t = torch.full((1, 1, 2, 2), 1e-20)
    ones = torch.ones(1, 1, 2, 1)
    torch.testing.assert_close(linear.attend(t, t, ones, features=linear.ReLU(0)), ones, atol=1e-3, rtol=0)  # 2e-40: few digits


def test_with_and_without_it_values_are_the_same(monkeypatch):
    q, k, v = steps(2, 3, 3000, 8, 6)[:3]
    found = [linear.attend(q, k, v, causal=True), linear.attend(q.requires_grad_(), k, v, causal=True)]
    assert found[1].requires_grad
    monkeypatch.setattr(native, "load", lambda: (None, ""))
    found.append(linear.attend(q.detach(), k, v, causal=True))
    for x in found[1:]:
        torch.testing.assert_close(x.detach(), found[0])
