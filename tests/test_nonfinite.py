"""What is hidden has no effect, whatever it holds; what is visible and not finite spoils exactly the rows that see it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import softlookup as sl
from tests.cases import SCORES, Case, L, S, learned, mask_of, score_case, tensors
from tests.test_merge import random_loss

GARBAGE = [math.nan, -math.inf, 1e200]
NAMES = [*sl.CHEAP, "received"]


def visible(mask) -> Tensor:
    """(B, H, L, S): which pairs are seen, by the weights of equal scores."""
    q, k, v = tensors()
    return sl.operator.weights_of(0 * q, k, v, mask=mask) > 0


def run(case: Case) -> tuple[Tensor, sl.Stats, list[Tensor]]:
    """Value, statistics, and the gradients of a random mixture of them."""
    leaves = [t.detach().requires_grad_() if t.is_leaf else t for t in case.inputs[:3]] + case.parameters
    value, stats = sl.attend(*leaves[:3], **case.arguments, stats=NAMES)
    grads = torch.autograd.grad(random_loss(value, stats.__getitem__), leaves, allow_unused=True, materialize_grads=True)
    return value, stats, list(grads)


def equal(got, want) -> None:
    torch.testing.assert_close(got[0], want[0])
    for each in NAMES:
        torch.testing.assert_close(got[1][each], want[1][each], msg=lambda m, e=each: f"{e}: {m}")
    for g, w in zip(got[2], want[2], strict=True):
        torch.testing.assert_close(g, w)


def with_parameters(name: str) -> Case:
    case = score_case(name)
    for t in case.parameters:
        t.requires_grad_()
    return case


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("score", SCORES)
def test_hidden_keys_have_no_effect(score, garbage, any_engine):
    """Padding on the left, on the right and in the middle, under a causal mask: whole blocks and partial ones."""
    case = with_parameters(score)
    case.arguments["mask"] = mask_of("padding")
    hidden = ~visible(mask_of("padding")).any(2)[:, ::2]  # (B, Hkv, S)
    assert hidden.any() and not hidden.all()
    want = run(case)
    case.key = case.key.masked_fill(hidden[..., None], garbage)
    case.value = case.value.masked_fill(hidden[..., None], garbage)
    got = run(case)
    equal(got, want)
    assert not got[2][1][hidden].any() and not got[2][2][hidden].any()


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["lengths", "padding", "boolean", "float", "minimum", "function", "prefix", "documents"])
def test_the_unused_tail_of_a_cache(kind, garbage, any_engine):
    q, k, v = tensors(q=2)
    used = 8
    seen = torch.arange(S) < used
    mask = {
        "lengths": sl.Lengths(torch.tensor([used, used])),
        "padding": sl.Padding(seen.expand(2, S)),
        "boolean": seen.expand(2, S),
        "float": torch.zeros(S).double().masked_fill(~seen, -math.inf)[None],
        "minimum": torch.zeros(S).double().masked_fill(~seen, torch.finfo(torch.float64).min)[None],
        "function": lambda b, h, i, j: j < used,
        "prefix": sl.Prefix(used),
        "documents": sl.Documents((~seen).long(), torch.zeros(2, dtype=torch.long)),
    }[kind]
    want = run(Case(q, k[:, :, :used], v[:, :, :used], {"mask": sl.Prefix(used)}))
    tail = (torch.arange(S) >= used)[:, None]
    value, stats, (dq, dk, dv) = run(Case(q, k.masked_fill(tail, garbage), v.masked_fill(tail, garbage), {"mask": mask}))
    torch.testing.assert_close(value, want[0])
    for each in set(NAMES) - {"received", "distance"}:
        torch.testing.assert_close(stats[each], want[1][each])
    torch.testing.assert_close(stats.received[..., :used], want[1].received)
    assert not stats.received[..., used:].any() and not dk[:, :, used:].any() and not dv[:, :, used:].any()
    assert dq.isfinite().all() and dk.isfinite().all() and dv.isfinite().all()


@pytest.mark.parametrize("hole", [math.nan, math.inf])
@pytest.mark.parametrize("bias", ["mask", "bias"])
def test_garbage_behind_a_float_bias(bias, hole, any_engine):
    q, k, v = tensors()
    w = torch.randn(L, S, dtype=torch.float64)
    w[:, 5] = -math.inf
    w[:, 11] = torch.finfo(w.dtype).min
    want = run(Case(q, k, v, {bias: w}))
    k[:, :, [5, 11]], v[:, :, [5, 11]] = hole, hole
    equal(run(Case(q, k, v, {bias: w})), want)


@pytest.mark.parametrize("garbage", GARBAGE[:2])
@pytest.mark.parametrize("score", SCORES)
def test_a_query_spoils_its_own_row_only(score, garbage, any_engine):
    case = with_parameters(score)
    row = 3
    case.arguments["mask"] = sl.Causal() & sl.Window(4)
    want = run(case)
    case.query[:, 1, row, 2] = garbage
    value, stats, (dq, dk, dv, *_) = run(case)
    sees = visible(case.arguments["mask"])
    bad = torch.zeros(value.shape[:3], dtype=torch.bool)
    bad[:, 1, row] = True
    assert value[bad].isnan().all()
    torch.testing.assert_close(value[~bad], want[0][~bad])
    for each in sl.CHEAP:
        torch.testing.assert_close(stats[each][~bad], want[1][each][~bad], msg=lambda m, e=each: f"{e}: {m}")
        if each not in ("argmax", "visible", "sink_weight"):
            assert not stats[each][bad].isfinite().any(), each
    torch.testing.assert_close(dq[~bad], want[2][0][~bad])
    seen = (sees & bad[..., None]).any(2).view(2, 2, 2, S).any(2)  # (B, Hkv, S) keys that a bad query sees
    assert seen.any() and not seen.all()
    torch.testing.assert_close(dk[~seen], want[2][1][~seen])
    torch.testing.assert_close(dv[~seen], want[2][2][~seen])
    per_head = (sees & bad[..., None]).any(2)
    torch.testing.assert_close(stats.received[~per_head], want[1].received[~per_head])


@pytest.mark.parametrize("garbage", GARBAGE[:2])
@pytest.mark.parametrize("score", SCORES)
def test_a_visible_key_spoils_exactly_the_rows_that_see_it(score, garbage, any_engine):
    case = with_parameters(score)
    case.arguments["mask"] = sl.Causal() & sl.Window(4)
    want = run(case)
    case.key[:, 0, 6, 1] = garbage
    value, stats, (dq, *_) = run(case)
    sees = visible(case.arguments["mask"])[..., 6] & (torch.arange(4) < 2)[None, :, None]
    assert sees.any() and not sees.all()
    assert value[sees].isnan().all() and not stats.entropy[sees].isfinite().any() and not dq[sees].isfinite().any()
    torch.testing.assert_close(value[~sees], want[0][~sees])
    for each in sl.CHEAP:
        torch.testing.assert_close(stats[each][~sees], want[1][each][~sees], msg=lambda m, e=each: f"{e}: {m}")
    torch.testing.assert_close(dq[~sees], want[2][0][~sees])


@pytest.mark.parametrize("garbage", GARBAGE[:2])
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_a_visible_value_spoils_exactly_the_outputs_that_see_it(garbage, dropout_p, any_engine):
    q, k, v = tensors()
    arguments = {"mask": sl.Causal() & sl.Window(4), "dropout_p": dropout_p, "seed": 1}
    want = run(Case(q, k, v, arguments))
    v[:, 0, 6] = garbage
    value, stats, (dq, *_) = run(Case(q, k, v, arguments))
    sees = visible(arguments["mask"])[..., 6] & (torch.arange(4) < 2)[None, :, None]
    assert not value[sees].isfinite().any()
    torch.testing.assert_close(value[~sees], want[0][~sees])
    for each in NAMES:  # the distribution does not know the values
        torch.testing.assert_close(stats[each], want[1][each])
    torch.testing.assert_close(dq[~sees], want[2][0][~sees])


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_keys_hidden_from_a_gaussian_cannot_drag_its_centre(scale):
    """More than half of the keys are hidden and lie far away, as in a cache that is mostly unused."""
    q, k, v = (t.float() for t in tensors(s=40))
    mask = sl.Lengths(torch.tensor([8, 8]))
    want = sl.attend(q, k[:, :, :8], v[:, :, :8], score=sl.Gaussian(0.7), mask=sl.Prefix(8))
    k[:, :, 8:] += scale
    torch.testing.assert_close(sl.attend(q, k, v, score=sl.Gaussian(0.7), mask=mask), want)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("sink", [None, 0.5])
def test_empty_rows(score, sink, any_engine):
    case = with_parameters(score)
    case.arguments |= {"mask": sl.Prefix(torch.tensor([0, 7])), "normalizer": sl.Softmax(sink=sink)}
    value, stats, grads = run(case)
    assert not value[0].any() and value[1].any()
    assert (stats.logsumexp[0] == -math.inf).all() and (stats.max_logit[0] == -math.inf).all()
    assert (stats.argmax[0] == -1).all()
    assert (stats.sink_weight[0] == (0 if sink is None else 1)).all()
    for each in set(NAMES) - {"logsumexp", "max_logit", "argmax", "sink_weight"}:
        assert not stats[each][0].any(), each
    for g in grads[:3]:
        assert not g[0].any() and g[1].any()
    for g in grads:
        assert g.isfinite().all()


@pytest.mark.parametrize("mask", ["everything hidden", "boolean", "float", "function", "dropout", "hard"])
def test_a_lookup_that_sees_nothing_at_all(mask, any_engine):
    q, k, v = tensors()
    nothing = {
        "everything hidden": {"mask": sl.Prefix(0)},
        "boolean": {"mask": torch.zeros(L, S, dtype=torch.bool)},
        "float": {"mask": torch.full((L, S), -math.inf).double()},
        "function": {"mask": lambda b, h, i, j: (i < 0) & (j < 0)},
        "dropout": {"mask": sl.Prefix(0), "dropout_p": 0.5, "seed": 1},
        "hard": {"mask": sl.Prefix(0), "normalizer": sl.Softmax(temperature=0)},
    }[mask]
    value, stats, grads = run(Case(q, k * math.nan, v * math.nan, nothing))
    assert not value.any() and not stats.visible.any() and (stats.argmax == -1).all()
    assert not any(g.any() for g in grads)
    for each in set(NAMES) - {"logsumexp", "max_logit", "argmax"}:
        assert not stats[each].any(), each


def test_gradients_of_learned_parameters_where_rows_are_empty(any_engine):
    q, k, v = tensors()
    sink, t, w = (learned(4, positive=True).requires_grad_() for _ in range(3))
    normalizer = sl.Softmax(temperature=t, sink=sink)
    y = sl.attend(q, k, v, mask=sl.Prefix(0), normalizer=normalizer, bias=sl.ALiBi(w))
    grads = torch.autograd.grad(y.sum(), (sink, t, w), allow_unused=True, materialize_grads=True)
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_divergence_of_rows_that_see_no_garbage(garbage, any_engine):
    q, k, _ = tensors()
    r, s, _ = tensors()
    mask = sl.Causal() & sl.Window(4)
    want = sl.divergence((q, k), (r, s), mask=mask)
    k[:, 0, 6, 1] = garbage
    got = sl.divergence((q, k), (r, s), mask=mask)
    sees = visible(mask)[..., 6] & (torch.arange(4) < 2)[None, :, None]
    assert got[sees].isnan().all()
    torch.testing.assert_close(got[~sees], want[~sees])


@pytest.mark.parametrize("garbage", GARBAGE[:2])
def test_divergence_gradients_of_keys_that_a_bad_query_does_not_see(garbage, any_engine):
    (q, k, _), (r, s, _) = tensors(h=2), tensors(h=2)
    mask, row = sl.Causal() & sl.Window(4), 3

    def gradients(query):
        leaves = [t.detach().requires_grad_() for t in (query, k, r, s)]
        kl = sl.divergence((leaves[0], leaves[1]), (leaves[2], leaves[3]), mask=mask)
        return torch.autograd.grad(kl.sum(), leaves)

    want = gradients(q)
    bad = q.clone()
    bad[:, 1, row, 2] = garbage
    got = gradients(bad)
    i = row + S - L  # position of the bad query
    unseen = (torch.arange(S) <= i - 4) | (torch.arange(S) > i)
    assert unseen.any() and not unseen.all()
    for side in (1, 3):
        torch.testing.assert_close(got[side][:, :, unseen], want[side][:, :, unseen])
        torch.testing.assert_close(got[side][:, 0], want[side][:, 0])
    rows = torch.arange(L) != row
    torch.testing.assert_close(got[2][:, :, rows], want[2][:, :, rows])


@pytest.mark.parametrize("garbage", GARBAGE[:2])
def test_a_merge_of_parts_of_which_one_is_spoiled(garbage):
    q, k, v = tensors()
    k[:, :, 6, 1] = garbage
    whole = sl.attend(q, k, v, mask=sl.Causal() & sl.Window(4))
    parts = [
        sl.lookup(q, k[:, :, a:b], v[:, :, a:b], mask=sl.Causal() & sl.Window(4), key_offset=a, total_keys=S)
        for a, b in ((0, 5), (5, 9), (9, 13))
    ]
    torch.testing.assert_close(sl.merge(*parts).value, whole, equal_nan=True)
