"""The terminal: 80 columns, findings first, the same without colour."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from softlookup.errors import SoftlookupError
from softlookup.inspection.findings import grouped
from softlookup.inspection.flow import Flow, words
from softlookup.inspection.terminal import _short, plain, summary

from .planted import inspection


@pytest.mark.parametrize(("layers", "heads"), [(30, 9), (12, 12), (6, 12), (2, 32), (2, 100), (1, 1)])
def test_it_fits_into_80_columns(layers: int, heads: int) -> None:
    text = plain(inspection([["ordinary", "sink"] * (heads // 2) + ["local"] * (heads % 2)] * layers, 32))
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_findings_come_first_in_words() -> None:
    text = plain(inspection([["sink"] * 12 + ["blow_up"]], 96))
    order = [
        text.index(part)
        for part in ("logit blow-up", "12 sink heads", "entropy ratio, layer by head", "Cost of looking")
    ]
    assert order == sorted(order)
    assert "and 4 more" in text and "mean weight on the first token > 0.3" in text and "1.42×" in text


LONG = [["sink", "previous", "local", "blow_up", "uniform", "saturated", "ordinary", "sink", "local"]] * 12


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_lines_break_where_they_should(width: int) -> None:
    made = inspection(LONG, 96, model="a-model-with-a-name-that-takes-some-room")
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(summary(made))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(line == line.rstrip() and len(line) <= width for line in lines)
    for group in grouped(made.findings):
        for found in group.findings[:8]:
            assert any(f"{found.label} {found.value:.3g}" in line for line in lines), found
    # What belongs together begins at the margin once, with a word of its own.
    for line in lines[: lines.index(next(line for line in lines if line.startswith("entropy ratio")))]:
        assert line[:2] in ("", "  ", "! ", "• ") or line.startswith(("a-model", "Findings count"))


def test_spaces_inside_a_line_stay() -> None:
    console = Console(file=io.StringIO(), width=9, color_system=None)
    console.print(Flow(words(("a", "bold"), "  b ccc dddd"), "* "))
    assert console.file.getvalue() == "* a  b\n  ccc\n  dddd\n"  # type: ignore[attr-defined]


def test_it_says_what_findings_are_judged_on() -> None:
    said = " ".join(plain(inspection([["sink", "ordinary"]], 96)).split())
    assert "at least 16 keys" in said and "leave the first token out of distances. The map takes every query." in said
    assert "at least 16 keys" not in plain(inspection([["ordinary"]], 96))


def test_the_map_shows_the_values() -> None:
    made = inspection([["ordinary", "uniform"], ["saturated", "sink"]], 96)
    lines = str(made.table("max_weight")).splitlines()
    row = next(line for line in lines if line.startswith("1 "))
    assert [float(cell) for cell in row.split()[1:]] == [
        round(v, 2) for v in made.layers[1].means["max_weight"].tolist()
    ]


def test_colour_where_there_is_some() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor")
    console.print(summary(inspection([["ordinary", "sink"]], 48)))
    assert "\x1b[" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_table_prints_itself_everywhere() -> None:
    table = inspection([["ordinary"]], 48).table()
    assert str(table) == repr(table) and "entropy ratio" in str(table)


def test_an_unknown_statistic() -> None:
    with pytest.raises(SoftlookupError, match="^stat: expected one of .*, got 'beauty'"):
        inspection([["ordinary"]], 48).table("beauty")


def test_markup_in_names_is_only_text() -> None:
    assert "[bold]x[/bold] [/]" in plain(inspection([["ordinary"]], 48, model="[bold]x[/bold] [/]"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.004, "0"), (0.424, ".42"), (0.996, "1.00"), (1.0, "1.00"), (12.34, "12.3"), (99.97, "100"),
    (123.4, "123"),
     (999.7, "1.0k"), (1234.0, "1.2k"), (34_000.0, "34k"), (2.5e6, "2.5M"), (-0.5, "-.50"), (-12.0, "-12.0")],
)  # fmt: skip
def test_short_numbers(value: float, text: str) -> None:
    assert _short(value) == text and len(text.lstrip("-")) <= 4


def test_short_numbers_are_short() -> None:
    for power in range(-30, 60):
        assert len(_short(1.7 * math.exp(power))) <= 5
