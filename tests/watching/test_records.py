"""Records of a watch: whole lines, whatever happens."""

import json
import math
import os
import random
import signal
import time

import pytest
import torch
from torch import nn

import softlookup as sl
from softlookup.watching import JSONLines, Seen, read_records


def layer(width=8, heads=2):
    torch.manual_seed(0)
    return nn.MultiheadAttention(width, heads, batch_first=True).eval()


def test_a_record_is_of_the_steps_since_the_last_clear(tmp_path):
    attention = layer()
    first, second = torch.randn(2, 5, 8), 3 * torch.randn(1, 7, 8)
    with sl.watch(attention) as seen, JSONLines(tmp_path / "watch.jsonl") as record:
        for step, x in enumerate((first, second)):
            attention(x, x, x)
            record(step, seen, loss=1.5 - step)
            seen.clear()
    with sl.watch(attention) as alone:
        attention(second, second, second)
    ((name, expected),) = alone.layers.items()
    records = read_records(tmp_path / "watch.jsonl")
    assert [(x["step"], x["loss"]) for x in records] == [(0, 1.5), (1, 0.5)]
    got = records[1]["layers"][name]
    assert records[0]["layers"][name]["count"] == [10, 10] and got["count"] == [7, 7]
    for stat in expected.stats:
        for of in ("mean", "min", "max"):
            assert got[stat][of] == pytest.approx(getattr(expected, of)(stat).tolist(), rel=1e-5), (stat, of)
        assert got[stat]["p95"] == pytest.approx(expected.quantile(stat, 0.95).tolist(), rel=1e-5)


def test_a_layer_that_was_not_called_has_no_line_and_numbers_that_json_lacks_are_strings(tmp_path):
    attention, x = layer(), torch.randn(1, 3, 8)
    with sl.watch(attention) as seen, JSONLines(tmp_path / "watch.jsonl") as record:
        attention(x, x, x)
        seen.clear()
        record(7, seen, loss=math.nan, rate=math.inf)
    (line,) = (tmp_path / "watch.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 7, "loss": "nan", "rate": "inf", "layers": {}}


def test_a_torn_end_is_cut_off_and_the_rest_kept(tmp_path):
    path = tmp_path / "watch.jsonl"
    path.write_text('{"step": 1, "layers": {}}\n{"step": 2, "lay' + "x" * 200_000)
    assert [x["step"] for x in read_records(path)] == [1]
    with JSONLines(path) as record:
        record(3, Seen(("entropy",)))
    assert [x["step"] for x in read_records(path)] == [1, 3]


def test_where_nothing_can_be_written_one_line_says_so(tmp_path):
    with pytest.raises(sl.SoftlookupError, match="cannot write .*no such file or directory"):
        JSONLines(tmp_path / "nowhere" / "watch.jsonl")
    if os.path.exists("/dev/full"):
        record = JSONLines.__new__(JSONLines)
        record.path, record._file = "/dev/full", os.open("/dev/full", os.O_WRONLY)
        with record, pytest.raises(sl.SoftlookupError, match="the disk is full"):
            record(0, Seen(("entropy",)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_killed_at_random_fifty_times_every_acknowledged_record_is_readable(tmp_path):
    path, chance = tmp_path / "watch.jsonl", random.Random(0)
    attention, x = layer(), torch.randn(1, 5, 8)
    with sl.watch(attention) as seen:
        attention(x, x, x)
    acknowledged, told = os.pipe()
    for run in range(50):
        wanted = 1 + int(8 * chance.random())  # records before the kill, on however busy a machine
        child = os.fork()
        if child == 0:
            try:
                record = JSONLines(path)
                for step in range(10**9):
                    record(step, seen, run=run)
                    os.write(told, (run * 10**6 + step).to_bytes(8, "little"))
            finally:
                os._exit(1)
        os.set_blocking(acknowledged, True)
        answers = b""
        while len(answers) < 8 * wanted:
            answers += os.read(acknowledged, 65536)
        time.sleep(0.005 * chance.random())
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        os.set_blocking(acknowledged, False)
        while part := _read(acknowledged):
            answers += part
        known = [(int.from_bytes(answers[i : i + 8], "little")) for i in range(0, len(answers), 8)]
        records = {x["run"] * 10**6 + x["step"]: x for x in read_records(path)}
        assert set(known) <= set(records)
        assert all(set(x["layers"]) == set(seen.layers) for x in records.values())
    assert len(records) > 50


def _read(pipe):
    try:
        return os.read(pipe, 65536)
    except BlockingIOError:
        return b""


def test_another_programs_file_is_left_as_it_is(tmp_path):
    for content in ("mine", '{"a": 1}', '{"step": 1}\n{"ste'):
        (tmp_path / "file").write_text(content)
        if content.startswith('{"step"'):
            JSONLines(tmp_path / "file").close()
            assert (tmp_path / "file").read_text() == '{"step": 1}\n'
        else:
            with pytest.raises(sl.SoftlookupError, match="another, left as it is"):
                JSONLines(tmp_path / "file")
            assert (tmp_path / "file").read_text() == content


def test_what_is_no_file_of_records_is_not_read_as_one(tmp_path):
    with pytest.raises(sl.SoftlookupError, match="cannot read .*: no such file"):
        read_records(tmp_path / "none")
    (tmp_path / "file").write_text('{"step": 1}\nmine\n')
    with pytest.raises(sl.SoftlookupError, match="got another in line 2"):
        read_records(tmp_path / "file")


def test_numbers_of_others_are_taken_and_mistakes_are_one_line(tmp_path):
    with JSONLines(tmp_path / "watch.jsonl") as record:
        record(3, Seen(("entropy",)), loss=torch.tensor(1.5))
        for call, message in (
            (lambda: record(Seen(("entropy",)), 3), "record\\(step, seen"),
            (lambda: record(1, Seen(("entropy",)), layers=4), "other names than step and layers"),
        ):
            with pytest.raises(sl.SoftlookupError, match=message):
                call()
    assert read_records(tmp_path / "watch.jsonl") == [{"step": 3, "loss": 1.5, "layers": {}}]
