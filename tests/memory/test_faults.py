"""What went wrong once: changes that are undone, numbers out of range, and states that nobody meant."""

import json
import shutil
import sqlite3
import threading

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from softlookup.errors import SoftlookupError
from softlookup.memory import SoftTable
from softlookup.memory import ledger as ledgers
from tests.memory.test_command import filled, run  # noqa: F401
from tests.memory.test_table import make  # noqa: F401

pytest.importorskip("faiss")
K, V = torch.eye(3), torch.tensor([[1.0, 2], [3, 4], [5, 6]])


def test_a_part_of_a_change_that_fails_is_undone_by_itself(make):  # noqa: F811
    table = make(K, V)
    with table.together():
        with pytest.raises(SoftlookupError, match="payload"):
            table.update([1], payloads=[{1, 2}])
        with pytest.raises(SoftlookupError, match="payload"):
            table.add(K * 5, V * 9, payloads=["x", {1}, "y"])
        table.add(2 * K[:1], V[:1])
    assert len(table) == 4 and table.verify() == []
    assert torch.equal(table.get().keys, torch.cat([K, 2 * K[:1]])) and table.get().ids.tolist() == [0, 1, 2, 3]
    table.add(K, V)
    assert torch.equal(table.lookup(7 * K[1:2], 0.01, top_k=1).value, V[1:2]) and len(table) == 7


def test_rows_that_never_were_are_not_read(tmp_path):
    with SoftTable.create(tmp_path / "t", 3, 2) as first:
        with pytest.raises(KeyError), first.together():
            first.add(K, V)
            first.lookup(K, 1.0)
            raise KeyError
        with SoftTable.open(tmp_path / "t", write=True) as second:
            second.add(2 * K, V)
        assert torch.equal(first.get().keys, 2 * K) and first.verify() == []


def test_an_index_that_never_was(make):  # noqa: F811
    keys = normalize(torch.randn(400, 3), dim=1)
    table = make(keys, torch.randn(400, 2))
    table.index("cells", 20)
    want = table.lookup(keys[:5], 0.02, tolerance=1e-2)
    with pytest.raises(KeyError), table.together():
        table.index("cells", 5)
        table.delete(range(300))
        table.lookup(keys[:5], 0.02, tolerance=1e-2)
        raise KeyError
    assert table.verify() == []
    found = table.lookup(keys[:5], 0.02, tolerance=1e-2)
    assert torch.equal(found.value, want.value) and torch.equal(found.missed, want.missed)
    table.index("cells", 10)
    table.lookup(keys[:5], 0.02, tolerance=1e-2)
    assert len(table._built) == 1  # what was built before is forgotten
    table.delete([399])
    after = table.lookup(keys[:5], 0.02, tolerance=1e-2)
    torch.testing.assert_close(after.value, table.lookup(keys[:5], 0.02).value, atol=0.1, rtol=0)


def test_leftovers_go_when_the_next_one_writes(tmp_path):
    folder = tmp_path / "t"
    with SoftTable.create(folder, 3, 2) as table:
        table.add(K, V)
    for name in ("index-000099-graph", ".index-000099-graph.part", "keys-000044.npy"):
        (folder / name).write_bytes(b"left")
    SoftTable.open(folder).close()
    assert (folder / "keys-000044.npy").exists()
    SoftTable.open(folder, write=True).close()
    assert {path.name for path in folder.iterdir()} == {"table.sqlite", "keys-000000.npy", "values-000000.npy"}


def test_a_create_that_was_killed(tmp_path):
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / ".table.sqlite.part").write_bytes(b"half")
    with pytest.raises(SoftlookupError, match="expected the folder of a table"):
        SoftTable.open(folder)
    SoftTable.create(folder, 3).close()
    assert len(SoftTable.open(folder)) == 0
    other = tmp_path / "other"
    other.mkdir()
    sqlite3.connect(other / "table.sqlite").execute("CREATE TABLE x (y)").connection.close()
    with pytest.raises(SoftlookupError, match="expected the database of a table in table.sqlite, found another"):
        SoftTable.open(other)


def test_nothing_is_changed_inside_of_a_read(make):  # noqa: F811
    table = make(K, V)
    with table.reading():
        with pytest.raises(SoftlookupError, match="expected changes outside of reading"):
            table.add(K, V)
        assert len(table) == 3
    table.add(K, V)


def test_an_interrupt_after_all_was_written_says_so(tmp_path):
    table = SoftTable.create(tmp_path / "t", 3, 2)
    real = table._ledger._db

    class Interrupting:
        def __getattr__(self, name):
            return getattr(real, name)

        def execute(self, statement, *more):
            done = real.execute(statement, *more)
            if statement == "COMMIT":
                raise KeyboardInterrupt
            return done

    table._ledger._db = Interrupting()
    with pytest.raises(ledgers.Committed):
        table.add(K, V)
    table._ledger._db = real
    assert len(table) == 3


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_that_float32_cannot_hold(make):  # noqa: F811
    table = make(K, V)
    for keys, values in ((K.double() * 1e300, V), (K, V.double() * 1e300)):
        with pytest.raises(SoftlookupError, match="expected finite numbers in float32"):
            table.add(keys, values)
    table.add(K.double(), V.half())
    assert len(table) == 6


