"""Histograms: shares sum to one, hidden keys and padding are not there, the weight's histogram is the softmax's."""

from __future__ import annotations

import torch

from softlookup.inspection.histogram import BINS, ROWS, of_scores, sample_rows


def scores() -> torch.Tensor:
    logits = 3 * torch.randn(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    return logits.masked_fill(torch.ones(40, 50).triu(11).bool(), -torch.inf)


def test_equals_numbers_counted_one_by_one() -> None:
    s = scores()
    found = of_scores(s)
    for head in range(3):
        seen = s[:, head][torch.isfinite(s[:, head])]
        p = torch.softmax(s[:, head], -1)[torch.isfinite(s[:, head])]
        assert found.low[head] == seen.min() and found.high[head] == seen.max()
        counts = torch.histogram(seen, BINS, range=(float(seen.min()), float(seen.max()))).hist
        weights = torch.histogram(seen, BINS, range=(float(seen.min()), float(seen.max())), weight=p).hist
        torch.testing.assert_close(found.keys[head], counts / counts.sum(), atol=2e-3, rtol=0)
        torch.testing.assert_close(found.weight[head], weights / weights.sum(), atol=2e-3, rtol=0)


def test_uncounted_rows_are_left_out() -> None:
    s = scores()
    counted = torch.ones(2, 40, dtype=torch.bool)
    counted[1] = False
    padded = s.clone()
    padded[1] = 1e6
    whole, left_out = of_scores(s[:1]), of_scores(padded, counted)
    torch.testing.assert_close(left_out.keys, whole.keys)
    torch.testing.assert_close(left_out.weight, whole.weight)


def test_heads_without_visible_keys_or_without_spread() -> None:
    nothing = of_scores(torch.full((1, 1, 4, 4), -torch.inf))
    assert float(nothing.keys.sum()) == 0 and bool(torch.isfinite(nothing.low).all())
    constant = of_scores(torch.full((1, 1, 4, 4), 2.5))
    assert float(constant.keys.sum()) == 1 and float(constant.low) == 2.5


def test_the_sample_is_seeded_sorted_and_only_of_counted_rows() -> None:
    rows = sample_rows(1000, None)
    assert len(rows) == ROWS and torch.equal(rows, sample_rows(1000, None)) and bool((rows.diff() > 0).all())
    assert torch.equal(sample_rows(10, None), torch.arange(10))
    counted = torch.zeros(2, 1000, dtype=torch.bool)
    counted[1, 300:400] = True
    rows = sample_rows(1000, counted)
    assert rows.min() >= 300 and rows.max() < 400
