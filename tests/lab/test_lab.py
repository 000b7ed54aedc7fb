"""The lab: every claim says beforehand where its numbers lie, runs, and fails without its mechanism; verdicts are computed."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from softlookup.cli import app
from softlookup.errors import SoftlookupError
from softlookup.lab import Measured, Result, Verdict, claims, committed, run
from softlookup.lab.claim import chosen
from softlookup.lab.figure import origin, svg
from softlookup.lab.records import Records, checksum
from softlookup.lab.report import page
from softlookup.lab.verdict import together

DOCS = Path(__file__).parents[2] / "docs"
SHORT = ("soft_to_hard", "capacity", "collapse")
"""Claims whose quick runs take seconds; those of the others, as of the notebooks, are for `make experiments`."""
LAB_PAGE, FIGURES = DOCS / "lab.md", DOCS / "images" / "lab"


def by_length(name: str):
    return name if name in SHORT else pytest.param(name, marks=pytest.mark.experiment)


@pytest.mark.slow
@pytest.mark.parametrize("name", [by_length(name) for name in claims()])
def test_a_quick_run_agrees_with_the_full_one_and_the_control_fails(name):
    claim, full = claims()[name], committed(claims()[name])
    result = run(claim, quick=True)
    assert result.flips, [row["control"] for row in result.rows()]
    for quick, whole in zip(result.rows(), full.rows(), strict=True):
        assert {quick["verdict"], whole["verdict"]} != {Verdict.CONFIRMED, Verdict.REFUTED}, (quick, whole)
    assert "<path" in svg(result) and result.seconds > 0


@pytest.mark.parametrize("name", claims())
def test_a_claim_says_what_would_refute_it_and_its_full_result_fails_without_the_mechanism(name):
    claim, full = claims()[name], committed(claims()[name])
    assert all(word in claim.text for word in ("**Claim.**", "**Source.**", "**Control.**", "**What would refute it.**"))
    assert len(claim.title) <= 80 and claim.seeds >= claim.quick_seeds >= 1
    for q in claim.quantities:
        assert q.low <= q.high and math.isfinite(max(q.low, -q.high)) and q.source
    assert not full.quick and len(full.found) == len(full.control) == claim.seeds and full.flips


def test_numbers_are_those_of_the_lab_in_order():
    numbers = [claim.number for claim in claims().values()]
    assert numbers == list(range(1, 17))


def test_a_verdict_is_where_the_interval_lies():
    from scipy.stats import ttest_1samp

    values = [1.0, 2.0, 4.0]
    found, of_scipy = Measured.of(values), ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((of_scipy.low, of_scipy.high)) and found.seeds == 3
    one = Measured.of([2.0])
    assert (one.low, one.high) == (2.0, 2.0)
    sides = {(0, 9): "confirmed", (2.5, 9): "refuted", (0, 1.5): "refuted", (2, 2): "confirmed"}
    assert {bounds: one.verdict(*bounds).value for bounds in sides} == sides
    assert Measured(2.0, 1.0, 3.0, 4).verdict(1.5, math.inf) is Verdict.INCONCLUSIVE
    assert Measured.of([math.nan]).verdict(-math.inf, math.inf) is Verdict.INCONCLUSIVE
    yes, no, open_ = Verdict.CONFIRMED, Verdict.REFUTED, Verdict.INCONCLUSIVE
    assert [together(x) for x in ([yes, yes], [yes, no, open_], [yes, open_])] == [yes, no, open_]


def test_records_are_made_once_and_their_bytes_are_checked(tmp_path):
    made, new = [], tmp_path / "claim" / "records.json"

    def make():
        made.append(1)
        return {"loss": (1.5, 2.0)}

    records = Records(None, new)
    assert records.get("a", make) == records.get("a", make) == {"loss": [1.5, 2.0]} and len(made) == 1
    assert Records(None, new).get("a", make) == {"loss": [1.5, 2.0]} and len(made) == 1  # what was stopped goes on
    assert Records(new).get("a", make) == {"loss": [1.5, 2.0]} and len(made) == 1
    assert json.loads(new.read_text())["a"]["sha256"] == checksum({"loss": [1.5, 2.0]})
    new.write_text(new.read_text().replace("1.5", "1.6"))
    with pytest.raises(SoftlookupError, match="the checksum of 'a' differs"):
        Records(new)
    new.write_text("[1]")
    with pytest.raises(SoftlookupError, match="expected run records in JSON"):
        Records(new)


def test_committed_records_are_as_they_were_written():
    for claim in claims().values():
        Records(claim.folder / "records.json")


def test_a_result_is_the_same_from_its_file(tmp_path):
    claim = claims()["soft_to_hard"]
    result = committed(claim)
    path = tmp_path / "soft_to_hard.json"
    path.write_text(result.to_json())
    again = Result.read(claim, path)
    assert again.rows() == result.rows() and again.verdict() is result.verdict()
    path.write_text('{"name": "soft_to_hard"}')
    with pytest.raises(SoftlookupError, match="expected a result of soft_to_hard"):
        Result.read(claim, path)


def test_names_are_checked():
    assert [claim.name for claim in chosen(["soft_to_hard", "soft_to_hard"])] == ["soft_to_hard"]
    assert chosen(["all"]) == list(claims().values())
    with pytest.raises(SoftlookupError, match="did you mean soft_to_hard"):
        chosen(["soft_to_hart"])


def test_the_page_has_every_claim_and_its_numbers():
    results = [result for claim in claims().values() if (result := committed(claim)) is not None]
    text = page(results)
    assert text.count("<section") == text.count("<svg") == len(results)
    for result in results:
        assert f'id="{result.claim.name}"' in text and result.claim.control.split("=")[0] in text


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = CliRunner().invoke
    said = call(app, ["lab", "list"]).output
    assert all(name in said for name in claims())
    said = call(app, ["lab", "run", "soft_to_hard", "--quick", "--folder", "found", "--json", "rows.json"])
    assert said.exit_code == 0 and "confirmed" in said.output and "Results: found" in said.output
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {"name", "prediction", "interval", "measured", "verdict"} <= rows[0].keys()
    assert rows[0]["name"] == "soft_to_hard/retrieval" and rows[0]["interval"] == [None, 1e-6]
    said = call(app, ["lab", "report", "--folder", "found", "--figures", "figures"])
    assert said.exit_code == 0 and "quick run" in (tmp_path / "lab-report.html").read_text()
    assert "<svg" in (tmp_path / "figures" / "soft_to_hard.svg").read_text()
    for wrong in (["run", "nothing"], ["run", "all", "--quick", "--retrain"], ["report", "--folder", "empty"]):
        found = call(app, ["lab", *wrong])
        assert isinstance(found.exception, SoftlookupError), wrong


def test_a_claim_that_cannot_be_run_is_told_of_and_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def without(claim, *said):
        if claim.name == "domains":
            raise SoftlookupError("whisper: expected its package")
        return run(claim, *said)

    monkeypatch.setattr("softlookup.lab.command.run", without)
    said = CliRunner().invoke(app, ["lab", "run", "domains", "soft_to_hard", "--quick"])
    assert said.exit_code == 2 and "Note: domains was not run: whisper: expected its package" in said.output
    assert [path.name for path in (tmp_path / "lab").iterdir()] == ["soft_to_hard.json"]


def test_figures_of_the_docs_are_of_the_committed_results():
    """`softlookup lab report --figures docs/images/lab` draws them; the first line says from what."""
    results = [result for claim in claims().values() if (result := committed(claim)) is not None]
    assert [path.stem for path in sorted(FIGURES.glob("*.svg"))] == sorted(result.claim.name for result in results)
    for result in results:
        assert origin(result) in (FIGURES / f"{result.claim.name}.svg").read_text().partition("\n")[0], result.claim.name


def test_the_docs_list_the_claims_with_their_verdicts():
    lines = [f"| {c.number} | `{c.name}` | {c.title} | {committed(c).verdict()} |" for c in claims().values()]
    listed = [line for line in LAB_PAGE.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    assert [re.sub(r"\[(.*)\]\(.*\)", r"\1", line) for line in listed] == lines, "\n".join(lines)
    for claim, line in zip(claims().values(), listed, strict=True):  # whose title leads to the chapter with its figure
        chapter, _, _ = re.search(r"\]\((.*)\)", line)[1].partition("#")
        assert f"images/lab/{claim.name}.svg" in (DOCS / chapter).read_text(), claim.name
