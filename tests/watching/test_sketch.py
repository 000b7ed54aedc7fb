"""The sketch's stated error, against numpy's quantiles; merging is adding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlookup import SoftlookupError
from softlookup.watching.sketch import ACCURACY, BINS, CEILING, FLOOR, QuantileSketch, bins_of, value_of

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 1.0)
magnitudes = st.floats(FLOOR * 2, CEILING / 2)
values = st.one_of(magnitudes, magnitudes.map(lambda x: -x), st.just(0.0))


def sketch(data: torch.Tensor) -> QuantileSketch:
    made = QuantileSketch(data.shape[0])
    made.add(data)
    return made


@given(st.lists(values, min_size=1, max_size=200), st.sampled_from(QUANTILES))
def test_within_the_stated_error_of_the_exact_quantile(data, q):
    got = float(sketch(torch.tensor([data], dtype=torch.float64)).quantile(q))
    exact = float(np.quantile(np.array(data), q, method="inverted_cdf" if q in (0.0, 1.0) else "lower"))
    assert abs(got - exact) <= ACCURACY * (1 + 1e-6) * abs(exact) + FLOOR


@given(st.lists(values, max_size=40), st.lists(values, max_size=40), st.sampled_from(QUANTILES))
def test_a_merge_is_the_sketch_of_the_union(a, b, q):
    a, b = (torch.tensor([x], dtype=torch.float64) for x in (a, b))
    merged, other = sketch(a), sketch(b)
    merged.merge(other)
    torch.testing.assert_close(
        merged.quantile(q), sketch(torch.cat([a, b], 1)).quantile(q), rtol=0, atol=0, equal_nan=True
    )


@given(values, values)
def test_bins_are_monotone_in_the_value(x, y):
    low, high = bins_of(torch.tensor(sorted([x, y]), dtype=torch.float64))
    assert low <= high


@given(values)
def test_a_bin_represents_its_values(x):
    got = float(value_of(bins_of(torch.tensor(x, dtype=torch.float64))))
    assert abs(got - x) <= ACCURACY * (1 + 1e-6) * abs(x) + FLOOR


def test_heads_are_independent_and_masked_entries_do_not_count(rng):
    data, counted = torch.rand(3, 500, generator=rng), torch.rand(3, 500, generator=rng) > 0.5
    whole = QuantileSketch(3)
    whole.add(data, counted)
    for head in range(3):
        alone = sketch(data[head, counted[head]][None])
        assert whole.quantile(0.5)[head] == alone.quantile(0.5)[0]


def test_memory_depends_on_the_range_not_on_the_number(rng):
    made = QuantileSketch(2)
    for _ in range(30):
        made.add(torch.rand(2, 1000, generator=rng) + 0.5)
    assert made._counts.shape[1] < 300
    made.add(torch.tensor([[-math.inf, math.inf, math.nan, 1e30]]).expand(2, 4))
    assert made._counts.shape[1] <= 2 * BINS + 100


def test_nan_sorts_last_and_infinities_at_the_ends():
    made = sketch(torch.tensor([[math.nan, 1.0, -math.inf, 2.0, math.inf]]))
    assert float(made.quantile(0.0)) < -CEILING / 2
    assert float(made.quantile(0.5)) == pytest.approx(2.0, rel=ACCURACY)
    assert math.isnan(float(made.quantile(1.0)))


def test_empty_and_bad_input():
    assert QuantileSketch(2).quantile(0.5).isnan().all()
    with pytest.raises(SoftlookupError, match=r"from 0 to 1, got 1\.5"):
        QuantileSketch(1).quantile(1.5)