@pytest.mark.parametrize("how", [{}, {"top_k": 2}, {"tolerance": 0.1}])
def test_scores_beyond_all_range_are_an_error_and_not_nan(make, how):  # noqa: F811
    keys = torch.cat([K, 2 * K, -K])
    table = make(keys, torch.randn(9, 2))
    table.index("cells", 2)
    for query, temperature in ((K, 1e-40), (K * 1e30, 1e-10), (K, torch.full((3,), 1e-40))):
        with pytest.raises(SoftlookupError, match="expected scores / temperature that float32 can hold"):
            table.lookup(query, temperature, **how)


@pytest.mark.parametrize("temperature", [0.3, 1e-2, 1e-4, 1e-6])
def test_weights_sum_to_one_however_cold(make, temperature):  # noqa: F811
    draw = torch.Generator().manual_seed(0)
    keys = torch.randn(500, 64, generator=draw) * 4
    table = make(torch.cat([keys, keys[:1]]), torch.randn(501, 2, generator=draw))
    found = table.lookup(torch.randn(100, 64, generator=draw) * 4, temperature, top_k=501)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(100), rtol=2e-4, atol=0)  # scores of 100 are known to 1e-5
    twice = table.lookup(keys[:1], temperature, top_k=2)
    torch.testing.assert_close(twice.weights, torch.full((1, 2), 0.5), rtol=1e-5, atol=1e-5)


