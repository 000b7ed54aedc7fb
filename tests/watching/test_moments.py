"""Moments of any split equal the moments of the whole, and numpy's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlookup.watching.moments import Moments

floats = st.floats(-1e3, 1e3, width=32)


def moments(values: list[float]) -> Moments:
    if not values:
        return Moments.empty(1, 1)
    x = torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1)
    return Moments.of(x, torch.ones(1, x.shape[-1], dtype=torch.bool))


def assert_same(a: Moments, b: Moments) -> None:
    for name in ("count", "mean", "m2", "lowest", "highest"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-6)


@given(st.lists(st.lists(floats, max_size=9), min_size=1, max_size=5))
def test_any_split_equals_the_whole(parts):
    merged = Moments.empty(1, 1)
    for part in parts:
        merged = merged.merge(moments(part))
    assert_same(merged, moments([x for part in parts for x in part]))


@given(st.lists(floats, max_size=9), st.lists(floats, max_size=9), st.lists(floats, max_size=9))
def test_merge_is_associative_and_commutative(a, b, c):
    a, b, c = moments(a), moments(b), moments(c)
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(a.merge(b), b.merge(a))


def test_equals_numpy_over_the_counted_entries(rng):
    values, counted = (
        torch.randn(3, 4, 50, dtype=torch.float64, generator=rng) * 10,
        torch.rand(4, 50, generator=rng) > 0.3,
    )
    got = Moments.of(values, counted)
    for t in range(3):
        for h in range(4):
            x = values[t, h, counted[h]].numpy()
            assert int(got.count[h]) == len(x)
            np.testing.assert_allclose(got.mean[t, h], x.mean(), rtol=1e-12)
            np.testing.assert_allclose(got.std[t, h], x.std(), rtol=1e-12)
            assert (got.lowest[t, h], got.highest[t, h]) == (x.min(), x.max())


def test_a_large_mean_costs_no_digits_of_the_variance(rng):
    values = torch.randn(1, 1, 10_000, dtype=torch.float64, generator=rng)
    everything = torch.ones(1, 10_000, dtype=torch.bool)
    merged = Moments.empty(1, 1)
    for chunk in (values + 1e8).split(777, -1):
        merged = merged.merge(Moments.of(chunk, everything[:, : chunk.shape[-1]]))
    assert float(merged.std) == pytest.approx(float(values.std(correction=0)), rel=1e-6)


def test_what_is_not_counted_may_be_anything():
    values = torch.tensor([[[1.0, math.nan, 3.0, -math.inf]]], dtype=torch.float64)
    got = Moments.of(values, torch.tensor([[True, False, True, False]]))
    assert (float(got.mean), float(got.m2), float(got.lowest), float(got.highest)) == (2.0, 2.0, 1.0, 3.0)
