"""Reducing rows to heads: means equal their definition, padding and short rows change nothing, curves are means of
neighbours."""

from __future__ import annotations

import pytest
import torch

from softlookup.inspection.heads import FEW, POINTS, summarize

from .planted import STATS, Rows, head, layer, statistics


def causal(length: int, seed: int = 0, heads: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([head("ordinary", length, generator) for _ in range(heads)])[None]


def test_means_equal_their_definition() -> None:
    scores = causal(80)
    found = summarize(0, Rows("a", scores), tuple(STATS), torch.arange(80))
    truth = statistics(scores)
    for stat in ("entropy", "logit_var", "distance", "sink_mass"):
        torch.testing.assert_close(found.means[stat], truth[stat][0].mean(-1).float())
        assert found.wide is not None
        torch.testing.assert_close(found.wide[stat], truth[stat][0, :, FEW - 1 :].mean(-1).float())
    torch.testing.assert_close(found.means["max_logit"], truth["max_logit"][0].amax(-1))
    assert "argmax" not in found.means


def test_uncounted_rows_change_nothing() -> None:
    scores = causal(64)
    alone = summarize(0, Rows("a", scores), tuple(STATS), torch.arange(64))
    padding = torch.full((1, 3, 64, 64), 777.0)
    counted = torch.stack([torch.ones(64, dtype=torch.bool), torch.zeros(64, dtype=torch.bool)])
    padded = summarize(0, Rows("a", torch.cat([scores, padding]), counted=counted), tuple(STATS), torch.arange(64))
    for stat, values in alone.means.items():
        torch.testing.assert_close(padded.means[stat], values)
    torch.testing.assert_close(padded.entropy, alone.entropy)
    torch.testing.assert_close(padded.bound, alone.bound)


def test_entropy_never_passes_its_bound() -> None:
    found, _ = layer(0, ["uniform", "ordinary", "sink"], 700)
    assert found.entropy.shape == (3, POINTS)
    assert bool((found.entropy <= found.bound + 1e-4).all())
    assert bool((found.positions.diff() > 0).all()) and 0 <= found.positions[0] and found.positions[-1] <= 699


def test_curve_keeps_the_mean() -> None:
    """Each point stands for its rows: weighting points by their number of rows gives the mean over all."""
    scores = causal(1024)  # two rows a point
    found = summarize(0, Rows("a", scores), tuple(STATS), torch.arange(1024))
    torch.testing.assert_close(found.entropy.mean(-1), found.means["entropy"], rtol=1e-4, atol=1e-4)


def test_short_texts_are_not_judged() -> None:
    found, _ = layer(0, ["saturated"], FEW - 1)
    assert found.wide is None


def test_reach_takes_the_first_token_out_exactly() -> None:
    """A head with half its weight on the first token and half on its predecessor reaches one token, at any position."""
    length = 200
    scores = torch.full((length, length), -torch.inf).masked_fill(torch.ones(length, length).tril().bool(), -60.0)
    i = torch.arange(1, length)
    scores[i, i - 1] = 0.0
    scores[i, 0] = 0.0
    found = summarize(0, Rows("a", scores[None, None]), tuple(STATS), torch.arange(length))
    assert found.wide is not None
    assert found.wide["distance"] > 50
    torch.testing.assert_close(found.wide["reach"], torch.tensor([1.0]), rtol=1e-3, atol=1e-3)


def test_sink_logit_counts_as_parked() -> None:
    scores = causal(64, heads=1)
    found = summarize(0, Rows("a", scores, sink=50.0), tuple(STATS), torch.arange(64))
    assert found.wide is not None and found.wide["parked"] > 0.99


@pytest.mark.parametrize("pad", [0, 60])
@pytest.mark.parametrize("width", [None, 9])
@pytest.mark.parametrize("causal", [True, False])
def test_causality_is_told_by_what_is_visible(causal: bool, width: int | None, pad: int) -> None:
    """Padding on the left, more of it than of the text: a query's place says nothing, its rank among real ones does."""
    i, j = torch.arange(80)[:, None], torch.arange(80)
    seen = (j >= pad) & ((j <= i) | (not causal)) & ((i - j).abs() < (width or 80))
    scores = torch.zeros(1, 2, 80, 80).masked_fill(~seen, -torch.inf)
    found = summarize(0, Rows("a", scores, counted=torch.arange(80)[None] >= pad), tuple(STATS), torch.arange(80))
    assert found.causal is causal and found.head(1).causal is causal


def test_a_cache_is_the_past_and_another_sequence_is_not() -> None:
    scores = torch.zeros(1, 2, 10, 30).masked_fill(torch.arange(30) > torch.arange(20, 30)[:, None], -torch.inf)
    assert summarize(0, Rows("a", scores), tuple(STATS), torch.arange(20, 30)).causal
    stats = tuple(stat for stat in STATS if stat != "distance")
    assert not summarize(0, Rows("a", scores, cross=True), stats, torch.arange(20, 30)).causal


def test_cross_attention_has_no_distance() -> None:
    scores = torch.randn(1, 2, 40, 30, generator=torch.Generator().manual_seed(0))
    stats = tuple(stat for stat in STATS if stat != "distance")
    found = summarize(0, Rows("a", scores, cross=True), stats, torch.arange(40))
    assert found.wide is not None and "reach" not in found.wide and "previous_token" not in found.wide
