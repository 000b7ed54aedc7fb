"""Every derivative against finite differences, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import softlookup as sl
from tests.cases import ALL_CASES, MASKS, Case, S, bias_case, case_of, learned, mask_of, score_case, tensors
from tests.test_merge import DIFFERENTIABLE, parts_of


def finite(x: Tensor) -> Tensor:
    """x with the -inf of empty rows, which finite differences cannot follow, as zeros."""
    return torch.where(x.isfinite(), x, 0)


def together(*outputs: Tensor) -> Tensor:
    return torch.cat([finite(x).flatten() for x in outputs])


def check(function, leaves: list[Tensor], fast: bool = True) -> None:
    """`function` reads the leaves themselves: gradcheck moves them in place."""
    assert all(t.requires_grad and t.dtype == torch.float64 for t in leaves)
    assert gradcheck(lambda *_: function(), leaves, fast_mode=fast, atol=1e-5, rtol=1e-4)


def everything(case: Case, names=(*DIFFERENTIABLE, "received")):
    def run() -> Tensor:
        value, stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=names)
        return together(value, *(stats[each] for each in names))

    return run


@pytest.mark.parametrize(("kind", "name"), ALL_CASES)
def test_value_and_all_statistics(kind, name, small_blocks):
    case = case_of(kind, name)
    check(everything(case), case.leaves())


@pytest.mark.parametrize(("kind", "name"), [c for c in ALL_CASES if c[0] != "mask"])
def test_every_learned_parameter_entry_by_entry(kind, name):
    """The slow mode: the whole Jacobian of the mean value, where there are few enough entries."""
    case = case_of(kind, name)
    case.leaves()
    leaves = [t for t in case.parameters if t.numel() <= 40]
    if leaves:
        check(lambda: sl.attend(case.query, case.key, case.value, **case.arguments).cos().mean((0, 1, 2)), leaves, fast=False)


@pytest.mark.parametrize("name", [*DIFFERENTIABLE, "received"])
def test_each_statistic_alone(name):
    q, k, v = tensors(b=1, h=2, kv=1, q=3, s=4, e=2, ev=1)
    sink = learned(2).requires_grad_()
    case = Case(q, k, v, {"mask": sl.Causal(), "normalizer": sl.Softmax(sink=sink)}, [sink])
    leaves = case.leaves()

    def run() -> Tensor:
        return sl.attend(q, k, v, **case.arguments, stats=name)[1][name]

    relevant = [q, k, *([sink] if name == "sink_weight" else [])]
    assert len(leaves) == 4
    check(run, relevant, fast=False)


@pytest.mark.parametrize("shape", [(), (4,), (2, 4, 9), (1, 1, 9), (2, 1, 1)])
def test_temperature_of_any_shape(shape):
    q, k, v = tensors()
    t = learned(*shape, positive=True)
    case = Case(q, k, v, {"normalizer": sl.Softmax(temperature=t), "mask": sl.Causal()}, [t])
    check(everything(case), case.leaves())


@pytest.mark.parametrize("shape", [(), (4,)])
@pytest.mark.parametrize("score", ["scaled", "gaussian", "additive"])
def test_sink_of_any_shape(shape, score):
    case = score_case(score)
    sink = learned(*shape)
    case.arguments |= {"normalizer": sl.Softmax(temperature=0.8, sink=sink), "mask": mask_of("empty")}
    case.parameters.append(sink)
    check(everything(case), case.leaves())


@pytest.mark.parametrize("shape", [(), (4,)])
@pytest.mark.parametrize("what", ["scale", "ssmax", "bandwidth"])
def test_learned_scalars_of_any_shape(what, shape):
    q, k, v = tensors()
    x = learned(*shape, positive=True)
    arguments = {
        "scale": {"scale": x},
        "ssmax": {"score": sl.ScaledDot(ssmax=x, softcap=2.0)},
        "bandwidth": {"score": sl.Gaussian(x), "normalizer": sl.Softmax(temperature=torch.full((4,), 0.7).double())},
    }
    case = Case(q, k, v, arguments[what] | {"mask": sl.Causal()}, [x])
    check(everything(case), case.leaves())


@pytest.mark.parametrize("shape", [(9, 13), (4, 1, 1), (2, 1, 9, 1), (2, 4, 9, 13), (1, 13)])
@pytest.mark.parametrize("what", ["bias", "mask"])
def test_dense_bias_of_any_shape(what, shape):
    q, k, v = tensors()
    w = learned(*shape)
    case = Case(q, k, v, {what: w}, [w])
    check(everything(case), case.leaves())


def test_a_float_mask_that_hides_has_a_gradient_where_it_does_not():
    case = case_of("mask", "float")
    mask = case.arguments["mask"]
    mask.requires_grad_()
    value, stats = sl.attend(case.query, case.key, case.value, mask=mask, stats=True)
    (grad,) = torch.autograd.grad(value.cos().sum() + stats.logit_mean.cos().sum(), mask)
    hidden = (mask < -1e300).expand(grad.shape)
    assert not grad[hidden].any() and grad[~hidden].all()


@pytest.mark.parametrize("bias", ["dense", "broadcast", "alibi", "table", "table_causal"])
@pytest.mark.parametrize("score", ["hyperbolic", "network"])
def test_bias_on_other_scores(score, bias):
    case, other = score_case(score), bias_case(bias)
    case.arguments |= other.arguments
    case.parameters += other.parameters
    check(everything(case), case.leaves())


@pytest.mark.parametrize("mask", MASKS)
def test_dropout(mask):
    case = case_of("mask", mask)
    check(lambda: sl.attend(case.query, case.key, case.value, **case.arguments, dropout_p=0.4, seed=2), case.leaves())


def test_hard_retrieval_reaches_values():
    case = case_of("mask", "padding")
    case.arguments["normalizer"] = sl.Softmax(temperature=0)
    case.value.requires_grad_()
    check(lambda: sl.attend(case.query, case.key, case.value, **case.arguments), [case.value])


@pytest.mark.parametrize(("kind", "name"), ALL_CASES)
def test_merge(kind, name):
    case = case_of(kind, name)

    def run() -> Tensor:
        merged = sl.merge(*parts_of(case, (2, 3, 9)))
        return together(merged.value, *(merged.stats(each) for each in DIFFERENTIABLE))

    check(run, case.leaves())


@pytest.mark.parametrize(("kind", "name"), ALL_CASES)
def test_received(kind, name):
    case = case_of(kind, name)
    case.leaves()
    arguments = case.arguments
    if isinstance(arguments.get("normalizer", sl.Softmax()).sink, Tensor):
        case.parameters = []  # sinks are not counted
    check(lambda: sl.received(case.query, case.key, **arguments), [case.query, case.key, *case.parameters])


@pytest.mark.parametrize(("kind", "name"), [c for c in ALL_CASES if c[1] not in ("sink", "sink_learned")])
def test_divergence_of_both_sides(kind, name, small_blocks):
    case = case_of(kind, name)
    case.leaves()
    q, k = torch.randn_like(case.query), torch.randn_like(case.key)
    if name == "hyperbolic":
        q, k = sl.Hyperbolic.lift(q[..., 1:]), sl.Hyperbolic.lift(k[..., 1:])
    q, k = q.requires_grad_(), k.requires_grad_()

    def run() -> Tensor:
        return finite(sl.divergence((case.query, case.key), (q, k), **case.arguments))

    check(run, [case.query, case.key, q, k, *case.parameters])


def test_divergence_of_two_scores_and_widths():
    q, k, _ = tensors()
    r, s, _ = tensors(e=3, kv=1)
    metric = torch.randn(3, 3, dtype=torch.float64)
    score = (sl.Gaussian(h := learned(4, positive=True)), sl.Bilinear(metric))
    leaves = [t.requires_grad_() for t in (q, k, r, s, metric, h)]
    check(lambda: sl.divergence((q, k), (r, s), mask=sl.Causal() & sl.Prefix(S), score=score), leaves)
