"""The object's other faces: JSON that any parser reads, a frame, a text."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from softlookup.errors import SoftlookupError
from softlookup.inspection.cost import Cost, Pass, best, seconds
from softlookup.inspection.inspection import SCHEMA_VERSION, Inspection
from softlookup.watching import Seen

from .planted import inspection


@pytest.fixture(scope="module")
def planted() -> Inspection:
    return inspection([["ordinary", "sink"], ["previous", "uniform"]], 96)


def test_json(planted: Inspection, tmp_path: Path) -> None:
    planted.save_json(tmp_path / "a.json")
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert read["schema_version"] == SCHEMA_VERSION and read["model"] == "planted" and read["tokens"] == 96
    assert [(head["layer"], head["head"]) for head in read["heads"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all({"entropy", "max_logit", "path", "findings"} <= head.keys() for head in read["heads"])
    assert "sink" in read["heads"][1]["findings"] and read["text"]["sha256"] == planted.text.sha256
    assert {"kind", "layer", "head", "value", "threshold", "meaning", "advice"} <= read["findings"][0].keys()
    assert read["cost"]["ratio"] == pytest.approx(planted.cost.ratio)


def test_numbers_that_json_does_not_know(planted: Inspection) -> None:
    head = planted.layers[0].means["entropy"]
    before = head.clone()
    head[0] = float("nan")
    try:
        assert json.loads(planted.to_json())["heads"][0]["entropy"] is None
    finally:
        head.copy_(before)


def test_frame(planted: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    frame = planted.to_frame()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 4 and frame.loc[1, "findings"].startswith("sink")


def test_frame_without_pandas(planted: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same line as from a watch's ``Seen``."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    for frame in (planted.to_frame, Seen(("entropy",)).to_frame):
        with pytest.raises(SoftlookupError, match=r"^to_frame: expected pandas to be installed \(pip install pandas\)$"):
            frame()


@pytest.mark.parametrize("save", ["save_html", "save_json"])
def test_a_file_of_somebody_else_is_never_replaced(planted: Inspection, tmp_path: Path, save: str) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SoftlookupError, match=f"^{save}: .*mine exists and was not written by softlookup"):
        getattr(planted, save)(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"
    for _ in range(2):  # its own it does
        getattr(planted, save)(tmp_path / "ours")


def test_json_says_what_computed_it_and_what_findings_judge(planted: Inspection) -> None:
    read = json.loads(planted.to_json())
    assert read["provenance"] == {
        "dtype": "bfloat16", "device": "cuda:1", "softlookup": "0.1.0", "torch": "2.13.0", "causal": True
    }  # fmt: skip
    values = {(finding["kind"], finding["layer"], finding["head"]): finding["value"] for finding in read["findings"]}
    assert read["heads"][2]["previous_token_share"] == values["previous_token", 1, 0]
    assert read["heads"][2]["distance_without_first_token"] == values["local", 1, 0] != read["heads"][2]["distance"]
    short = json.loads(inspection([["ordinary"]], 8).to_json())["heads"][0]
    assert short["previous_token_share"] is None and short["distance_without_first_token"] is None


def test_the_docs_name_every_field_of_the_json(planted: Inspection) -> None:
    section = (Path(__file__).parents[2] / "docs" / "inspect.md").read_text(encoding="utf-8").split("## JSON")[1]
    named = set(re.findall(r"`(\w+)`", section))
    read = planted.as_dict()
    assert {*read, *read["provenance"], *read["text"], *read["findings"][0]} - named == set()
    assert {*read["heads"][0]} - {*planted.stats} - named == set()


def test_text(planted: Inspection) -> None:
    assert "sink head" in repr(planted) and "Cost of looking" in repr(planted)


def test_cost() -> None:
    cost = Cost(Pass(2.0, 100.0), Pass(3.0, 120.0), Pass(9.0, 150.0))
    assert cost.ratio == 1.5 and cost.extra_mb == 50
    assert Cost(Pass(2.0, None), Pass(3.0, None), Pass(9.0, None)).extra_mb is None
    assert best([Pass(3.0, 90.0), Pass(2.0, 100.0)]) == Pass(2.0, 90.0)
    assert [seconds(x) for x in (75.3, 2.345, 0.42, 0.0123, 2.5e-5)] == ["75 s", "2.3 s", "0.42 s", "12 ms", "25 µs"]
