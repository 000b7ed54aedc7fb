"""The cases of tests/cases.py in float32: every score, mask, bias and normalizer on the native engine against the oracle.

Elsewhere those cases run in float64, which the native engine leaves to the streaming one. Here the same tables are cast, and
what the engine refuses must be what REFUSED says, for the reason it says: nothing is skipped unseen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import softlookup as sl
from softlookup.engines import library
from tests.cases import ALL_CASES, BIASES, MASKS, Case, S, case_of, mask_of, score_case, tensors
from tests.test_merge import DIFFERENTIABLE, SPLITS

from .test_native import close

pytestmark = pytest.mark.skipif(library.load()[0] is None, reason=f"no native engine: {library.load()[1]}")

REFUSED = {
    ("score", name): "it scores by products of queries and keys or additively"
    for name in ("distance", "network", "lorentz", "mixed")
}
SERVED = [case for case in ALL_CASES if case not in REFUSED]
SERVED_SCORES = [name for kind, name in SERVED if kind == "score"]
NAMES = (*sl.CHEAP, "received")
VALUE, STATISTICS, GRADIENTS = 2e-6, 5e-6, 2e-5
"""Allowed error, of the largest entry: the aims of tests/test_precision.py; gradients have one product more."""


def cast(case: Case, dtype: torch.dtype) -> Case:
    """A copy whose tensors, inside of scores and biases too, are leaves of another dtype."""
    tensors = [*case.inputs, *(x for x in case.arguments.values() if isinstance(x, Tensor) and x.is_floating_point())]
    memo = {id(t): t.detach().to(dtype) for t in tensors}
    for t in case.inputs:
        memo[id(t)].requires_grad_()
    return copy.deepcopy(case, memo)


def both(case: Case) -> tuple[Case, Case]:
    """The case in float32, and the same numbers in float64."""
    single = cast(case, torch.float32)
    return single, cast(single, torch.float64)


def attend(case: Case, engine: str, names: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
    with sl.engine(engine):
        value, stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=names)
    return {"value": value} | {name: stats[name] for name in names}


def gradients(case: Case, outputs: dict[str, Tensor]) -> list[Tensor]:
    """Of a random mixture of the value and of all statistics that have gradients."""
    make, chosen = torch.Generator().manual_seed(7), {"value", "received", *DIFFERENTIABLE}
    some = [x for name, x in outputs.items() if name in chosen and x.requires_grad]
    weights = [torch.randn(x.shape, generator=make, dtype=torch.float64).to(x.dtype) for x in some]
    return list(torch.autograd.grad(some, case.inputs, weights, allow_unused=True, materialize_grads=True))


def same(got: dict[str, Tensor], want: dict[str, Tensor], times: float = 1) -> None:
    for name in got:
        close(name, got[name], want[name], (VALUE if name == "value" else STATISTICS) * times)


def same_gradients(got: list[Tensor], want: list[Tensor], times: float = 1, plain: list[Tensor] | None = None) -> None:
    """Of the largest entry of each; or of a thousandth of all gradients, where one is that small.

    plain: those of the materialized formula in float32; twice their errors are allowed too."""
    floor = 1e-3 * max(g.abs().max() for g in want)

    def error(g: Tensor, w: Tensor) -> float:
        return float((g.double() - w).abs().max() / w.abs().max().clamp(min=floor))

    for number, (g, w, p) in enumerate(zip(got, want, plain or want, strict=True)):
        assert torch.equal(g.isfinite(), w.isfinite()), f"gradient {number}"
        within = max(GRADIENTS * times, 2 * error(p, w))
        assert error(g, w) <= within, (
            f"gradient {number}: error {error(g, w):.1e} of the largest, expected at most {within:.1e}"
        )


def agrees(case: Case, hard: bool = False) -> None:
    """Value, statistics and gradients; and those that the kernels for few queries give where no gradient is wanted.

    hard: a score whose formula itself is spoiled by rounding."""
    single, double = both(case)
    want = attend(double, "reference")
    got = attend(single, "native")
    same(got, want)
    with torch.no_grad():
        same(attend(single, "native"), want)
    plain = gradients(single, attend(single, "reference")) if hard else None
    same_gradients(gradients(single, got), gradients(double, want), plain=plain)


def test_what_is_served():
    """All but what REFUSED names."""
    refused = {}
    for kind, name in ALL_CASES:
        case = cast(case_of(kind, name), torch.float32)
        plan = sl.explain(case.query, case.key, case.value, **case.arguments, stats=True)
        if plan.engine != "native":
            refused[kind, name] = plan.reasons["native"]
    assert refused == REFUSED
    assert len(SERVED) >= 39


@pytest.mark.parametrize(("kind", "name"), SERVED)
def test_value_statistics_and_gradients(kind, name):
    agrees(case_of(kind, name))


@pytest.mark.parametrize("bias", [name for name in BIASES if name != "none"])
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_with_every_bias(mask, bias):
    case = case_of("bias", bias)
    case.arguments["mask"] = mask_of(mask)
    agrees(case)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("score", [name for name in SERVED_SCORES if name not in ("dot", "scaled", "metric")])
def test_every_mask_with_every_score(mask, score):
    case = score_case(score)
    case.arguments["mask"] = mask_of(mask)
    agrees(case)


def large(score: str, mask: str, queries: int, keys: int) -> Case:
    """The same parameters with more queries and keys than one panel and one block of the kernels hold."""
    case = score_case(score)
    case.query, case.key, case.value = tensors(q=queries, s=keys)
    if score == "hyperbolic":
        case.query, case.key = (sl.Hyperbolic.lift(x) for x in (case.query, case.key))
    case.arguments["mask"] = mask_of(mask, q=queries, s=keys)
    return case


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_on_several_panels_and_blocks(mask):
    agrees(large("scaled", mask, 197, 301))


@pytest.mark.parametrize("queries", [16, 197])
@pytest.mark.parametrize("score", SERVED_SCORES)
def test_every_score_on_several_panels_and_blocks(score, queries):
    agrees(large(score, "causal", queries, 301), hard=score == "hyperbolic")


@pytest.mark.parametrize("cuts", [cuts for cuts in SPLITS if cuts], ids=len)
@pytest.mark.parametrize(("kind", "name"), SERVED)
def test_any_split_equals_the_whole(kind, name, cuts):
    single, double = both(case_of(kind, name))
    whole = attend(double, "reference", sl.CHEAP)
    with sl.engine("native"):
        merged = sl.merge(
            *(
                sl.lookup(
                    single.query,
                    single.key[..., a:b, :],
                    single.value[..., a:b, :],
                    **single.arguments,
                    key_offset=a,
                    total_keys=S,
                )
                for a, b in pairwise((0, *cuts, S))
            )
        )
    got = {"value": merged.value} | {each: merged.stats(each) for each in sl.CHEAP}
    same(got, whole, 2)
    same_gradients(gradients(single, got), gradients(double, whole), 2)


# ---- what is not finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [math.nan, -math.inf, 1e30])
@pytest.mark.parametrize("score", SERVED_SCORES)
def test_hidden_keys_have_no_effect(score, garbage):
    """Padding on the left, on the right and in the middle: the oracle is given the keys without what they hold."""
    case = score_case(score)
    case.arguments["mask"] = mask_of("padding")
    seen = torch.stack([torch.arange(S) >= 4, (torch.arange(S) < 9) & (torch.arange(S) != 2)])
    single, double = both(case)
    with torch.no_grad():
        for x in (single.key, single.value):
            x.masked_fill_(~seen[:, None, :, None], garbage)
    got, want = attend(single, "native"), attend(double, "reference")
    same(got, want)
    same_gradients(gradients(single, got), gradients(double, want))


SPOIL: dict[str, Callable[[Case, float], None]] = {
    "query": lambda case, x: case.query[:, 1, 3, 1].fill_(x),
    "key": lambda case, x: case.key[:, 0, 6, 1].fill_(x),
    "value": lambda case, x: case.value[:, 0, 6, 1].fill_(x),
}


@pytest.mark.parametrize("garbage", [math.nan, -math.inf])
@pytest.mark.parametrize("what", SPOIL)
@pytest.mark.parametrize("score", SERVED_SCORES)
def test_what_is_not_finite_spoils_the_rows_that_the_oracle_says(score, what, garbage):
    case = score_case(score)
    case.arguments["mask"] = sl.Causal() & sl.Window(4)
    single, double = both(case)
    with torch.no_grad():
        for each in (single, double):
            SPOIL[what](each, garbage)
    got, want = attend(single, "native"), attend(double, "reference")
    assert not want["value"].isfinite().all() and want["value"].isfinite().any()
    lost = ~want["logsumexp"].isfinite()  # which key is best there means nothing
    got["argmax"], want["argmax"] = (x["argmax"].masked_fill(lost, -1) for x in (got, want))
    same(got, want)
