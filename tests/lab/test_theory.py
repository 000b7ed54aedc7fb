"""The chapters of theory tell what the lab measured: every claim once, with its figure, its verdict and its numbers."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from softlookup.lab import Verdict, claims, committed

CHAPTERS = sorted((Path(__file__).parents[2] / "docs" / "theory").glob("*.md"))
SECTIONS = [section for page in CHAPTERS for section in re.split(r"(?m)^(?=## )", page.read_text())]
RESULTS = {name: result for name, claim in claims().items() if (result := committed(claim))}
HEAD = re.compile(r"(?m)^\|[^|]*\| predicted \| measured \| control \|\n\|[-|]+\|\n((?:\|.*\|\n)+)")
NUMBER = r"−?[\d.]+(?:e-\d+)?"


def section(name: str) -> str:
    """The one that has the claim's figure."""
    (found,) = [text for text in SECTIONS if f"(../images/lab/{name}.svg)" in text]
    return found


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def equal(text: str, value: float) -> bool:
    """Whether the text is the value, rounded to the digits that it has."""
    digits, _, power = text.partition("e")
    return abs(number(text) - value) <= 0.501 * 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))


def bounds(text: str) -> list[float | None]:
    """Of "a to b", "≥ a", "≤ b" or "a"."""
    found: list[float | None] = [number(x) for x in re.findall(NUMBER, text)]
    return [*found, None] if "≥" in text else [None, *found] if "≤" in text else [found[0], found[-1]]


def agrees(row: dict, predicted: str, measured: str, control: str) -> bool:
    """Whether cells are those of a row of the results; only what has no spread may stand without its interval."""
    told, found = re.findall(NUMBER, measured), [row["measured"][x] for x in ("mean", "low", "high")]
    enough = len(told) == 3 or found[2] - found[1] <= 1e-6 * abs(found[0])
    alone = row["control"]["mean"]
    same = all(map(equal, told, found)) and (control == "none" if math.isnan(alone) else equal(control, alone))
    return bounds(predicted) == list(row["interval"]) and enough and same


@pytest.mark.parametrize("name", RESULTS)
def test_every_claim_stands_in_one_chapter_with_its_figure_and_verdict(name):
    (verdict,) = re.findall(rf"`softlookup lab run {name}` finds this \*\*(\w+)\*\*", section(name))
    assert verdict == RESULTS[name].verdict() and verdict in list(Verdict)
    assert len(re.findall(r"\*\*(confirmed|refuted|inconclusive)\*\*", section(name))) == 1


@pytest.mark.parametrize("name", RESULTS)
def test_tables_have_what_was_predicted_and_measured(name):
    (table,) = HEAD.findall(section(name))
    rows = RESULTS[name].rows()
    told = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[2:-1]] for line in table.splitlines()]
    assert len(told) == len(rows)
    for cells, row in zip(told, rows, strict=True):
        assert agrees(row, *cells), (cells, row)


def test_the_test_sees_a_wrong_digit():
    row = {"interval": [0.9, None], "measured": {"mean": 0.372, "low": 0.358, "high": 0.3868}, "control": {"mean": -0.0005}}
    assert agrees(row, "≥ 0.9", "0.372 (0.358 to 0.387)", "−0.0005")
    assert not agrees(row, "≤ 0.9", "0.372 (0.358 to 0.387)", "−0.0005")
    assert not agrees(row, "≥ 0.9", "0.373 (0.358 to 0.387)", "−0.0005")
    assert not agrees(row, "≥ 0.9", "0.372", "−0.0005") and not agrees(row, "≥ 0.9", "0.372 (0.358 to 0.387)", "0.0005")
