"""Laws of normalizers other than softmax: entmax, sparsemax, top-k, sigmoid, hard, and those of one's own."""

from __future__ import annotations

import math
from copy import copy

import entmax
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import softlookup as sl
from softlookup import sparse
from softlookup.engines import whole_rows
from tests.cases import EV, MASKS, RULES, SCORES, B, Case, Cauchy, Exponential, H, L, S, mask_of, rule_case, score_case, tensors
from tests.conftest import cut_blocks
from tests.test_gradcheck import finite

NAMES = [*sl.CHEAP, "support", "total_weight", "threshold", "received"]
REAL = [
    n for n in NAMES if n not in ("max_logit", "max_weight", "argmax", "visible", "support", "jacobian_trace", "sink_weight")
]
SPARSE = ["sparsemax", "entmax", "entmax_low", "entmax_high", "entmax_learned", "entmax_head", "topk"]


GAPS = sparse.Blocks(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]]).bool(), 4, 4)
"""Of rows that see keys on both sides of some that they do not."""


@pytest.fixture(params=[2**18, 110])
def budget(request, monkeypatch):
    """The streaming engine, with everything at once, and with blocks of two rows (whole ones) of two heads."""
    cut_blocks(monkeypatch, request.param)
    with sl.engine("streaming"):
        yield


def loss_of(value: Tensor, stats: sl.Stats, names=REAL) -> Tensor:
    torch.manual_seed(1)
    loss = (value * torch.randn_like(value)).sum()
    for name in names:
        loss = loss + (finite(stats[name]) * torch.randn_like(stats[name])).sum()
    return loss


def attend(case, **more):
    return sl.attend(case.query, case.key, case.value, **case.arguments, **more)


# ---- against definitions ---------------------------------------------------------------------------------------------


