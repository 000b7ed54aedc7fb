"""What an approximation costs, where the shares of it are not defined."""

from __future__ import annotations

import math

import pytest
import torch

import softlookup as sl
from softlookup import linear

make = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(2, 3, 9, 4, generator=make) for _ in range(3))


def halved(*x):
    return sl.attend(*x) / 2


def test_queries_that_see_nothing_do_not_count():
    hidden = torch.ones(9, 9, dtype=torch.bool)
    hidden[[0, 4]] = False
    keep = [1, 2, 3, 5, 6, 7, 8]
    got = linear.error_against_exact(halved, q, k, v, mask=hidden)
    want = linear.error_against_exact(lambda *x: halved(*x), q[:, :, keep], k, v)
    for name in ("relative", "worst", "cosine", "explained"):
        assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-6)
    assert got.worst == got.relative == pytest.approx(0.5) and got.cosine == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_is_explained_where_values_do_not_vary(dtype):
    one = linear.error_against_exact(halved, *(x[:, :, :1].to(dtype) for x in (q, k, v)))
    same = linear.error_against_exact(halved, *(x.to(dtype) for x in (q, k, 0 * v + 0.7)))
    for error in (one, same):
        assert math.isnan(error.explained) and error.relative == pytest.approx(0.5, rel=1e-2)
    assert "variance explained undefined, as exact values do not vary" in str(one)


@pytest.mark.parametrize("size", [1e-20, 1e-200, 1e200])
def test_shares_do_not_depend_on_the_size_of_values(size):
    q, k, v = (torch.randn(2, 3, 9, 4, generator=make, dtype=torch.float64) for _ in range(3))

    def slanted(q, k, v):
        return sl.attend(q, k, v) + v / 2

    got, want = linear.error_against_exact(slanted, q, k, v * size), linear.error_against_exact(slanted, q, k, v)
    for name in ("relative", "worst", "cosine", "explained"):
        assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-9)
    assert 0.1 < want.cosine < 0.99
    assert linear.error_against_exact(lambda *x: 1e-20 * sl.attend(*x), q, k, v).cosine == pytest.approx(1)
    assert linear.error_against_exact(lambda *x: 0 * sl.attend(*x), q, k, v).cosine == 0


def test_what_is_not_finite_has_no_error():
    found = linear.error_against_exact(lambda *x: math.nan * sl.attend(*x), q, k, v)
    assert str(found) == "error undefined, as some values are not finite"


def test_exact_attention_may_have_arguments_of_its_own():
    said = {"scale": 2.0, "normalizer": sl.Entmax(1.5), "mask": sl.Causal()}
    assert linear.error_against_exact(lambda *x: sl.attend(*x, **said), q, k, v, **said).relative == 0
    assert linear.error_against_exact(lambda *x: sl.attend(*x, **said), q, k, v, mask=sl.Causal()).relative > 0.1
    with pytest.raises(sl.SoftlookupError, match="expected a function of query, key and value, got int"):
        linear.error_against_exact(5, q, k, v)
    with pytest.raises(sl.SoftlookupError, match="expected values alone, got stats='entropy'"):
        linear.error_against_exact(halved, q, k, v, stats="entropy")