def test_a_graph_whose_best_rows_are_gone(make):  # noqa: F811
    keys = normalize(torch.randn(3000, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    table = make(keys, torch.randn(3000, 2))
    table.index("graph")
    order = (keys @ keys[0]).argsort(descending=True)
    table.delete(order[:2990])
    found = table.lookup(keys[:1], 0.1, top_k=3)
    assert found.ids[0].tolist() == order[2990:2993].tolist() and not found.certified


def test_a_query_of_zeros_at_temperature_zero(make):  # noqa: F811
    keys, values = torch.randn(500, 8), torch.randn(500, 2)
    table = make(keys, values)
    table.index("cells")
    found = table.lookup(torch.zeros(1, 8), 0, tolerance=0.1)
    torch.testing.assert_close(found.value, values.mean(0, keepdim=True), atol=1e-6, rtol=0)
    assert found.missed == 0


def test_an_index_of_few_or_far_rows(make):  # noqa: F811
    make(K, V).index("cells")
    for kind in ("cells", "graph"):
        with pytest.raises(SoftlookupError, match="expected keys of numbers up to 1e"):
            make(torch.randn(50, 3) * 1e19, torch.ones(50, 1)).index(kind)


WRONG = {
    "ids: expected whole numbers from 0": lambda t: t.add(K, V, ids=[0, -1, 2]),
    "ids: expected whole numbers from 0 to": lambda t: t.add(K, V, ids=[5, 6, 2**62]),
    "ids: expected a list of whole numbers, got 3": lambda t: t.get(3),
    "ids: expected a list of whole numbers, got None": lambda t: t.delete(None),
    "query: expected torch.float32 like the keys, got torch.float64": lambda t: t.lookup(K.double(), top_k=1),
    "top_k: expected a whole number of at least 1, got 2.5": lambda t: t.lookup(K, top_k=2.5),
    "steps: expected a whole number of at least 1, got True": lambda t: t.lookup(K, steps=True),
    "tolerance: expected a share between 0 and 1, got 'x'": lambda t: t.lookup(K, tolerance="x"),
    "cells: expected a whole number, got 2.5": lambda t: t.index("cells", 2.5),
    "payload: expected bytes or what JSON can say, got str": lambda t: t.add(K[:1], V[:1], payloads=["\ud800"]),
}


@pytest.mark.parametrize("said", WRONG)
def test_mistakes_are_one_line(make, said):  # noqa: F811
    table = make(K, V)
    with pytest.raises(SoftlookupError) as error:
        WRONG[said](table)
    assert str(error.value).startswith(said) and "\n" not in str(error.value) and len(table) == 3


def test_numpys_numbers_are_numbers(make):  # noqa: F811
    table = make(K, V, None, np.array([4, 5, 6]))
    assert table.get(np.array([5])).ids.tolist() == [5]
    assert torch.equal(table.lookup(K, np.float32(0.5)).value, table.lookup(K, 0.5).value)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_any_byte_of_the_database_may_flip(tmp_path):
    """What is read is an error of one line or right; `verify` gives lines."""
    with SoftTable.create(tmp_path / "t", 3, 2) as table:
        table.add(K, V, [{"a": 1}, "b", b"c"])
        table.delete([1])
        want = table.get()
    draw, told = np.random.default_rng(0), 0
    content = (tmp_path / "t" / "table.sqlite").read_bytes()
    places = draw.choice(np.flatnonzero(np.frombuffer(content, np.uint8)), 150, replace=False)
    for n, place in enumerate(places.tolist()):
        shutil.rmtree(tmp_path / "u", ignore_errors=True)
        shutil.copytree(tmp_path / "t", tmp_path / "u")
        spoiled = bytearray(content)
        spoiled[place] ^= 1 << (n % 8)
        (tmp_path / "u" / "table.sqlite").write_bytes(spoiled)
        try:
            with SoftTable.open(tmp_path / "u") as table:
                lines = table.verify()
                try:
                    table.lookup(K, 0.5)
                    same = torch.equal(table.get().keys, want.keys) and table.get().payloads == want.payloads
                except SoftlookupError:
                    same = False
                assert same or lines, place
                told += bool(lines)
        except SoftlookupError as error:
            assert "\n" not in str(error)
            told += 1
    assert told > 20


FILES = {
    "big.jsonl": (json.dumps({"key": [1, 0, 0], "value": [1, 2], "id": 2**63 - 1}), "ids: expected whole numbers"),
    "surrogate.jsonl": ('{"key": [1, 0, 0], "value": [1, 2], "payload": "\\ud800"}', "payload: expected"),
    "huge.jsonl": ('{"key": [1' + "0" * 400 + ', 0, 0], "value": [1, 2]}', "line 1: expected a key of numbers"),
    "deep.jsonl": ("[" * 100_000, "line 1: expected JSON"),
    "late.jsonl": ('{"key": [1, 0, 0]}\n{"key": [1, 0, 0], "value": [1, 2]}', "line 2: expected key, as in the first row"),
    "none.parquet": (None, "none.parquet: no such file"),
    "empty.npy": ("", "expected a .npy file of numbers"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_imported(run, filled, tmp_path, name):  # noqa: F811
    content, said = FILES[name]
    if content is not None:
        (tmp_path / name).write_text(content)
    code, lines, told = run("import", "t", name)
    assert code == 2 and not lines and len(told) == 1 and said in told[0]
    assert "rows" in run("stats", "t")[1][0] and run("stats", "t")[1][0].split() == ["rows", "3"]


def test_arrays_that_are_no_rows(run, filled, tmp_path):  # noqa: F811
    np.savez(tmp_path / "several.npz", a=np.ones(3))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    np.save(tmp_path / "flat.npy", np.ones((3, 0)))
    np.save(tmp_path / "large.npy", np.full((1, 3), 1e300))
    np.save(tmp_path / "one.npy", np.ones((1, 2)))
    for name in ("several.npy", "flat.npy", "large.npy"):
        code, lines, told = run("import", "t", name, "--values", "one.npy")
        assert code == 2 and not lines and len(told) == 1 and "expected" in told[0] and name in told[0]
    code, _, told = run("query", "t", "--key", "1,1")
    assert code == 2 and told == ["softlookup: --key: expected 3 numbers, as keys have there, got 2"]


def test_a_byte_order_mark_and_capitals(run, filled, tmp_path):  # noqa: F811
    (tmp_path / "X.JSONL").write_text('\ufeff{"key": [1, 0, 0], "value": [1, 2]}')
    assert run("import", "t", "X.JSONL")[0] == 0


def test_payloads_on_the_screen(run, filled, tmp_path):  # noqa: F811
    text = "日本語" * 40 + "\x1b[31m"
    (tmp_path / "wide.jsonl").write_text(json.dumps({"key": [9, 0, 0], "value": [1, 2], "payload": text}))
    (tmp_path / "red.jsonl").write_text(json.dumps({"key": [8, 0, 0], "value": [1, 2], "payload": "\x1b[31mred"}))
    assert run("import", "t", "wide.jsonl", "red.jsonl")[0] == 0
    _, lines, _ = run("query", "t", "--key", "1,0,0", "--top-k", 2)
    from rich.cells import cell_len

    assert all(cell_len(line) <= 80 for line in lines) and not any("\x1b" in line for line in lines)
    assert any(line.endswith("·[31mred") for line in lines)


def test_a_query_is_of_one_state(run, filled, tmp_path):  # noqa: F811
    """While another thread adds and deletes, every answer fits together."""
    stop = threading.Event()

    def write():
        with SoftTable.open(tmp_path / "t", write=True) as table:
            while not stop.is_set():
                ids = table.add(torch.randn(20, 3) * 3, torch.randn(20, 2))
                table.delete(ids)
                table.compact()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(60):
            code, lines, told = run("query", "t", "--key", "1,0.5,0", "--json")
            assert code == 0 and not told
            answer = json.loads(lines[0])
            assert sum(row["weight"] for row in answer["best"]) < 1.001 and answer["rows_read"] in (3, 23)
            assert run("stats", "t")[0] == 0
    finally:
        stop.set()
        writer.join()