def bisected(s: Tensor, alpha: float) -> Tensor:
    """Entmax in float64, its threshold by bisection."""
    s = s.double() * (alpha - 1)
    low, high = s.amax(-1, keepdim=True) - 1, s.amax(-1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        above = (s - middle).clamp(min=0).pow(1 / (alpha - 1)).sum(-1, keepdim=True) >= 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    p = (s - low).clamp(min=0).pow(1 / (alpha - 1))
    return p / p.sum(-1, keepdim=True)


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("keys", [1, 2, 37, 3000])
@pytest.mark.parametrize("alpha", [1.1, 1.5, 1.75, 2.0])
def test_entmax_is_that_of_its_package_and_of_bisection(alpha, keys, spread):
    q, k, v = torch.randn(1, 2, 20, 8), torch.randn(1, 2, keys, 8) * spread, torch.randn(1, 2, keys, 4)
    s = q @ k.mT / 8**0.5
    normalizer = sl.Sparsemax() if alpha == 2 else sl.Entmax(alpha)
    p = sl.operator.weights_of(q, k, v, normalizer=normalizer)
    near = 2e-6 + 4 * torch.finfo(s.dtype).eps * float(s.abs().max())  # scores of hundreds have few digits after the point
    torch.testing.assert_close(p.double(), bisected(s, alpha), rtol=0, atol=near)
    others = {1.5: entmax.entmax15, 2.0: entmax.sparsemax}
    if alpha in others:
        torch.testing.assert_close(p, others[alpha](s, -1), rtol=0, atol=near)
    torch.testing.assert_close(sl.attend(q, k, v, normalizer=normalizer), p @ v, rtol=0, atol=near * float(v.abs().max()))


@pytest.mark.parametrize("alpha", [1.1, 1.5, 1.75, 2.0, 3.0, torch.tensor(1.3).double(), torch.tensor([1.2, 2.5]).double()])
def test_weights_are_those_that_the_threshold_says(alpha, budget):
    """[(alpha - 1)(s - rho)]_+ ^ (1 / (alpha - 1)) with the rho that `threshold` reports."""
    q, k, v = (torch.randn(1, 2, n, 4, dtype=torch.float64) for n in (9, 30, 30))
    _, stats = sl.attend(q, 2 * k, v, normalizer=sl.Entmax(alpha, temperature=0.7), stats=["threshold"])
    p = sl.operator.weights_of(q, 2 * k, v, normalizer=sl.Entmax(alpha, temperature=0.7))
    curve = torch.as_tensor(alpha, dtype=torch.float64).reshape(-1, 1, 1) - 1
    above = (curve * (q @ k.mT / 0.7 - stats.threshold[..., None])).clamp(min=0)
    torch.testing.assert_close(p, above ** (1 / curve), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(p.sum(-1), torch.ones(1, 2, 9, dtype=torch.float64))


@pytest.mark.parametrize("name", RULES)
def test_statistics_by_their_definitions(name, budget):
    case = rule_case(name)
    value, stats = attend(case, stats=NAMES)
    with sl.engine("reference"):
        w = sl.operator.weights_of(case.query, case.key, case.value, **case.arguments)
        s = sl.operator.scores_of(case.query, case.key, case.value, **case.arguments)
    seen = s > -math.inf
    some, total = seen.any(-1), w.sum(-1)
    p = torch.where(total[..., None] > 0, w / total[..., None], 0)
    t = torch.where(seen, s, 0)
    far = (torch.arange(L)[:, None] + (S - L) - torch.arange(S)).abs()
    count = seen.sum(-1)
    mean = (p * t).sum(-1)
    flat = t.sum(-1) / count.clamp(min=1)
    want = {
        "total_weight": total,
        "support": (w > 0).sum(-1),
        "max_weight": p.amax(-1),
        "entropy": torch.where(some, torch.special.entr(p).sum(-1), 0),
        "collision": p.square().sum(-1),
        "expected_logit": mean,
        "expected_logit_var": (p * (t - mean[..., None]).square()).sum(-1),
        "distance": (p * far).sum(-1),
        "sink_mass": p[..., 0],
        "received": w.sum(-2),
        "max_logit": s.amax(-1),
        "argmax": torch.where(some, s.argmax(-1), -1),
        "logsumexp": s.logsumexp(-1),
        "visible": count,
        "logit_mean": flat,
        "logit_var": (torch.where(seen, t - flat[..., None], 0)).square().sum(-1) / count.clamp(min=1),
        "sink_weight": torch.zeros_like(total),
    }
    want["effective_keys"] = torch.where(some, 1 / want["collision"], 0)
    want["entropy_ratio"] = torch.where(count > 1, want["entropy"] / count.clamp(min=2).double().log(), 0)
    for each, x in want.items():
        torch.testing.assert_close(stats[each], x, rtol=1e-9, atol=1e-9, msg=lambda m, e=each: f"{e}: {m}")
    torch.testing.assert_close(value, w @ case.value.repeat_interleave(2, 1))
    if name in SPARSE:
        assert (stats.support < stats.visible).any()


@pytest.mark.parametrize("name", RULES)
def test_the_jacobian_is_that_of_autograd(name):
    """Its trace, and what moves the threshold."""
    case = rule_case(name)
    case.arguments["mask"] = None
    with sl.engine("reference"):
        s = sl.operator.scores_of(case.query, case.key, case.value, **case.arguments)[0, 0, 0].detach()
    rule = case.arguments["normalizer"]
    rule.temperature = 1.0
    one = torch.ones(1, 1, dtype=torch.float64)
    if rule.parameters():
        return  # the first head's alone would have to be picked

    def weights(x: Tensor) -> Tensor:
        with sl.engine("reference"):
            return sl.operator.weights_of(one, x[:, None], x[:, None], score=sl.Dot(), normalizer=rule)[0]

    jacobian = torch.autograd.functional.jacobian(weights, s)
    _, stats = sl.attend(one, s[:, None], s[:, None], score=sl.Dot(), normalizer=rule, stats=["jacobian_trace", "threshold"])
    torch.testing.assert_close(stats.jacobian_trace[0], jacobian.trace())


# ---- engines and derivatives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_values_statistics_and_gradients_equal_the_oracle(name, budget):
    case = rule_case(name)
    leaves, found = case.leaves(), []
    for which in ("streaming", "reference"):
        with sl.engine(which):
            value, stats = attend(case, stats=NAMES)
            found.append(([value, *(stats[n] for n in NAMES)], torch.autograd.grad(loss_of(value, stats), leaves)))
    for (got, got_grads), (want, want_grads) in [found]:
        for each, x, y in zip(["value", *NAMES], got, want, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9, msg=lambda m, e=each: f"{e}: {m}")
        for x, y in zip(got_grads, want_grads, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("rule", ["entmax_head", "topk", "sigmoid"])
@pytest.mark.parametrize("score", SCORES)
def test_every_score(score, rule, small_blocks):
    case, of_rule = score_case(score), rule_case(rule)
    case.arguments |= {"mask": mask_of("padding") & GAPS, "normalizer": of_rule.arguments["normalizer"]}
    case.parameters += of_rule.parameters
    leaves, found = case.leaves(), []
    for which in ("streaming", "reference"):
        with sl.engine(which):
            value, stats = attend(case, stats=NAMES)
            found.append([value, *torch.autograd.grad(loss_of(value, stats), leaves)])
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask(mask, budget):
    q, k, v = tensors()
    found = []
    for which in ("streaming", "reference"):
        with sl.engine(which):
            found.append(sl.attend(q, k, v, mask=mask_of(mask), normalizer=sl.Entmax(), stats=NAMES))
    torch.testing.assert_close(found[0][0], found[1][0])
    for each in NAMES:
        torch.testing.assert_close(found[0][1][each], found[1][1][each], msg=lambda m, e=each: f"{e}: {m}")


def copies(case: Case, times: int) -> Case:
    """A case `times` over, heads beside heads, each with inputs and parameters of its own; those of no head are of each."""
    heads = case.query.shape[1]
    once = {id(x): x.detach() if x.ndim else x.detach().expand(heads) for x in case.inputs}
    made = {of: torch.cat([x] * times, int(x.ndim > 1)) for of, x in once.items()}
    rule = copy(case.arguments["normalizer"])
    vars(rule).update({name: made.get(id(x), x) for name, x in vars(rule).items()})
    query, key, value, *parameters = made.values()
    return Case(query, key, value, case.arguments | {"normalizer": rule}, parameters)


def outputs(case: Case, times: int) -> Tensor:
    """(times, N) the value and all statistics of each copy."""
    value, stats = attend(case, stats=REAL)
    return torch.cat([finite(x).reshape(times, -1) for x in (value, *(stats[each] for each in REAL))], 1)


@pytest.mark.parametrize("name", RULES)
def test_derivatives_of_the_value_and_all_statistics_entry_by_entry(name, monkeypatch):
    """Against differences in the reference: every output has its own copy of the inputs, and so has every entry moved up or
    down."""
    cut_blocks(monkeypatch, 80)  # two rows of three copies
    case, h = copies(rule_case(name, small=True), 1), 1e-6
    count, sizes = outputs(case, 1).shape[1], [x.numel() for x in case.inputs]
    many = copies(case, count)
    leaves = many.leaves()
    with sl.engine("streaming"):
        grads = torch.autograd.grad(outputs(many, count).diagonal().sum(), leaves)
    entries = sum(sizes)
    moved, step = copies(case, 2 * entries), torch.eye(entries, dtype=torch.float64) * h
    for x, change in zip(moved.inputs, torch.cat([step, -step]).split(sizes, 1), strict=True):
        x.view(2 * entries, -1).add_(change)
    with sl.engine("reference"):
        up, down = outputs(moved, 2 * entries).chunk(2)
    got = torch.cat([grad.reshape(count, -1) for grad in grads], 1)
    torch.testing.assert_close(got, ((up - down) / (2 * h)).mT, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_parameter_of_no_head_is_the_sum_of_all_heads(small_blocks):
    one = rule_case("entmax_learned", small=True)
    each = copies(one, 1)
    found = []
    for case in (one, each):
        leaves = case.leaves()
        found.append(torch.autograd.grad(loss_of(*attend(case, stats=REAL)), leaves)[-1])
    torch.testing.assert_close(found[0], found[1].sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_a_statistic_alone_is_that_among_all(name):
    case = rule_case(name, small=True)
    leaves = case.leaves()
    _, among = attend(case, stats=REAL)
    for each in REAL:
        alone = attend(case, stats=each)[1][each]
        assert torch.equal(alone, among[each]), each
        weight = torch.where(alone.isfinite(), torch.randn_like(alone), 0)
        got, want = (
            torch.autograd.grad(x, leaves, weight, retain_graph=True, allow_unused=True, materialize_grads=True)
            for x in (alone, among[each])
        )
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12, msg=lambda m, e=each: f"{e}: {m}")


@pytest.mark.parametrize("name", RULES)
def test_keys_between_runs_of_visible_ones_are_not_looked_at(name, monkeypatch):
    cut_blocks(monkeypatch, 110)
    case, scored = rule_case(name), 0
    case.arguments["mask"], leaves, found = GAPS, case.leaves(), []
    scores = whole_rows.Blocks.scores

    def counted(self, *arguments, **more):
        nonlocal scored
        block = scores(self, *arguments, **more)
        scored += block.scores.numel()
        return block

    monkeypatch.setattr(whole_rows.Blocks, "scores", counted)
    for which in ("streaming", "reference"):
        with sl.engine(which):
            value, stats = attend(case, stats=NAMES)
            found.append([value, *(stats[n] for n in NAMES), *torch.autograd.grad(loss_of(value, stats), leaves)])
    for each, x, y in zip([*NAMES, "value", *leaves], *found, strict=False):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-8, msg=lambda m, e=each: f"{e}: {m}")
    assert scored == 2 * int(stats.visible.sum())  # forward and backward


@pytest.mark.parametrize("name", ["entmax", "entmax_learned", "sigmoid", "cauchy", "topk"])
def test_the_reference_differentiates_twice(name):
    case = rule_case(name)
    leaves = [x[:1, :, :4].detach().requires_grad_() for x in (case.query, case.key, case.value)]
    rule = case.arguments["normalizer"]
    rule.temperature = 1.0
    some = [*leaves, *(p.requires_grad_() for p in rule.parameters())]
    with sl.engine("reference"):
        assert gradgradcheck(lambda *x: sl.attend(*x[:3], normalizer=rule).cos(), some, fast_mode=True, atol=1e-4, rtol=1e-3)


# ---- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalizer", [sl.Entmax(1.0), sl.TopK(S), Exponential(torch.ones(()).double())])
def test_three_ways_to_say_softmax(normalizer, budget):
    case = rule_case("entmax_one")
    leaves, found = case.leaves(), []
    for each in (normalizer, sl.Softmax()):
        case.arguments["normalizer"] = each
        value, stats = attend(case, stats=NAMES)
        found.append(([value, *(stats[n] for n in NAMES)], torch.autograd.grad(loss_of(value, stats), leaves)))
    (got, got_grads), (want, want_grads) = found
    for name, x, y in zip(["value", *NAMES], got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-9, msg=lambda m, e=name: f"{e}: {m}")
    for x, y in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-8)


def test_entmax_goes_to_softmax_as_alpha_goes_to_1():
    q, k, v = tensors()
    want, apart = sl.attend(q, k, v), []
    for a in (1e-1, 1e-2, 1e-3, 1e-6):
        apart.append(float((sl.attend(q, k, v, normalizer=sl.Entmax(1 + a)) - want).abs().max()))
        learned_alpha = sl.Entmax(torch.tensor(1 + a).double())
        torch.testing.assert_close(
            sl.attend(q, k, v, normalizer=learned_alpha), sl.attend(q, k, v, normalizer=sl.Entmax(1 + a)), atol=1e-7, rtol=1e-6
        )
    assert all(b < a / 5 for a, b in zip(apart, apart[1:], strict=False)) and apart[-1] < 1e-5


@pytest.mark.parametrize("a", [0.0, 1e-7, 1e-4, 1e-3, 1e-2, 0.2])
def test_alpha_near_1_keeps_its_digits(a):
    """Also its gradient, in float32; that at 1 is the limit of the others."""
    found, inputs = [], tensors()
    for dtype in (torch.float32, torch.float64):
        q, k, v = (x.to(dtype) for x in inputs)
        alpha = torch.full((q.shape[1],), 1 + a, dtype=torch.float32).to(dtype).requires_grad_()
        value, stats = sl.attend(2 * q, k, v, normalizer=sl.Entmax(alpha), stats=["total_weight", "entropy"])
        torch.testing.assert_close(stats.total_weight, torch.ones_like(stats.total_weight))
        found.append((value, stats.entropy, torch.autograd.grad(value.square().sum(), alpha)[0]))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5)
    if a == 0:
        h = 1e-4

        def loss(alpha: float) -> Tensor:
            return sl.attend(2 * q, k, v, normalizer=sl.Entmax(alpha)).square().sum((0, 2, 3))

        slope = (4 * loss(1 + h) - 3 * loss(1.0) - loss(1 + 2 * h)) / (2 * h)
        torch.testing.assert_close(found[1][2], slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [4.0, 7.0, 20.0])
def test_weights_sum_to_1_however_steep(alpha):
    q, k, v = (x.float() for x in tensors())
    _, stats = sl.attend(q, k, v, normalizer=sl.Entmax(alpha), stats="total_weight")
    torch.testing.assert_close(stats.total_weight, torch.ones_like(stats.total_weight))


def test_the_larger_alpha_the_sparser():
    q, k, v = tensors()
    support = [sl.attend(q, k, v, normalizer=sl.Entmax(a), stats="support")[1].support for a in (1.0, 1.25, 1.5, 2.0, 3.0)]
    assert all((b <= a).all() for a, b in zip(support, support[1:], strict=False))
    assert (support[0] == S).all() and support[-1].double().mean() < 3


def test_temperature_from_the_best_key_to_all():
    q, k, v = tensors()
    for normalizer in (sl.Sparsemax, sl.Entmax):
        cold = sl.attend(q, k, v, normalizer=normalizer(temperature=1e-6))
        torch.testing.assert_close(cold, sl.attend(q, k, v, normalizer=sl.Softmax(temperature=0)))
        hot = sl.attend(q, k, v, normalizer=normalizer(temperature=1e9))
        torch.testing.assert_close(hot, v.mean(2, keepdim=True).repeat_interleave(2, 1).expand_as(hot), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_the_order_of_keys_does_not_matter(name):
    q, k, v = tensors()
    normalizer, order = rule_case(name).arguments["normalizer"], torch.randperm(S)
    if isinstance(normalizer.temperature, Tensor):
        normalizer.temperature = 1.0
    names = ["entropy", "support", "threshold"]
    want, seen = sl.attend(q, k, v, normalizer=normalizer, stats=names)
    got, again = sl.attend(q, k[:, :, order], v[:, :, order], normalizer=normalizer, stats=names)
    torch.testing.assert_close(got, want)
    for each in names:
        torch.testing.assert_close(again[each], seen[each])


@pytest.mark.parametrize("name", RULES)
def test_scores_may_be_shifted_and_huge(name):
    """A constant in all scores of a query changes nothing but the scores; far scores and ties are no trouble."""
    rule = rule_case(name).arguments["normalizer"]
    if isinstance(rule.temperature, Tensor):
        rule.temperature = 1.0
    if rule.parameters() and rule.parameters()[0].ndim:
        return
    one = torch.ones(1, 1, dtype=torch.float64)
    s = torch.tensor([[0.0], [0.0], [-0.3], [-1e4], [-700.0], [1e-9]], dtype=torch.float64)
    p = sl.operator.weights_of(one, s, s, score=sl.Dot(), normalizer=rule)
    assert p.isfinite().all() and (p >= 0).all() and (p.diff(dim=-1)[:, 0] == 0).all()
    if rule.sums_to_one:
        torch.testing.assert_close(
            sl.operator.weights_of(one, s + 3e5, s, score=sl.Dot(), normalizer=rule), p, rtol=1e-6, atol=1e-8
        )
        torch.testing.assert_close(p.sum(-1), torch.ones(1, dtype=torch.float64))


def test_many_keys_that_score_the_same():
    q, k, v = torch.ones(1, 1), torch.ones(100_000, 1), torch.randn(100_000, 1)
    for normalizer in (sl.Sparsemax(), sl.Entmax(), sl.Entmax(1.1), sl.TopK(7), sl.Sigmoid(), Cauchy()):
        value, stats = sl.attend(q, k, v, normalizer=normalizer, stats=["support", "total_weight", "effective_keys"])
        assert stats.support == 100_000
        torch.testing.assert_close(stats.effective_keys, torch.tensor([1e5]), rtol=1e-3, atol=0)
        torch.testing.assert_close(value, v.mean(0, keepdim=True) * stats.total_weight, rtol=1e-3, atol=1e-5)


def test_top_k_is_softmax_over_k(budget):
    q, k, v = tensors()
    s = sl.operator.scores_of(q, k, v)
    best = s.topk(4, -1).indices
    want = torch.full_like(s, -math.inf).scatter(-1, best, s.gather(-1, best)).softmax(-1) @ v.repeat_interleave(2, 1)
    got, stats = sl.attend(q, k, v, normalizer=sl.TopK(4), stats="support")
    torch.testing.assert_close(got, want)
    assert (stats.support == 4).all()
    k = torch.zeros_like(k)  # all as good as the fourth
    assert (sl.attend(q, k, v, normalizer=sl.TopK(4), stats="support")[1].support == S).all()


def test_sigmoid_is_each_key_for_itself():
    q, k, v = tensors()
    s = sl.operator.scores_of(q, k, v)
    torch.testing.assert_close(
        sl.attend(q, k, v, normalizer=sl.Sigmoid(0.3)), torch.sigmoid(s + 0.3) @ v.repeat_interleave(2, 1)
    )
    torch.testing.assert_close(
        sl.attend(q, k, v, normalizer=sl.Sigmoid()), torch.sigmoid(s - math.log(S)) @ v.repeat_interleave(2, 1)
    )
    far = torch.cat([v[:, :, :4], 1e3 * torch.ones_like(v[:, :, 4:])], 2)
    key = torch.cat([k[:, :, :4], torch.full_like(k[:, :, 4:], -9)], 2)
    few = sl.attend(q.abs() * 50, key, far, normalizer=sl.Sigmoid(0.0))
    torch.testing.assert_close(few, sl.attend(q.abs() * 50, key[:, :, :4], far[:, :, :4], normalizer=sl.Sigmoid(0.0)))


def test_the_threshold_of_sigmoid_is_minus_its_bias():
    q, k, v = tensors()
    for bias in (-1.5, torch.tensor(-1.5).double()):
        _, stats = sl.attend(q, k, v, normalizer=sl.Sigmoid(bias), stats="threshold")
        torch.testing.assert_close(stats.threshold, torch.full_like(stats.threshold, 1.5))


def test_hard_retrieves_to_the_last_digit():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 40, 8).bfloat16() for _ in range(3))
    value, stats = sl.attend(q, k, v, normalizer=sl.Hard(), stats="argmax")
    assert torch.equal(value[0, 0], v[0, 0][stats.argmax[0, 0]])


