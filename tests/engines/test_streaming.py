"""Laws of the streaming engine: it equals the float64 oracle in value, statistics and gradients, however it is blocked."""

from __future__ import annotations

import pytest
import torch

import softlookup as sl
from softlookup.engines import tiling
from tests.cases import ALL_CASES, Case, case_of, mask_of, tensors

DIFFERENTIABLE = [n for n in sl.CHEAP if n not in ("max_logit", "max_weight", "argmax", "visible", "sink_weight")]


def both(case: Case, **more):
    value, stats = sl.attend(case.query, case.key, case.value, **case.arguments, **more)
    with sl.engine("reference"):
        want, want_stats = sl.attend(case.query, case.key, case.value, **case.arguments, **more)
    return value, stats, want, want_stats


def test_small_budgets_do_cut_blocks(budget):
    case = Case(*tensors())
    problem = sl.running.canonical(case.query, case.key, case.value)[0]
    cut = tiling.Tiling(problem)
    blocks = [b for q in cut.queries() for b in cut.blocks(q)]
    assert len(blocks) == 1 if tiling.CPU_SCORES > 1000 else len(blocks) > 20


@pytest.mark.parametrize(("kind", "name"), ALL_CASES)
def test_equals_the_oracle(kind, name, budget):
    case = case_of(kind, name)
    value, stats, want, want_stats = both(case, stats=True)
    torch.testing.assert_close(value, want, rtol=1e-11, atol=1e-11)
    for each in sl.CHEAP:
        torch.testing.assert_close(stats[each], want_stats[each], rtol=1e-10, atol=1e-10, msg=lambda m, e=each: f"{e}: {m}")


@pytest.mark.parametrize(("kind", "name"), ALL_CASES)
def test_gradients_equal_the_oracle(kind, name, budget):
    case = case_of(kind, name)
    leaves = case.leaves()
    names = [*DIFFERENTIABLE, "received"] + (["sink_weight"] if name.startswith("sink") else [])
    grads = []
    for which in ("streaming", "reference"):
        torch.manual_seed(1)
        with sl.engine(which):
            value, stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=names)
            loss = (value * torch.randn_like(value)).sum()
            for each in names:
                x = stats[each]
                loss = loss + (torch.where(x.isfinite(), x, 0) * torch.randn_like(x)).sum()
        grads.append(torch.autograd.grad(loss, leaves))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_each_gradient_alone(name):
    """Each coefficient c0 … c5 on its own, so that no two errors can cancel."""
    case = case_of("mask", "padding")
    leaves = case.leaves()[:2]
    grads = []
    for which in ("streaming", "reference"):
        with sl.engine(which):
            _, stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=name)
            x = torch.where(stats[name].isfinite(), stats[name], 0)
            grads.append(torch.autograd.grad((x * x.detach().cos()).sum(), leaves))
    assert max(g.abs().max() for g in grads[1]) > 1e-3
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropout_is_a_function_of_place(p, budget):
    case = case_of("mask", "causal")
    leaves = case.leaves()
    value, stats, want, want_stats = both(case, stats=True, dropout_p=p, seed=11)
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(stats.entropy, want_stats.entropy)
    torch.testing.assert_close(torch.autograd.grad(value.cos().sum(), leaves), torch.autograd.grad(want.cos().sum(), leaves))


def test_few_masks_of_blocks_are_kept():
    """Whole rows meet a causal mask in as many ways as there are blocks: all of them would be the matrix."""
    x = torch.zeros(1, 1, 4096, 1)
    cut = tiling.Tiling(sl.running.canonical(x, x, x, mask=sl.Causal(), normalizer=sl.TopK(4))[0])
    partly = [block for at in cut.queries() for block in cut.blocks(at) if block.visible is not None]
    kept = [each.seen.numel() for each in cut.seen.values() if isinstance(each, tiling.Visible)]
    assert len(partly) == 4096 // cut.rows and sum(kept) <= (tiling.KEPT + 1) * cut.budget < 4096**2 / 4


