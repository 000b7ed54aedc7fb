"""Shared settings: two threads, a fixed seed per test; and fixtures that cut problems into small blocks."""

import pytest
import torch

import softlookup as sl
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
        monkeypatch.setattr(tiling.Tiling, "_rows", lambda self: 2)
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
