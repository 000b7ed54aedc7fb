"""Extra memory: what a process holds at its peak beyond inputs and outputs, at n = 16,384, where all scores are 8 GB."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

MEASURE = '''
import gc, json, math, sys
import torch, softlookup as sl
from torch import nn

torch.set_num_threads(2)

class Distance(sl.Score):
    def block(self, q, k, i, j):
        return -(q.unsqueeze(-2) - k.unsqueeze(-3)).abs().sum(-1)

class Network(sl.Score):
    def __init__(self, width, hidden):
        self.first, self.second = nn.Linear(2 * width, hidden), nn.Linear(hidden, 1)
    def block(self, q, k, i, j):
        q, k = torch.broadcast_tensors(q.unsqueeze(-2), k.unsqueeze(-3))
        return self.second(torch.relu(self.first(torch.cat([q, k], -1)))).squeeze(-1)

def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

def peak(call):
    """(result of the call, bytes that it held at its peak beyond what it was given and what it gives)."""
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts again here
    before = status("VmRSS")
    result = call()
    held = sum(t.untyped_storage().nbytes() for t in {t.untyped_storage().data_ptr(): t for t in tensors_in(result)}.values())
    return result, status("VmHWM") - before - held

def tensors_in(x):
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, sl.Stats):
        yield from (x[name] for name in x)
    elif isinstance(x, (tuple, list)):
        for each in x:
            yield from tensors_in(each)

def lookup(n, heads, width, **more):
    q, k, v = (torch.randn(1, heads, n, width, requires_grad=True) for _ in range(3))
    result, forward = peak(lambda: sl.attend(q, k, v, stats=True, **more))
    y, stats = result
    real = [stats[name] for name in stats if stats[name].requires_grad]
    up = [torch.randn_like(y), *(torch.randn_like(x) for x in real)]
    grads, backward = peak(lambda: torch.autograd.grad([y, *real], [q, k, v], up))
    del grads
    return forward, backward
'''


def extra_memory(arguments: str) -> tuple[float, float]:
    """MB that the forward and the backward of `lookup(arguments)` hold at their peaks, after a small warm-up."""
    code = f"{MEASURE}\ndef run(n):\n    return lookup(n, {arguments})\nrun(1024)\nprint(json.dumps(run(16384)))"
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600)
    assert out.returncode == 0, out.stderr
    forward, backward = json.loads(out.stdout)
    return forward / 2**20, backward / 2**20


CASES = {
    "window, 8 heads of 64": "8, 64, mask=sl.Causal() & sl.Window(256)",
    "all pairs, 1 head of 64": "1, 64",
    "all pairs, 8 heads of 64": "8, 64",
    "entmax, 1 head of 64": "1, 64, normalizer=sl.Entmax(), mask=sl.Causal() & sl.Window(4096)",
    "top k, 1 head of 64": "1, 64, normalizer=sl.TopK(32), mask=sl.Causal() & sl.Window(1024)",
    "a score of one's own, window": "1, 16, score=Distance(), mask=sl.Causal() & sl.Window(256)",
    "a network as score, window": "1, 16, score=Network(16, 32), mask=sl.Causal() & sl.Window(256)",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_extra_memory(name):
    forward, backward = extra_memory(CASES[name])
    assert forward <= 64 and backward <= 64, f"forward {forward:.0f} MB, backward {backward:.0f} MB"


@pytest.mark.slow
def test_the_measure_sees_a_large_tensor():
    """The same measure of a lookup that holds a matrix of 2^26 scores in memory."""
    code = f"{MEASURE}\nwith sl.engine('reference'):\n    lookup(512, 1, 8)\n    print(json.dumps(lookup(8192, 1, 8)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout)[0] > 2**26 * 4
