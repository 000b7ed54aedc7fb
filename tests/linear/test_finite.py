"""What is not finite, forgets all, is large or is in half precision: it reaches what reads it, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from softlookup import linear

from .test_linear import E, H, by_pairs, step_by_step

L = 21
BAD = [math.nan, -math.inf]
DOUBLE = {"dtype": torch.float64}


def tensors() -> list[Tensor]:
    make = torch.Generator().manual_seed(1)
    return [torch.randn(2, n, L, w, generator=make, **DOUBLE) for n, w in ((H, E), (2, E), (2, 5))]


def where_nan(x: Tensor) -> Tensor:
    """(B, H, L), and that a row is NaN as a whole or finite."""
    assert torch.equal(x.isnan().any(-1), x.isnan().all(-1)) and not x.isinf().any()
    return x.isnan().all(-1)


# ---- features ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("which", ["query", "key", "value"])
@pytest.mark.parametrize("by", [linear.EluPlusOne(), linear.RandomFeatures(E)], ids=["elu", "random"])
def test_a_query_is_nan_where_it_reads_what_is_not_finite(by, which, bad):
    clean = tensors()
    q, k, v = (x.clone() for x in clean)
    {"query": q, "key": k, "value": v}[which][1, 1, 9, 2] = bad
    steps = torch.arange(L)
    reads = torch.zeros(2, H, L, dtype=torch.bool)
    heads = [1] if which == "query" else [2, 3]  # those of key head 1
    reads[1, heads] = steps == 9 if which == "query" else steps >= 9
    want = linear.attend(*clean, features=by, causal=True)
    for chunk in (1, 4, 64):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = linear.attend(*leaves, features=by, causal=True, chunk=chunk)
        assert torch.equal(where_nan(out), reads)
        torch.testing.assert_close(out[~reads], want[~reads])
        assert all(g.isfinite().all() for g in torch.autograd.grad(out[~reads].sum(), leaves))
    first, state = linear.advance(*(x[:, :, :11] for x in (q, k, v)), None, features=by)
    second, _ = linear.advance(*(x[:, :, 11:] for x in (q, k, v)), state, features=by)
    assert torch.equal(where_nan(torch.cat([first, second], 2)), reads)
    everyone = reads if which == "query" else reads.any(-1, keepdim=True).expand_as(reads)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out, want = linear.attend(*leaves, features=by), linear.attend(*clean, features=by)
    assert torch.equal(where_nan(out), everyone)
    torch.testing.assert_close(out[~everyone], want[~everyone])
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.nansum(), leaves))


def test_features_that_overflow_reach_later_queries_only():
    class Exp(linear.FeatureMap):
        def forward(self, x, first=0):
            return x.exp()

    q, k, v = tensors()
    k[0, 0, 9, 0] = 800
    for chunk in (1, 4, 64):
        bad = where_nan(linear.attend(q, k, v, features=Exp(), causal=True, chunk=chunk))
        assert bad.sum() == 2 * (L - 9) and bad[0, :2, 9:].all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("by", [linear.EluPlusOne(), linear.RandomFeatures(E)], ids=["elu", "random"])
def test_what_is_left_out_may_be_anything(by, causal):
    q, k, v = tensors()
    keep = torch.ones(2, L, dtype=torch.bool)
    keep[0, [0, 3]] = keep[1, 7] = False
    want = by_pairs(q, k, v, by.double(), causal, keep)
    k[0, :, 0], v[0, :, 3], v[1, :, 7] = math.nan, math.inf, math.nan
    k.requires_grad_(), v.requires_grad_()
    got = linear.attend(q, k, v, features=by, causal=causal, keep=keep)
    torch.testing.assert_close(got, want)
    for g in torch.autograd.grad(got.sum(), (k, v)):
        assert g.isfinite().all() and not g.transpose(1, 2)[~keep].any()


@pytest.mark.parametrize("kind", ["positive", "trigonometric"])
def test_random_features_of_long_keys_are_relative_to_the_longest(kind):
    """Keys whose features are all 0 or infinite in float32; float64 holds them as they are. The largest so far changes often.

    Exponents are up to 250, which float32 has to 1e-5, so that weights are right to about that; trigonometric ones, which
    nearly cancel here, are held to float64 only."""
    by = linear.RandomFeatures(E, 64, kind=kind, scale=1.0)
    q, k, v = tensors()
    if kind == "positive":
        q, k = q + 2, k + 7
    else:
        q, k = q / 4, (18 + torch.sin(torch.arange(L, **DOUBLE))[:, None] / 10) * normalize(k, dim=-1)
    single = [x.float() for x in (q, k, v)]
    assert not (by.key(single[1]).isfinite() & (by.key(single[1]) != 0)).any()
    by.double()
    for causal in (False, True):
        want = by_pairs(q, k, v, by, causal)
        for chunk in (4, 64):
            torch.testing.assert_close(linear.attend(q, k, v, features=by, causal=causal, chunk=chunk), want)
            got = linear.attend(*single, features=by, causal=causal, chunk=chunk).double()
            assert kind != "positive" or ((got - want).norm(dim=-1) < 2e-4 * (1 + want.norm(dim=-1))).all()
    state, out = None, []
    for t in range(L):
        part, state = linear.advance(*(x[:, :, t : t + 1] for x in (q, k, v)), state, features=by)
        out.append(part)
    torch.testing.assert_close(torch.cat(out, 2), by_pairs(q, k, v, by, True))


def test_sizes_of_keys_have_no_end():
    """Keys of one direction, ever longer, beyond every float's range: the last one read is all that counts."""
    by = linear.RandomFeatures(2, 8, kind="trigonometric")
    q, v = torch.zeros(1, 1, 30, 2), torch.randn(1, 1, 30, 3)
    k = 10 * torch.arange(1.0, 31)[:, None] * torch.ones(1, 1, 30, 2)
    torch.testing.assert_close(linear.attend(q, k, v, features=by, causal=True, chunk=7), v)
    assert by.key(k).isinf().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_keep_their_state_in_single(dtype):
    """What is computed is that of the same numbers in float32, rounded once."""
    q, k, v = (x.to(dtype) for x in tensors())
    single = [x.float() for x in (q, k, v)]
    gate, rate = -torch.rand(2, 2, L), torch.rand(2, 2, L)
    for by in (linear.EluPlusOne(), linear.RandomFeatures(E), linear.Hedgehog(E, H), linear.CosFormer(L)):
        want, at_end = linear.advance(*single, None, features=by)
        with torch.autocast("cpu", torch.bfloat16):
            got, state = linear.advance(q, k, v, None, features=by)
            whole = linear.attend(q, k, v, features=by, causal=True)
        assert torch.equal(got, want.to(dtype)) and torch.equal(whole, got) and torch.equal(state.sums, at_end.sums)
    k = normalize(single[1], dim=-1).to(dtype)
    want, at_end = linear.recur(k.float(), k.float(), single[2], log_gate=gate, rate=rate)
    with torch.autocast("cpu", torch.bfloat16):
        got, state = linear.recur(k, k, v, log_gate=gate, rate=rate)
    assert torch.equal(got, want.to(dtype)) and torch.equal(state, at_end)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_learned_map_takes_inputs_of_any_dtype(dtype):
    q, k, v = (x.to(dtype) for x in tensors())
    learned = linear.Hedgehog(E, H)
    want = by_pairs(q.double(), k.double(), v.double(), learned.double(), True)
    got = linear.attend(q, k, v, features=learned.float(), causal=True)
    torch.testing.assert_close(got.double(), want, **({"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}))


def test_no_queries_have_no_values():
    """In every form, with the batch that inputs broadcast to."""
    q, k, v = tensors()
    none = q[:1, :, :0], k[:, :, :0], v[:, :, :0]
    nobody = torch.ones(2, 0, dtype=torch.bool)
    assert linear.attend(none[0], k, v).shape == (2, H, 0, 5)
    assert linear.attend(none[0][0, 0], k[0, 0], v[0, 0]).shape == (0, 5)
    assert linear.attend(*none, causal=True, keep=nobody).shape == (2, H, 0, 5)
    out, state = linear.advance(*none, None, keep=nobody)
    assert out.shape == (2, H, 0, 5) and linear.advance(*none, state, keep=nobody)[0].shape == (2, H, 0, 5)
    assert linear.recur(k[:1, :, :0], *none[1:])[0].shape == (2, 2, 0, 5)


def test_no_steps_change_nothing():
    q, k, v = tensors()
    none = [x[:, :, :0] for x in (q, k, v)]
    for by in (linear.EluPlusOne(), linear.RandomFeatures(E)):
        out, state = linear.advance(*none, None, features=by)
        assert out.shape == (2, H, 0, 5) and state.position == 0 and not state.sums.any()
        got, after = linear.advance(q, k, v, state, features=by)
        torch.testing.assert_close(got, linear.attend(q, k, v, features=by, causal=True))
        assert linear.advance(*none, after, features=by)[1] is after
    out, state = linear.recur(none[1], none[1], none[2])
    assert out.shape == (2, 2, 0, 5) and torch.equal(state, torch.zeros(2, 2, E, 5, **DOUBLE))
    assert linear.recur(none[1], none[1], none[2], state=state + 1)[1].eq(1).all()


# ---- recurrences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("width", [(), (E,)], ids=["one gate", "each dimension"])
def test_gates_may_forget_all_and_lose_no_digits(delta, width):
    """Gates of 0, and strong ones, whose sum over a chunk is large beside what is between two steps."""
    _, k, v = tensors()
    k = normalize(k, dim=-1)
    gate = -0.2 * torch.rand(2, 2, L, *width, **DOUBLE)
    gate[0, :, [4, 5, 12]], gate[1, :, 3:6] = -math.inf, -1e12
    if width:
        gate[..., 2] = -0.1  # and a dimension that remembers beside them
    rate = torch.rand(2, 2, L, **DOUBLE) if delta else None
    leaves = [x.requires_grad_() for x in (k, v, gate, *([rate] if delta else []))]
    want, at_end = step_by_step(k, k, v, gate, rate, torch.ones(2, 2, E, 5, **DOUBLE))
    grads = torch.autograd.grad(want.cos().sum(), leaves, retain_graph=True)
    assert all(g.isfinite().all() for g in grads)
    for chunk in (1, 4, 64):
        state = torch.ones(2, 2, E, 5, **DOUBLE)
        got, after = linear.recur(k, k, v, log_gate=gate, rate=rate, state=state, chunk=chunk)
        torch.testing.assert_close((got, after), (want, at_end), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(got.cos().sum(), leaves), grads, rtol=1e-11, atol=1e-11)
        single = (None if x is None else x.detach().float() for x in (k, k, v, gate, rate))
        q, k32, v32, g32, r32 = single
        got = linear.recur(q, k32, v32, log_gate=g32, rate=r32, state=state.float(), chunk=chunk)[0]
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("which", ["query", "key", "value", "log_gate", "rate", "state"])
@pytest.mark.parametrize("chunk", [4, 64])
def test_a_recurrence_is_nan_from_where_it_reads_what_is_not_finite(chunk, which, bad):
    _, key, value = tensors()
    clean = {"query": key.clone(), "key": normalize(key, dim=-1), "value": value, "rate": torch.rand(2, 2, L, **DOUBLE)}
    clean |= {"log_gate": -torch.rand(2, 2, L, **DOUBLE), "state": torch.randn(2, 2, E, 5, **DOUBLE)}
    soiled = {name: x.clone() for name, x in clean.items()}
    where = (1, 0, 3, 2) if which == "state" else (1, 0, 9, 2)[: soiled[which].ndim]
    soiled[which][where] = math.nan if which == "log_gate" else bad
    steps = torch.arange(L)
    reads = torch.zeros(2, 2, L, dtype=torch.bool)
    reads[1, 0] = steps == 9 if which == "query" else steps >= (0 if which == "state" else 9)
    want, _ = linear.recur(**clean)
    leaves = {name: x.requires_grad_() for name, x in soiled.items()}
    got, after = linear.recur(**leaves, chunk=chunk)
    assert torch.equal(where_nan(got), reads)
    torch.testing.assert_close(got[~reads], want[~reads])
    assert all(g.isfinite().all() for g in torch.autograd.grad(got[~reads].sum(), list(leaves.values())))
    _, middle = linear.recur(**{name: x if name == "state" else x[:, :, :12] for name, x in soiled.items()})
    second, end = linear.recur(**{name: middle if name == "state" else x[:, :, 12:] for name, x in soiled.items()})
    assert torch.equal(where_nan(second), reads[:, :, 12:])
    for state in (after, end):
        assert torch.equal(state.isnan().all(-1).all(-1), state.isnan().any(-1).any(-1))
        assert state.isnan().any() == (which != "query") and not state[0].isnan().any()
