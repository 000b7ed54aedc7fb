"""Heads with a known behaviour, and their statistics from the materialized definition."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from softlookup.inspection.cost import Cost, Pass
from softlookup.inspection.findings import find, named_heads
from softlookup.inspection.heads import Layer, summarize
from softlookup.inspection.histogram import of_scores
from softlookup.inspection.inspection import Inspection, Text
from softlookup.inspection.provenance import Provenance
from softlookup.inspection.token_view import KEYS, TokenView, strongest

STATS = (
    "logsumexp max_logit max_weight argmax expected_logit expected_logit_var entropy entropy_ratio logit_mean "
    "logit_var collision effective_keys jacobian_trace visible sink_mass sink_weight distance"
).split()


@dataclass
class Rows:
    """What ``watching.LayerSeen`` offers, from logits (B, H, L, S) that are −inf where hidden."""

    name: str
    scores: Tensor
    cross: bool = False
    counted: Tensor | None = None
    sink: float | None = None

    @property
    def heads(self) -> int:
        return self.scores.shape[1]

    @cached_property
    def _statistics(self) -> dict[str, Tensor]:
        return statistics(self.scores, self.sink)

    def rows(self, stat: str) -> Tensor:
        values = self._statistics[stat].float()
        return values if self.counted is None else values.masked_fill(~self.counted[:, None], torch.nan)


def statistics(scores: Tensor, sink: float | None = None) -> dict[str, Tensor]:
    """All statistics (B, H, L) of SEMANTICS by their definition."""
    seen = torch.isfinite(scores)
    p = torch.softmax(scores.double(), -1)
    s = scores.double().masked_fill(~seen, 0)
    n = seen.sum(-1)
    length, keys = scores.shape[-2:]
    lse = torch.logsumexp(scores.double(), -1)
    mean = s.sum(-1) / n
    expected = (p * s).sum(-1)
    away = (torch.arange(length)[:, None] + keys - length - torch.arange(keys)).abs()
    collision = (p * p).sum(-1)
    entropy = -torch.special.xlogy(p, p).sum(-1)
    return {
        "logsumexp": lse,
        "max_logit": scores.amax(-1),
        "max_weight": p.amax(-1),
        "argmax": scores.argmax(-1),
        "expected_logit": expected,
        "expected_logit_var": (p * s * s).sum(-1) - expected**2,
        "entropy": entropy,
        "entropy_ratio": torch.where(n > 1, entropy / n.clamp_min(2).log(), 0.0),
        "logit_mean": mean,
        "logit_var": (seen * (s - mean[..., None]) ** 2).sum(-1) / n,
        "collision": collision,
        "effective_keys": 1 / collision,
        "jacobian_trace": 1 - collision,
        "visible": n,
        "sink_mass": p[..., 0],
        "sink_weight": torch.zeros_like(lse) if sink is None else torch.sigmoid(sink - lse),
        "distance": (p * away).sum(-1),
    }


def head(kind: str, length: int, generator: torch.Generator) -> Tensor:
    """Causal logits (L, L) of one head that behaves as its name says."""
    noise = torch.randn(length, length, generator=generator)
    i, j = torch.arange(length)[:, None], torch.arange(length)
    scores = {
        "ordinary": noise * 1.5,
        "uniform": noise * 0.01,
        "previous": noise + 9.0 * (j == i - 1),
        "sink": noise + (length / 20) ** 0.01 * 9.0 * (j == 0),
        "local": noise - 0.6 * (i - j).abs(),
        "saturated": noise + 25.0 * (j == (i * 7) // 9),
        "blow_up": noise * 20.0,
    }[kind]
    return scores.masked_fill(j > i, -torch.inf)


def layer(
    index: int, kinds: list[str], length: int = 96, seed: int = 0, counted: Tensor | None = None
) -> tuple[Layer, Rows]:
    generator = torch.Generator().manual_seed(seed + 1000 * index)
    scores = torch.stack([head(kind, length, generator) for kind in kinds])[None]
    rows = Rows(f"layers.{index}.self_attn", scores, counted=counted)
    return summarize(index, rows, tuple(STATS), torch.arange(length)), rows


def inspection(
    kinds: list[list[str]], length: int = 96, words: list[str] | None = None, model: str = "planted"
) -> Inspection:
    """A whole inspection; ``kinds[layer][head]`` names each head's behaviour."""
    made = [layer(index, row, length) for index, row in enumerate(kinds)]
    layers = [part for part, _ in made]
    findings = find(part.head(number) for part in layers for number in range(part.heads))
    views = []
    for number, single in named_heads(findings, 16):
        keys, weights = strongest(torch.softmax(made[number][1].scores[0, [single]], -1), KEYS)
        views.append(TokenView(number, single, layers[number].path, keys[0], weights[0], length))
    sampled = torch.arange(0, length, max(1, length // 64))
    return Inspection(
        model=model,
        kind="Planted, 0 parameters",
        layers=layers,
        histograms={part.index: of_scores(rows.scores[:, :, sampled]) for part, rows in made},
        views=views,
        findings=findings,
        cost=Cost(Pass(2.13, 900.0), Pass(3.02, 1010.0), Pass(2.9, 950.0)),
        tokens=words,
        text=Text("chapters of pydoc_data.topics (Python 3.11)", "a3f1" * 16),
        provenance=Provenance("bfloat16", "cuda:1", "0.1.0", "2.13.0"),
    )