def test_sigmoid_beside_a_huge_score():
    q, k = torch.ones(1, 1), torch.tensor([[1e8], [0.3], [-0.2]])
    weights = sl.operator.weights_of(q, k, k, score=sl.Dot(), normalizer=sl.Sigmoid(0.0))
    torch.testing.assert_close(weights, torch.sigmoid(k).mT)


def test_hard_is_retrieval_with_the_gradient_of_softmax(any_engine):
    q, k, v = (x.requires_grad_() for x in tensors())
    value, stats = sl.attend(q, k, v, mask=sl.Causal(), normalizer=sl.Hard(0.7), stats=True)
    soft, soft_stats = sl.attend(q, k, v, mask=sl.Causal(), normalizer=sl.Softmax(0.7), stats=True)
    torch.testing.assert_close(value, sl.attend(q, k, v, mask=sl.Causal(), normalizer=sl.Softmax(0)))
    torch.testing.assert_close(
        torch.autograd.grad(value.cos().sum(), (q, k, v)), torch.autograd.grad((soft * -value.detach().sin()).sum(), (q, k, v))
    )
    for each in sl.CHEAP:
        torch.testing.assert_close(stats[each], soft_stats[each])


@pytest.mark.parametrize("name", RULES)
def test_what_is_hidden_has_no_effect_and_what_is_not_finite_spoils_its_rows(name, budget):
    case = rule_case(name)
    case.arguments["mask"] = mask_of("padding")
    with sl.engine("reference"):
        seen = sl.operator.scores_of(case.query, case.key, case.value, mask=mask_of("padding")) > -math.inf
    hidden = ~seen.any(2)[:, ::2]

    def run(query: Tensor, key: Tensor, value: Tensor):
        leaves = [x.detach().requires_grad_() for x in (query, key, value)]
        y, stats = sl.attend(*leaves, **case.arguments, stats=NAMES)
        return y, stats, torch.autograd.grad(loss_of(y, stats, [n for n in REAL if n != "received"]), leaves)

    want = run(case.query, case.key, case.value)
    query, key = case.query.clone(), case.key.masked_fill(hidden[..., None], math.nan)
    value = case.value.masked_fill(hidden[..., None], math.inf)
    query[1, 1, 1] = key[1, 1, 4] = value[1, 0, 8] = math.nan
    got = run(query, key, value)
    by_score, by_value = torch.zeros(2, *seen.shape[:3], dtype=torch.bool)
    by_score[1, 1, 1], by_score[1, 2:4], by_value[1, :2] = True, seen[1, 2:4, :, 4], seen[1, :2, :, 8]
    bad = by_score | by_value
    assert seen[1, 1, 1].any() and not (by_score & by_value).any() and by_score[1, 2:4].any() and by_value.any()
    assert torch.equal(got[0].isnan().all(-1), bad) and torch.equal(got[0].isnan().any(-1), bad)
    torch.testing.assert_close(got[0][~bad], want[0][~bad])
    assert torch.equal(got[2][0].isnan().any(-1), bad)
    torch.testing.assert_close(got[2][0][~bad], want[2][0][~bad])
    for grad, clean in zip(got[2], want[2], strict=True):
        torch.testing.assert_close(grad[0], clean[0])
    for each in NAMES:
        rows = (slice(None), 0) if each == "received" else ~by_score  # of keys; no query of the first head has a bad score
        torch.testing.assert_close(got[1][each][rows], want[1][each][rows], msg=lambda m, e=each: f"{e}: {m}")
    torch.testing.assert_close(got[1].received[0], want[1].received[0])
    for each in ("entropy", "effective_keys", "jacobian_trace", "threshold"):
        assert torch.equal(got[1][each].isnan(), by_score), each
    assert (got[1].argmax[by_score] == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the native engine, where it can, and the streaming one
@pytest.mark.parametrize("name", ["sparsemax", "entmax", "entmax_low", "topk", "sigmoid", "cauchy"])
def test_gradients_are_not_finite_where_those_of_softmax_are_not(name, dtype):
    rule = {"entmax": sl.Entmax()}.get(name) or rule_case(name).arguments["normalizer"]
    inputs = [*tensors(dtype), torch.randn(B, H, L, EV, dtype=dtype)]
    for which in range(4):
        spoiled = [x.clone() for x in inputs]
        spoiled[which][1, 1, 4, 1] = math.nan
        found = []
        for normalizer in (sl.Softmax(), rule):
            leaves = [x.requires_grad_() for x in spoiled[:3]]
            y = sl.attend(*leaves, mask=sl.Causal() & sl.Window(4), normalizer=normalizer)
            found.append([x.isnan() for x in torch.autograd.grad(y, leaves, spoiled[3])])
        assert any(x.any() for x in found[0]) and all(map(torch.equal, *found))


# ---- use -------------------------------------------------------------------------------------------------------------


class Below(sl.Threshold):
    """Weights that never reach 1."""

    def weight(self, x):
        return torch.sigmoid(x)

    def reach(self, w):
        return torch.logit(w)


class Hiding(Exponential):
    def parameters(self):
        return ()

    def weight(self, x):
        return (x * self.rate).exp()

    def reach(self, w):
        return w.log() / self.rate.detach()


class Unsaid(sl.Threshold):
    def __init__(self):
        pass


class Listed(Cauchy):
    def parameters(self):
        return (1.5,)


def test_what_cannot_be_is_one_line():
    q, k, v = (torch.randn(1, 2, 3, 4) for _ in range(3))
    wrong = {
        "alpha: expected a finite number >= 1, got 0.5": sl.Entmax(0.5),
        "alpha: expected every entry of the tensor >= 1 and finite, got 0.5": sl.Entmax(torch.tensor(0.5)),
        "alpha: expected a finite number >= 1, got True": sl.Entmax(True),
        "alpha: expected a tensor of real numbers >= 1, got one of torch.bool": sl.Entmax(torch.tensor(True)),
        "alpha: expected a tensor of real numbers >= 1, got one of torch.complex64": sl.Entmax(torch.tensor(1.5 + 0j)),
        "Entmax: expected tensors of shape () or (2,), got (3,)": sl.Entmax(torch.full((3,), 1.5)),
        "temperature: expected > 0": sl.Sparsemax(temperature=0),
        "temperature: expected that of the softmax": sl.Hard(0),
        "bias: expected a finite number": sl.Sigmoid(math.nan),
        "bias: expected every entry of the tensor finite, got nan": sl.Sigmoid(torch.tensor(math.nan)),
        "Below: expected a weight that can be 1, got reach(1) = inf": Below(),
        "Hiding.weight: expected its parameters listed by parameters()": Hiding(torch.tensor(2.0, requires_grad=True)),
        "Listed: expected tensors of shape () or (2,), got float": Listed(),
        "Unsaid: expected a Threshold with weight(), got none": Unsaid(),
        "normalizer: expected a Normalizer, such as Softmax(), got the class Sparsemax itself": sl.Sparsemax,
    }
    for said, normalizer in wrong.items():
        with pytest.raises(sl.SoftlookupError) as error:
            sl.attend(q, k, v, normalizer=normalizer)
        assert str(error.value).startswith(said) and "\n" not in str(error.value)
    for few in (0, True, 2.0):
        with pytest.raises(sl.SoftlookupError, match="TopK: expected k of at least 1"):
            sl.TopK(few)
    assert repr(sl.Hard(0.5)) == "Hard(temperature=0.5)"
    for act in (
        lambda: sl.lookup(q, k, v, normalizer=sl.Entmax()),
        lambda: sl.divergence((q, k), (k, q), normalizer=sl.Entmax()),
    ):
        with pytest.raises(sl.UnsupportedError, match="expected a Softmax"):
            act()


def test_any_shape_and_dtype():
    for dtype, tolerance in ((torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float32, 1e-6)):
        q, k, v = (torch.randn(2, 3, 4, 6, 8, dtype=dtype, requires_grad=True) for _ in range(3))
        value, stats = sl.attend(q, k, v, normalizer=sl.Entmax(), stats=True)
        assert value.dtype == dtype and stats.entropy.dtype == torch.float32 and stats.entropy.shape == (2, 3, 4, 6)
        want = sl.attend(q.double(), k.double(), v.double(), normalizer=sl.Entmax())
        torch.testing.assert_close(value.double(), want, atol=tolerance, rtol=tolerance)
        value.sum().backward()
        assert q.grad.dtype == dtype and q.grad.isfinite().all()
    q, k, v = torch.randn(5, 4), torch.randn(7, 4), torch.randn(7, 2)
    value, stats = sl.attend(q, k, v, normalizer=sl.TopK(2), stats=["support", "received"])
    assert value.shape == (5, 2) and stats.support.shape == (5,) and stats.received.shape == (7,)
    torch.testing.assert_close(sl.received(q, k, normalizer=sl.TopK(2)), stats.received)


def test_alpha_learns():
    """From softmax-like to sparse, where the target is."""
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, 2, 30, 8) for _ in range(3))
    target = sl.attend(q, k, v, normalizer=sl.Entmax(torch.tensor([1.8, 1.3])))
    alpha = torch.tensor([1.5, 1.5], requires_grad=True)
    by = torch.optim.Adam([alpha], lr=0.02)
    for _ in range(150):
        by.zero_grad()
        (sl.attend(q, k, v, normalizer=sl.Entmax(alpha)) - target).square().mean().backward()
        by.step()
    torch.testing.assert_close(alpha.detach(), torch.tensor([1.8, 1.3]), atol=0.02, rtol=0)


