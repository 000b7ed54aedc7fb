"""Histograms of logits, exact on a seeded sample of query rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..operator import scores_of
from ..watching import Call, Probe
from ..watching.slices import at_rows

BINS = 48
ROWS = 64
"""Sampled queries per layer: with 2,048 keys that is some 65,000 logits per head, plenty for 48 bins."""


@dataclass(frozen=True)
class Histogram:
    """The logits of one layer's heads over sampled queries.

    low, high: (H,) range of each head's bins
    keys:      (H, BINS) share of the visible keys whose logit falls into a bin
    weight:    (H, BINS) share of the attention weight (softmax, a sink logit aside) that these keys get
    queries:   number of sampled queries
    """

    low: Tensor
    high: Tensor
    keys: Tensor
    weight: Tensor
    queries: int


def sample_rows(length: int, counted: Tensor | None, seed: int = 0) -> Tensor:
    """Up to ``ROWS`` query rows (sorted) out of ``length``, among those that are a real token in some sequence of
    the batch."""
    candidates = torch.arange(length) if counted is None else torch.nonzero(counted.cpu().any(0)).flatten()
    generator = torch.Generator().manual_seed(seed)
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:ROWS]]
    return chosen.sort().values


def of_scores(scores: Tensor, counted: Tensor | None = None) -> Histogram:
    """Histogram of logits (B, H, R, S), −inf where hidden. ``counted`` (B, R) is False for rows that are padding."""
    heads, rows = scores.shape[1:3]
    scores = scores.detach().float()
    seen = torch.isfinite(scores)
    if counted is not None:
        seen &= counted.to(scores.device)[:, None, :, None]
    peak = scores.masked_fill(~seen, -torch.inf).amax(-1, keepdim=True)
    probability = torch.exp(scores - peak).masked_fill(~seen, 0)
    probability /= probability.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)

    low = scores.masked_fill(~seen, torch.inf).amin((0, 2, 3))
    high = scores.masked_fill(~seen, -torch.inf).amax((0, 2, 3))
    empty = ~torch.isfinite(low)
    low, high = low.masked_fill(empty, 0), high.masked_fill(empty, 0)
    span = (high - low).clamp_min(1e-6)
    place = (scores - low[:, None, None]) / span[:, None, None] * BINS
    bins = (
        place.nan_to_num(0, 0, 0).long().clamp_(0, BINS - 1)
        + BINS * torch.arange(heads, device=scores.device)[:, None, None]
    )

    def shares(amount: Tensor) -> Tensor:
        total = torch.bincount(bins.flatten(), amount.flatten(), minlength=heads * BINS).view(heads, BINS)
        return (total / total.sum(-1, keepdim=True).clamp_min(1e-30)).float().cpu()

    return Histogram(low.cpu(), high.cpu(), shares(seen.float()), shares(probability), rows)


def probe(found: dict[str, Histogram], seed: int = 0) -> Probe:
    """A probe for ``watch`` that puts one ``Histogram`` per layer name into ``found``."""

    def look_at(call: Call) -> None:
        rows = sample_rows(call.query.shape[-2], call.rows, seed)
        if len(rows) == 0:
            return
        query, arguments = at_rows(call, rows)
        scores = scores_of(query, call.key, call.value, **arguments)
        counted = None if call.rows is None else call.rows[:, rows.to(call.rows.device)]
        found[call.layer] = of_scores(scores, counted)

    return look_at
