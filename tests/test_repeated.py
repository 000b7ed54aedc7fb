"""Calls that come again with other tensors, which the library describes once."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch

import softlookup as sl
from softlookup import repeated
from softlookup.engines import library, native

pytestmark = pytest.mark.skipif(library.load()[0] is None, reason=f"no native engine: {library.load()[1]}")

KINDS = {
    "plain": {},
    "causal": {"mask": sl.Causal()},
    "window": {"mask": sl.Window(5)},
    "wider window": {"mask": sl.Window(9)},
    "scaled": {"scale": 0.3},
    "capped": {"score": sl.ScaledDot(softcap=2.0)},
    "warm": {"normalizer": sl.Softmax(temperature=2.0)},
    "hard": {"normalizer": sl.Softmax(temperature=0)},
    "placed": {"mask": sl.Causal(), "query_offset": 3},
    "sinks": {"sinks": 4},
    "one's own mask": {"mask": lambda b, h, i, j: (i + j) % 2 == 0},
    "dropped": {"dropout_p": 0.5, "seed": 1},
    "with a sink": {"normalizer": sl.Softmax(sink=1.0)},
    "of log length": {"score": sl.ScaledDot(ssmax=0.5)},
    "cosine": {"score": sl.Cosine()},
}


def inputs(seed, queries=20, keys=20, width=16):
    torch.manual_seed(seed)
    return torch.randn(2, 4, queries, width), torch.randn(2, 2, keys, width), torch.randn(2, 2, keys, 8)


def check(tensors, stats=sl.CHEAP, **arguments):
    value, got = sl.attend(*tensors, stats=stats, **arguments)
    with sl.engine("reference"):
        want_value, want = sl.attend(*(x.double() for x in tensors), stats=stats, **arguments)
    torch.testing.assert_close(value.double(), want_value, rtol=1e-5, atol=1e-5)
    for name in got.names:
        ours, theirs = got[name].double(), want[name].double()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_calls_of_every_kind_by_turns():
    repeated._known.clear()
    for seed in range(3):
        for kind in KINDS.values():
            check(inputs(seed), **kind)
            check(inputs(seed), stats=("entropy", "max_weight"), **kind)
            torch.testing.assert_close(sl.attend(*inputs(seed), **kind), sl.attend(*inputs(seed), stats=True, **kind)[0])
        for queries, keys in ((1, 20), (3, 20), (20, 21), (20, 250)):
            check(inputs(seed, queries, keys))
        check(tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(seed)))
        check(tuple(x[..., ::2] for x in inputs(seed)))
        check(tuple(x[:, :, ::2] for x in inputs(seed)))
    assert sum(known is not None for known in repeated._known.values()) > 30


def test_a_call_like_one_before_is_not_described_again(monkeypatch):
    sl.attend(*inputs(0))
    monkeypatch.setattr(repeated, "canonical", None)
    monkeypatch.setattr(native, "lookup_of", None)
    want = torch.nn.functional.scaled_dot_product_attention(*inputs(1), enable_gqa=True)
    torch.testing.assert_close(sl.attend(*inputs(1)), want)


def test_gradients_and_engines_asked_for_go_their_own_way():
    sl.attend(*inputs(0))
    leaves = [x.requires_grad_() for x in inputs(1)]
    sl.attend(*leaves).sum().backward()
    assert all(x.grad is not None and x.grad.any() for x in leaves[2:])
    with torch.no_grad():
        assert not sl.attend(*leaves).requires_grad
    with sl.engine("streaming"):
        torch.testing.assert_close(sl.attend(*inputs(1)), sl.attend(*leaves).detach())
    with torch.autocast("cpu", torch.bfloat16):
        assert sl.attend(*inputs(1)).dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_to_the_streaming_engine(bad):
    sl.attend(*inputs(0), stats=True)
    q, k, v = inputs(1)
    k[0, 0, 3, 2] = bad
    got, got_stats = sl.attend(q, k, v, stats=True)
    with sl.engine("streaming"):
        want, want_stats = sl.attend(q, k, v, stats=True)
    torch.testing.assert_close(got, want, equal_nan=True)
    for name in got_stats.names:
        torch.testing.assert_close(got_stats[name], want_stats[name], equal_nan=True)


def test_bad_arguments_are_refused_as_ever():
    sl.attend(*inputs(0))
    q, k, v = inputs(0)
    wrong = {"scale": ("1", math.nan), "sinks": (0, [1]), "normalizer": (3,), "mask": (3,), "score": ("dot",)}
    for name, bad in ((name, bad) for name, values in wrong.items() for bad in (*values, *values)):
        with pytest.raises(sl.SoftlookupError, match="expected"):
            sl.attend(q, k, v, **{name: bad})
    with pytest.raises(sl.SoftlookupError, match="value: expected"):
        sl.attend(q, k, v[:, :, 1:])
    with pytest.raises(sl.SoftlookupError, match="stats: expected"):
        sl.attend(q, k, v, stats="entropie")


def test_no_tensor_is_kept_and_not_ever_more_descriptions():
    repeated._known.clear()
    tensors = [*inputs(0)]
    alive = [weakref.ref(x) for x in tensors]
    sl.attend(*tensors)
    del tensors
    gc.collect()
    assert repeated._known and not any(each() for each in alive)
    for keys in range(1, 2 * repeated.MOST):
        sl.attend(*inputs(0, 1, keys))
        assert len(repeated._known) <= repeated.MOST


def test_a_mask_that_is_changed_by_a_subclass_is_another():
    class Strict(sl.Causal):
        def visible(self, tile):
            return tile.j < tile.i

    sl.attend(*inputs(0), mask=sl.Causal())
    check(inputs(0), mask=Strict())