def test_dropout(small_blocks):
    q, k, v = tensors()
    y = sl.attend(q, k, v, normalizer=sl.Entmax(), dropout_p=0.4, seed=5)
    with sl.engine("reference"):
        torch.testing.assert_close(y, sl.attend(q, k, v, normalizer=sl.Entmax(), dropout_p=0.4, seed=5))
    assert not torch.allclose(y, sl.attend(q, k, v, normalizer=sl.Entmax()))


def test_compiled_and_watched():
    q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))

    class Sparse(torch.nn.Module):
        def forward(self, q, k, v):
            return sl.attend(q, k, v, normalizer=sl.Entmax()).relu()

    want = Sparse()(q, k, v)
    torch.testing.assert_close(torch.compile(Sparse(), backend="eager")(q, k, v), want)
    model = Sparse()
    with sl.watch(model) as seen:
        torch.testing.assert_close(model(q, k, v), want)
    (layer,) = seen.layers.values()
    entropy = sl.attend(q, k, v, normalizer=sl.Entmax(), stats="entropy")[1].entropy
    torch.testing.assert_close(layer.mean("entropy").float(), entropy.mean((0, 2)))


def test_gradcheck_is_what_finds_errors():
    """A rule with a wrong slope is found out."""

    class Wrong(Cauchy):
        def slope(self, x, w):
            return super().slope(x, w) * w.sqrt()

    q, k, v = (x.requires_grad_() for x in tensors(b=1, h=2, kv=1, q=2, s=4, e=2, ev=1))
    assert gradcheck(lambda *x: sl.attend(*x, normalizer=Cauchy()), (q, k, v))
    assert not gradcheck(lambda *x: sl.attend(*x, normalizer=Wrong()), (q, k, v), raise_exception=False)
