"""Planted behaviour is found, ordinary heads are left alone, and the docs quote the thresholds that the code uses."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softlookup.inspection import weight_judges
from softlookup.inspection.findings import KINDS, THRESHOLDS, find, grouped, named_heads
from softlookup.inspection.heads import Head

from .planted import layer

PLANTED = {
    "uniform": {"near_uniform", "logit_variance_low"},
    "previous": {"previous_token"},
    "sink": {"sink"},
    "local": {"local"},
    "saturated": {"saturated", "collapsed"},
    "blow_up": {"logit_blow_up", "logit_variance_high", "collapsed"},
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("length", [160, 640])
def test_planted_behaviour_is_found(kind: str, length: int) -> None:
    made, _ = layer(4, ["ordinary", kind], length)
    found = {finding.kind for finding in find([made.head(1)])}
    assert PLANTED[kind] <= found


@pytest.mark.parametrize("length", [40, 160, 640])
def test_an_ordinary_head_is_left_alone(length: int) -> None:
    made, _ = layer(0, ["ordinary"] * 8, length)
    assert find(made.head(number) for number in range(8)) == []


def test_every_finding_carries_what_it_takes_to_act() -> None:
    made, _ = layer(7, list(PLANTED), 160)
    for finding in find(made.head(number) for number in range(made.heads)):
        assert finding.layer == 7 and finding.label == f"7.{finding.head}" and finding.path == "layers.7.self_attn"
        assert (finding.value > finding.threshold) == KINDS[finding.kind].above
        assert finding.meaning.endswith(".") and finding.advice.endswith(".")
        assert finding.label in str(finding) and "\n" not in str(finding)


def head(**wide: float) -> Head:
    ordinary = {"entropy_ratio": 0.5, "jacobian_trace": 0.5, "logit_var": 1.0, "log_visible": 7.0, "visible": 1000.0}
    ordinary |= {"parked": 0.1, "previous_token": 0.0, "reach": 300.0}
    return Head(0, 0, "a", {"max_logit": wide.pop("max_logit", 5.0)}, ordinary | wide)


def kinds(judged: Head) -> set[str]:
    return {finding.kind for finding in find([judged])}


@pytest.mark.parametrize(
    ("kind", "stat", "inside", "outside"),
    [
        ("collapsed", "entropy_ratio", 0.09, 0.11),
        ("near_uniform", "entropy_ratio", 0.96, 0.94),
        ("saturated", "jacobian_trace", 0.04, 0.06),
        ("logit_blow_up", "max_logit", 51.0, 49.0),
        ("logit_variance_high", "logit_var", 14.1, 13.9),
        ("logit_variance_low", "logit_var", 0.04, 0.06),
        ("sink", "parked", 0.31, 0.29),
        ("previous_token", "previous_token", 0.51, 0.49),
        ("local", "reach", 15.0, 17.0),
    ],
)
def test_thresholds(kind: str, stat: str, inside: float, outside: float) -> None:
    assert kinds(head(**{stat: inside})) == {kind}
    assert kinds(head(**{stat: outside})) == set()
    assert kinds(head(**{stat: math.nan})) == set()


def test_severe_blow_up_names_the_higher_threshold() -> None:
    (finding,) = find([head(max_logit=140.0)])
    assert finding.threshold == 100


def test_local_depends_on_what_is_visible_and_excludes_parked_heads() -> None:
    assert kinds(head(reach=5.0, visible=64.0)) == set()
    assert kinds(head(reach=5.0, parked=0.95)) == {"sink"}


DECODER = re.compile(r"cache|induction|copying|evict|in-context")


@pytest.mark.parametrize("kind", KINDS)
def test_only_causal_attention_is_spoken_of_as_a_decoder(kind: str) -> None:
    assert not DECODER.search(" ".join(KINDS[kind].words(causal=False)))


def test_words_follow_causality() -> None:
    causal = replace(head(previous_token=0.9, reach=3.0, parked=0.5), causal=True)
    encoder = replace(causal, head=1, causal=False)
    for kind in ("previous_token", "local", "sink"):
        one, other = (next(f for f in find([h]) if f.kind == kind) for h in (causal, encoder))
        assert DECODER.search(one.meaning + one.advice) and not DECODER.search(other.meaning + other.advice)
        (group,) = grouped([one])
        assert group.words == (one.meaning, one.advice)
        (group,) = grouped([one, other])  # what is said of both is true of both
        assert group.words == (other.meaning, other.advice)


def test_local_and_sink_advice_agree() -> None:
    """The distance of a local head leaves the first token out, and so must the window that is to replace it."""
    for words in (KINDS["local"].words(causal=True), KINDS["local"].words(causal=False)):
        assert "keeps the first token comes close" in words[1] and "same result" not in words[1]


def test_what_half_precision_does_to_large_logits() -> None:
    """Weights are off by e^(half a step) − 1 at 50; nothing overflows."""
    meaning = KINDS["logit_blow_up"].meaning
    assert "overflow" not in meaning
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        step = torch.finfo(dtype).eps * 32
        assert f"{math.expm1(step / 2):.0%}".replace("%", " %") + f" in {name}" in meaning


def test_a_head_that_was_not_judged_has_only_its_largest_logit() -> None:
    assert kinds(Head(0, 0, "a", {"max_logit": 60.0}, None)) == {"logit_blow_up"}


def test_order_and_grouping() -> None:
    made, _ = layer(0, ["sink", "sink", "blow_up", "sink"], 160)
    findings = find(made.head(number) for number in range(4))
    groups = grouped(findings)
    assert [finding for group in groups for finding in group.findings] == findings
    assert groups[-1].kind.name == "sink" and groups[-1].title == "3 sink heads"
    values = [finding.value for finding in groups[-1].findings]
    assert values == sorted(values, reverse=True)


def test_named_heads_take_turns_between_kinds() -> None:
    made, _ = layer(0, ["sink"] * 9 + ["previous", "uniform"], 160)
    named = named_heads(find(made.head(number) for number in range(11)), 4)
    assert len(named) == len(set(named)) == 4
    assert {(0, 9), (0, 10)} <= set(named)


def test_the_docs_quote_the_thresholds() -> None:
    text = (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")
    rows = {
        cells[0]: cells[2]
        for line in text.splitlines()
        if (cells := [c.strip() for c in line.strip("|").split("|")])[2:]
    }
    quoted = {name: [float(x) for x in re.findall(r"\d+(?:\.\d+)?", threshold)] for name, threshold in rows.items()}
    assert quoted["logit blow-up"] == [THRESHOLDS["logit_blow_up"], THRESHOLDS["logit_blow_up_severe"]]
    assert quoted["logit variance far above 1"] == [THRESHOLDS["logit_variance_high_per_log_visible"]]
    assert quoted["logit variance far below 1"] == [THRESHOLDS["logit_variance_low"]]
    assert quoted["previous token"] == [THRESHOLDS["previous_token"]]
    assert quoted["local"] == [THRESHOLDS["local"], 1 / THRESHOLDS["local_share"]]
    for name in ("saturated", "collapsed", "near-uniform", "sink"):
        assert quoted[name] == [THRESHOLDS[name.replace("-", "_")]]
    for name in ("symmetric", "copying", "duplicate"):
        assert quoted[name] == [weight_judges.THRESHOLDS[name]]
    assert quoted["rank-starved"] == [1, 1 / weight_judges.THRESHOLDS["rank_starved"]]


def test_theory_behind_the_thresholds() -> None:
    """H ≈ log n − σ²/2 while σ² < 2 log n, and Σp² ≤ max p."""
    n, generator = 4096, torch.Generator().manual_seed(0)
    logits = torch.randn(200, n, generator=generator, dtype=torch.float64)
    flat = torch.softmax(logits * THRESHOLDS["logit_variance_low"] ** 0.5, -1)
    assert (1 / (flat * flat).sum(-1)).mean() / n > 0.94
    untrained = torch.special.entr(torch.softmax(logits, -1)).sum(-1).mean() / math.log(n)
    assert abs(untrained - (1 - 1 / (2 * math.log(n)))) < 0.002 and untrained < THRESHOLDS["near_uniform"]
    condensed = torch.softmax(logits * (2 * math.log(n)) ** 0.5, -1)
    assert (1 / (condensed * condensed).sum(-1)).mean() < 10
    assert bool((condensed.amax(-1) >= (condensed**2).sum(-1)).all())
