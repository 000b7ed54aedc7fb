"""`softlookup table`, as a user meets it."""

import json

import numpy as np
import pytest

ROWS = [
    {"key": [1, 0, 0], "value": [1, 2], "payload": "red"},
    {"key": [0, 1, 0], "value": [3, 4], "payload": {"name": "green", "long": "x" * 100}},
    {"key": [0, 0, 1], "value": [5, 6], "payload": None},
]


@pytest.fixture
def run(command):
    """Runs a command on tables: its exit code, lines and complaints."""

    def go(*words):
        code, out, errors = command("table", *words)
        return code, out.splitlines(), errors

    return go


@pytest.fixture
def filled(run, tmp_path):
    """A table "t" of ROWS."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert run("create", "t", "--width", 3, "--values", 2)[0] == 0
    code, lines, _ = run("import", "t", "rows.jsonl")
    assert code == 0 and "3 rows added" in lines[0]


def test_query(run, filled):
    code, lines, _ = run("query", "t", "--key", "[1, 0.5, 0]", "--temperature", 0.2)
    assert code == 0 and max(map(len, lines)) <= 80
    weights = np.exp(np.array([1, 0.5, 0]) / 0.2)
    weights /= weights.sum()
    assert "1.2 effective rows; read all 3" in lines[0]
    assert [float(line.split()[0].rstrip("%")) for line in lines[3:]] == pytest.approx(100 * weights, abs=0.006)
    assert lines[3].endswith("red") and lines[4].endswith("…")
    code, lines, _ = run("query", "t", "--key", "1,0,0", "--temperature", 0, "--json", "--top-k", 1)
    assert json.loads(lines[0])["value"] == [1, 2] and json.loads(lines[0])["best"][0]["payload"] == "red"


def test_the_rest(run, filled, tmp_path):
    code, lines, _ = run("stats", "t")
    assert code == 0 and lines[0].split() == ["rows", "3"]
    assert run("delete", "t", 0, 2)[0] == 0 and run("compact", "t")[0] == 0
    assert run("verify", "t") == (0, ["Table: t (1 rows, every byte as it was written)"], [])
    np.save(tmp_path / "k.npy", np.random.default_rng(0).normal(size=(50, 3)))
    np.save(tmp_path / "v.npy", np.ones((50, 2), np.float16))
    assert "50 rows added, 51 in all" in run("import", "t", "k.npy", "--values", "v.npy")[1][0]
    code, lines, _ = run("index", "t", "--cells", 5)
    assert code == 0 and "cells over 51 rows" in lines[0]
    code, lines, _ = run("query", "t", "--key", "k.npy", "--tolerance", 0.01, "--temperature", 0.1, "--json")
    assert code == 0 and len(lines) == 50 and max(json.loads(line)["missed"] for line in lines) <= 0.01
    (tmp_path / "t" / "values-000001.npy").write_bytes(b"nothing")
    code, lines, told = run("verify", "t")
    assert code == 2 and not lines and "values-000001.npy" in told[0]


def test_parquet(run, filled, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"key": [[1.0, 2.0, 3.0]], "value": [[1.0, 2.0]], "id": [77]}), tmp_path / "r.parquet")
    assert "1 rows added" in run("import", "t", "r.parquet")[1][0]
    assert json.loads(run("query", "t", "--key", "1,2,3", "--json", "--top-k", 1)[1][0])["best"][0]["id"] == 77


WRONG = {
    "no table": (("stats", "nowhere"), "nowhere: expected the folder of a table"),
    "a folder in use": (("create", "t", "--width", 3), "expected a folder that is new or empty"),
    "no width": (("create", "u", "--width", 0), "key_width: expected a whole number from 1"),
    "no file": (("import", "t", "no.jsonl"), "no.jsonl: no such file"),
    "another kind": (("import", "t", "no.csv"), "expected .npy, .jsonl or .parquet"),
    "no JSON": (("import", "t", "rows.jsonl", '{"key": [1'), "bad.jsonl, line 2: expected JSON"),
    "another width": (("import", "t", '{"key": [1, 2], "value": [1, 2]}'), "line 2: expected a key of 3 numbers, got [1, 2]"),
    "a field too few": (("import", "t", '{"key": [1, 2, 3]}'), "line 2: expected key, value, as in the first row, got key"),
    "an unknown field": (("import", "t", '{"key": [1, 2, 3], "vaule": 1}'), "line 2: expected an object of key and perhaps"),
    "NaN": (("import", "t", '{"key": [1, 2, NaN], "value": [1, 2]}'), "line 2: expected a key of 3 numbers, got [1, 2, nan]"),
    "a used id": (("import", "t", "rows.jsonl", "used.jsonl"), "not in use, got 1"),
    "key": (("query", "t", "--key", "red"), "--key: expected numbers like"),
    "key width": (("query", "t", "--key", "1,2"), "--key: expected 3 numbers, as keys have there, got 2"),
    "temperature": (("query", "t", "--key", "1,2,3", "--temperature", -1), "temperature: expected a finite number"),
    "no cells": (("query", "t", "--key", "1,2,3", "--tolerance", 0.1), "tolerance: expected a table with cells"),
    "no row": (("delete", "t", 9), "ids: expected ids of rows, found none of 9"),
    "index": (("index", "t", "--kind", "tree"), "index: expected 'cells' or 'graph'"),
}


@pytest.mark.parametrize("words, said", WRONG.values(), ids=WRONG)
def test_one_line_says_what_was_wrong(run, filled, tmp_path, words, said):
    (tmp_path / "used.jsonl").write_text('{"key": [1, 2, 3], "value": [1, 2], "id": 1}\n')
    words = list(words)
    if str(words[-1]).startswith("{"):
        (tmp_path / "bad.jsonl").write_text('{"key": [1, 2, 3], "value": [1, 2]}\n' + words[-1])
        words[-1] = "bad.jsonl"
    code, lines, told = run(*words)
    assert code == 2 and not lines and len(told) == 1 and said in told[0]
    assert run("stats", "t")[1][0].split() == ["rows", "3"]
