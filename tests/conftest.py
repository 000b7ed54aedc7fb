"""Shared settings: two threads, a fixed seed per test; fixtures that cut problems into small blocks; and the command line."""

import io
import sys

import pytest
import torch

import softlookup as sl
from softlookup import cli
from softlookup.engines import tiling


@pytest.fixture(autouse=True)
def _settled():
    torch.manual_seed(0)
    torch.set_num_threads(2)


def cut_blocks(monkeypatch, scores: int) -> None:
    """Let the streaming engine hold no more than about `scores` scores at a time."""
    monkeypatch.setattr(tiling, "CPU_SCORES", scores)
    monkeypatch.setattr(tiling, "PAIRWISE_FLOATS", scores * 5)
    if scores < 1000:
        monkeypatch.setattr(tiling, "RUN", 4)
        original = tiling.Tiling._sizes
        monkeypatch.setattr(tiling.Tiling, "_rows", lambda self: min(4, -(-self.length // 2)))  # 4, 4 and 1 of 9
        columns = {False: 5, True: 10**9}  # rows that must be whole are
        monkeypatch.setattr(
            tiling.Tiling,
            "_sizes",
            lambda self: tuple(map(min, original(self), (3, columns[self.problem.rule is not None]))),
        )


@pytest.fixture(params=[2**18, 40, 7])
def budget(request, monkeypatch):
    """The streaming engine, with block sizes from everything at once down to a few scores at a time."""
    cut_blocks(monkeypatch, request.param)
    with sl.engine("streaming"):
        yield


@pytest.fixture
def small_blocks(monkeypatch):
    """The streaming engine in blocks of a few scores."""
    cut_blocks(monkeypatch, 40)
    with sl.engine("streaming"):
        yield


@pytest.fixture(params=["preferred", "streaming", "streaming in small blocks", "reference"])
def any_engine(request, monkeypatch):
    """Every engine: the native one where it can run a case (the preferred one), and the streaming one also in small blocks."""
    if request.param.endswith("blocks"):
        cut_blocks(monkeypatch, 40)
    if request.param == "preferred":
        yield request.param
        return
    with sl.engine(request.param.split()[0]):
        yield request.param


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """The command line in this process, in a folder of its own: (exit code, standard output, lines of standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["softlookup", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err.splitlines()

    return run