def test_dropout_keeps_the_share_and_the_mean():
    q, k, v = tensors(q=200, s=300, b=1, h=2)
    v = torch.ones_like(v)
    y = sl.attend(0 * q, k, v, dropout_p=0.25, seed=3)
    kept = y[..., 0] * 0.75  # uniform weights: the share of kept keys
    assert abs(kept.mean() - 0.75) < 0.005
    assert abs(kept.std() - (0.75 * 0.25 / 300) ** 0.5) < 0.004
    assert not torch.equal(y, sl.attend(0 * q, k, v, dropout_p=0.25, seed=4))


def test_hard_retrieval(budget):
    case = case_of("mask", "padding")
    case.arguments["normalizer"] = sl.Softmax(temperature=0)
    case.key[:, :, 5] = case.key[:, :, 4]  # a tie
    case.leaves()
    value, stats, want, want_stats = both(case, stats=True)
    torch.testing.assert_close(value, want)
    for each in sl.CHEAP:
        torch.testing.assert_close(stats[each], want_stats[each], msg=lambda m, e=each: f"{e}: {m}")
    assert (stats.max_weight == 0.5).any()
    (value.sum() + stats.entropy.sum()).backward()
    assert not case.query.grad.any() and not case.key.grad.any() and case.value.grad.any()


def test_argmax_takes_the_lowest_index_of_a_tie(budget):
    q, k, v = tensors()
    q, k = (4 * q).round(), (4 * k).round()  # products of integers are exact in any order of summation
    k[:, :, 7:11] = k[:, :, :4]
    _, stats = sl.attend(q, torch.cat([k, k], -2), torch.cat([v, v], -2), stats="argmax", scale=1.0)
    assert not ((stats.argmax >= 7) & (stats.argmax < 11)).any() and (stats.argmax < 13).all()


def test_any_shape():
    for lead in ((), (3,), (2, 3), (2, 1, 2)):
        q, k, v = torch.randn(*lead, 6, 4), torch.randn(*lead, 5, 4), torch.randn(*lead, 5, 2)
        y, stats = sl.attend(q, k, v, stats=True if len(lead) < 0 else [n for n in sl.CHEAP if n != "distance"])
        torch.testing.assert_close(y, torch.nn.functional.scaled_dot_product_attention(q, k, v))
        assert stats.entropy.shape == (*lead, 6)
    q, k, v = torch.randn(2, 3, 4, 6, 4), torch.randn(1, 3, 2, 7, 4), torch.randn(2, 1, 2, 7, 2)  # broadcast, grouped
    y = sl.attend(q, k, v)
    want = torch.nn.functional.scaled_dot_product_attention(q, k.repeat_interleave(2, 2), v.repeat_interleave(2, 2))
    torch.testing.assert_close(y, want)


def test_strided_inputs_and_gradients():
    x = torch.randn(2, 11, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    q, k, v = (x[:, :, n].transpose(1, 2) for n in range(3))
    got = torch.autograd.grad(sl.attend(q, k, v, mask=sl.Causal()).cos().sum(), x)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(got, torch.autograd.grad(want.cos().sum(), x))


@pytest.mark.parametrize("e", [1, 3, 17, 64, 130])
def test_any_width(e):
    q, k, v = tensors(e=e, ev=2 * e + 1)
    value, _, want, _ = both(Case(q, k, v, {"mask": mask_of("window")}), stats=True)
    torch.testing.assert_close(value, want)


def test_double_backward_is_one_clear_line():
    q, k, v = (t.requires_grad_() for t in tensors())
    (g,) = torch.autograd.grad(sl.attend(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(sl.UnsupportedError, match="no second derivative.*reference"):
        g.sum().backward()
    with sl.engine("reference"):
        (g,) = torch.autograd.grad(sl.attend(q, k, v).square().sum(), q, create_graph=True)
    g.sum().backward()
    assert q.grad.isfinite().all()
