"""Alarms: raised after enough observations beyond, once; cleared only when well back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import softlookup as sl
from softlookup.summary import Stats
from softlookup.watching import RULES, Alarms, Call, Seen

HEALTHY = {"logit_var": 1.0, "entropy_ratio": 0.6, "max_logit": 5.0, "jacobian_trace": 0.8, "sink_mass": 0.1}
BY_KIND = {rule.kind: rule for rule in RULES}


def observed(alarms: Alarms, step: int, **numbers: float) -> list[str]:
    """Head 1 of two has these numbers, head 0 is healthy."""
    seen = Seen(tuple(HEALTHY))
    values = {name: torch.full((1, 2, 4), x) for name, x in HEALTHY.items()}
    for name, number in numbers.items():
        values[name][:, 1] = number
    x = torch.zeros(1, 2, 4, 3)
    seen.record(Call("attn", x, x, x), Stats({**values, "visible": torch.full((1, 2, 4), 4)}))
    return [f"{'-' if a.cleared else '+'}{a.kind} {a.head}" for a in alarms(step, seen)]


CASES = {
    "logit level": ("max_logit", 101.0, 60.0, 40.0),
    "entropy collapse": ("entropy_ratio", 0.01, 0.03, 0.1),
    "saturation": ("jacobian_trace", 0.005, 0.02, 0.1),
    "sink takeover": ("sink_mass", 0.98, 0.95, 0.5),
    "dead head": ("logit_var", 0.0005, 0.005, 0.1),
}


@pytest.mark.parametrize("kind", CASES)
def test_raised_once_with_patience_and_cleared_with_hysteresis(kind):
    stat, beyond, between, back = CASES[kind]
    rule = BY_KIND[kind]
    alarms = Alarms((rule,))
    for step in range(rule.warm_up):
        assert observed(alarms, step, **{stat: beyond}) == []
    for step in range(rule.patience - 1):
        assert observed(alarms, step, **{stat: beyond}) == []
    assert observed(alarms, 7, **{stat: between}) == []  # the streak is broken
    for step in range(rule.patience - 1):
        assert observed(alarms, step, **{stat: beyond}) == []
    assert observed(alarms, 8, **{stat: beyond}) == [f"+{kind} 1"]
    assert list(alarms.active) == [(kind, "attn", 1)]
    for value in (beyond, between, beyond, between):
        assert observed(alarms, 9, **{stat: value}) == [], "it rings again"
    assert observed(alarms, 10, **{stat: back}) == [f"-{kind} 1"]
    assert alarms.active == {}
    assert observed(alarms, 11) == []


def test_growth_is_over_fifty_observations():
    alarms = Alarms((BY_KIND["logit growth"],))
    for step in range(200):
        assert observed(alarms, step, max_logit=5.0 * 1.01**step) == []  # 1.64 times in fifty
    alarms = Alarms((BY_KIND["logit growth"],))
    rang = [step for step in range(120) if observed(alarms, step, max_logit=5.0 * 1.05**step)]
    assert rang and 35 < rang[0] < 60, "11.5 times in fifty, counted from 10"


def test_not_finite_rings_at_once():
    for bad in (math.nan, math.inf):
        alarms = Alarms()
        assert observed(alarms, 3, max_logit=bad)[0] == "+not finite 1"


def test_healthy_heads_are_left_in_peace():
    alarms = Alarms()
    assert all(observed(alarms, step) == [] for step in range(400))


def test_the_words():
    alarms = Alarms((BY_KIND["logit level"],))
    seen = Seen(("max_logit",))
    x = torch.zeros(1, 2, 4, 3)
    stats = Stats({"max_logit": torch.full((1, 2, 4), 123.4), "visible": torch.full((1, 2, 4), 4)})
    seen.record(Call("attn", x, x, x), stats)
    words = [str(alarm) for step in (5, 6, 7) for alarm in alarms(step, seen)]
    assert words == [
        "step 7: attn head 0: logit level: largest logit 123 (> 100). Softmax is about to become an argmax, and half "
        "precision rounds its logits coarsely. Clip the projections (qk_clip_), normalize queries and keys (QK-norm) or cap "
        "the logits.",
        "step 7: attn head 1: logit level: largest logit 123 (> 100)",  # what to do about it has been said
    ]


def test_thresholds_may_be_others():
    alarms = Alarms(thresholds={"logit level": 10.0})
    rang = [observed(alarms, step, max_logit=12.0) for step in range(3)]
    assert rang == [[], [], ["+logit level 1"]]
    assert observed(alarms, 4, max_logit=6.0) == [] and observed(alarms, 5, max_logit=4.0) == ["-logit level 1"]
    with pytest.raises(sl.SoftlookupError, match="expected thresholds of not finite, .*, got 'logits'"):
        Alarms(thresholds={"logits": 1.0})


def test_rules_whose_statistics_are_not_watched():
    seen = Seen(("entropy",))
    assert Alarms()(0, seen) == []
    with pytest.raises(sl.SoftlookupError, match="a watch of max_logit for logit level, got entropy"):
        Alarms((BY_KIND["logit level"],))(0, seen)


def test_every_remedy_named_exists():
    import softlookup.remedies as remedies

    for rule in RULES:
        for word in rule.remedy.replace("(", " ").replace(")", " ").replace(",", " ").split():
            if "_" in word:
                assert hasattr(remedies, word.strip(".")), word


def test_the_page_has_the_rules_as_they_are():
    page = (Path(__file__).parents[2] / "docs" / "watching.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")]
    told = {row[0]: row for row in rows if row[0] in BY_KIND}
    for rule in RULES:
        raised, cleared = (">", "≤") if rule.above else ("<", "≥")
        want = [f"{raised} {rule.raised:g}", f"{cleared} {rule.cleared:g}", str(rule.patience)]
        assert told[rule.kind][2:5] == want, rule.kind
