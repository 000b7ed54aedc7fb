"""The object's other faces: JSON that any parser reads, a frame, a text."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from softlookup.inspection.cost import Cost, Pass, best, seconds
from softlookup.inspection.inspection import SCHEMA_VERSION, Inspection

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
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_frame needs pandas: pip install pandas"):
        planted.to_frame()


def test_text(planted: Inspection) -> None:
    assert "sink head" in repr(planted) and "Cost of looking" in repr(planted)


def test_cost() -> None:
    cost = Cost(Pass(2.0, 100.0), Pass(3.0, 120.0), Pass(9.0, 150.0))
    assert cost.ratio == 1.5 and cost.extra_mb == 50
    assert Cost(Pass(2.0, None), Pass(3.0, None), Pass(9.0, None)).extra_mb is None
    assert best([Pass(3.0, 90.0), Pass(2.0, 100.0)]) == Pass(2.0, 90.0)
    assert [seconds(x) for x in (75.3, 2.345, 0.42, 0.0123, 2.5e-5)] == ["75 s", "2.3 s", "0.42 s", "12 ms", "25 µs"]
