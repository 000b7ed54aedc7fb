"""Extra memory: what a process holds at its peak beyond inputs and outputs, from n = 8,192 on, where all scores are 2 GB."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests import peak


def extra_memory(*said) -> tuple[float, float]:
    """MB that the forward and the backward of `peak.extra(*said)` hold at their peaks, in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.peak"])  # imported once, not by each process
    with ProcessPoolExecutor(1, context) as pool:
        forward, backward = pool.submit(peak.extra, *said).result(timeout=600)
    return forward / 2**20, backward / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("name", peak.CASES)
def test_extra_memory(name):
    """At most 4 KB a query, as much as two gradients of 8 heads of 64."""
    n, *_ = peak.CASES[name]
    forward, backward = extra_memory(name, 1024, n)
    assert max(forward, backward) <= n / 256, f"forward {forward:.0f} MB, backward {backward:.0f} MB"


@pytest.mark.slow
def test_the_measure_sees_a_large_tensor():
    """The same measure of a lookup that holds a matrix of 2^24 scores in memory."""
    assert extra_memory("all pairs, 1 head of 64", 512, 4096, "reference")[0] > 64
