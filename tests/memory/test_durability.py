"""What is on the disk stays, whatever happens to the process; what is not as it was written is found."""

import multiprocessing
import random
import shutil
import signal
import time

import pytest
import torch

from softlookup.errors import SoftlookupError
from softlookup.memory import SoftTable

from .dying import SHARD, VALUES, WIDTH, applied, change, row, rows


def contents(table: SoftTable) -> dict[int, int]:
    """The version of each row; each row is whole."""
    found = table.get()
    if not len(found.ids):
        return {}
    ids, versions = found.ids.tolist(), [int(v) for v in found.values[:, 1].tolist()]
    keys, values, payloads = zip(*map(row, ids, versions), strict=True)
    assert torch.equal(found.keys, torch.tensor(keys)) and torch.equal(found.values, torch.tensor(values))
    assert found.payloads == list(payloads)
    return dict(zip(ids, versions, strict=True))


@pytest.mark.slow
def test_killed_anywhere(tmp_path):
    folder, draw = tmp_path / "table", random.Random(0)
    SoftTable.create(folder, WIDTH, VALUES, shard_rows=SHARD).close()
    known: dict[int, int] = {}
    context, changes = multiprocessing.get_context("forkserver"), 0
    context.set_forkserver_preload(["tests.memory.dying"])
    for seed in range(1, 201):
        ours, theirs = context.Pipe()
        process = context.Process(target=change, args=(str(folder), seed, theirs))
        process.start()
        theirs.close()
        said = [ours.recv()] if ours.poll(60) else []
        with SoftTable.open(folder) as reader:
            contents(reader)  # whole, while another process writes
            end = time.monotonic() + draw.uniform(0, 0.1)
            while (left := end - time.monotonic()) > 0:
                if ours.poll(left):
                    said.append(ours.recv())
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        try:
            while True:
                said.append(ours.recv())
        except (EOFError, OSError):
            ours.close()
        for before, after in zip(said, [*said[1:], None], strict=True):
            if before != "done" and after == "done":
                applied(known, *before)
                changes += 1
        with SoftTable.open(folder) as table:
            assert table.verify() == []
            found = contents(table)
        if found != known:
            assert said and said[-1] != "done", "an acknowledged change is lost"
            applied(known, *said[-1])
            assert found == known, "a change is there in part"
    assert changes > 200
    with SoftTable.open(folder, write=True) as table:
        assert table.verify() == [] and contents(table) == known
        numbers = {number for number in table.state().shards}
        assert {int(f.stem[-6:]) for f in folder.glob("*.npy")} == numbers  # nothing is left over


@pytest.fixture
def table(tmp_path):
    with SoftTable.create(tmp_path / "table", WIDTH, VALUES, shard_rows=SHARD) as table:
        table.add(*rows(list(range(120)), 0))
        table.delete([3, 77])
        table.index("cells", 5)
    return tmp_path / "table"


def test_flipped_bytes_are_found(table, tmp_path):
    draw = random.Random(0)
    for name in sorted(f.name for f in table.iterdir() if f.name.startswith(("keys", "values", "index"))):
        size = (table / name).stat().st_size
        for place in [*draw.sample(range(128), 3), *draw.sample(range(128, size), 6), size - 1]:
            copy = tmp_path / "copy"
            shutil.copytree(table, copy)
            content = bytearray((copy / name).read_bytes())
            content[place] ^= 1 << draw.randrange(8)
            (copy / name).write_bytes(content)
            with SoftTable.open(copy) as broken:
                found = broken.verify()
            assert len(found) == 1 and name in found[0] and "\n" not in found[0]
            shutil.rmtree(copy)


def test_flipped_bytes_of_the_database_are_found(table, tmp_path):
    """Or they lie where nothing is kept, and every row is as it was."""
    whole, draw, noticed = (table / "table.sqlite").read_bytes(), random.Random(0), 0
    with SoftTable.open(table) as good:
        expected = contents(good)
    for place in (whole.index(b"100 0 "), whole.index(b"100 0 ") + 5, *draw.sample(range(len(whole)), 60)):
        copy = tmp_path / "copy"
        shutil.copytree(table, copy)
        (copy / "table.sqlite").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            with SoftTable.open(copy) as broken:
                found = broken.verify()
                assert found or contents(broken) == expected
        except SoftlookupError as error:
            found = [str(error)]
        noticed += bool(found)
        assert all("\n" not in line for line in found)
        shutil.rmtree(copy)
    assert noticed > 20


def test_a_missing_or_short_file_is_told(table):
    path = table / "keys-000001.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with SoftTable.open(table) as broken:
        with pytest.raises(SoftlookupError, match="keys-000001.npy.*shorter"):
            broken.lookup(torch.ones(WIDTH))
        assert any("keys-000001" in line for line in broken.verify())
    path.unlink()
    with SoftTable.open(table) as broken:
        with pytest.raises(SoftlookupError, match="keys-000001.npy"):
            broken.lookup(torch.ones(WIDTH))
        assert any("keys-000001" in line for line in broken.verify())


def test_what_a_lost_commit_left_is_no_row(table):
    """Rows in a file that no commit knows."""
    path = table / "keys-000002.npy"
    with open(path, "ab") as file:
        file.write(torch.ones(7, WIDTH).numpy().tobytes())
    (table / "keys-000009.npy").write_bytes(b"x")
    with SoftTable.open(table, write=True) as opened:
        assert len(opened) == 118 and opened.verify() == []
        opened.add(*rows([500], 0), ids=[500])
        assert contents(opened)[500] == 0 and opened.verify() == []
    assert not (table / "keys-000009.npy").exists()


def test_a_full_disk_loses_nothing(table, monkeypatch):
    import errno
    import os

    with SoftTable.open(table, write=True) as opened:

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(SoftlookupError, match="disk is full"):
            opened.add(*rows([500], 0), ids=[500])
        monkeypatch.undo()
        assert len(opened) == 118 and opened.verify() == []
        opened.add(*rows([501], 0), ids=[501])
        assert sorted(contents(opened))[-1] == 501


def test_a_reader_sees_what_is_committed(table):
    with SoftTable.open(table) as reader, SoftTable.open(table, write=True) as writer:
        assert len(reader) == 118
        writer.add(*rows([500], 0), ids=[500])
        assert len(reader) == 119 and contents(reader) == contents(writer)
        writer.compact()
        assert contents(reader) == contents(writer)
        with pytest.raises(SoftlookupError, match="write=True"):
            reader.delete([500])


def test_a_reader_that_a_compaction_overtakes(table):
    with SoftTable.open(table) as reader, SoftTable.open(table, write=True) as writer:
        with reader._ledger.reading():
            assert reader._ledger.meta("key_width") == WIDTH  # from here on it sees the state before
            writer.compact()
            assert len(reader) == 118  # whose files are gone: it sees the one of now
        assert contents(reader) == contents(writer) and reader.verify() == []
        with pytest.raises(SoftlookupError, match="compact: expected to be called by itself"), writer.together():
            writer.delete([5])
            writer.compact()
        assert len(writer) == 118  # all or nothing
