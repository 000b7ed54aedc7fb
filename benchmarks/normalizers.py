"""Entmax 1.5 and sparsemax against the `entmax` package and against softlookup's own softmax: time, error and memory.

    python benchmarks/normalizers.py [--keys 4096] [--heads 8] [--width 64] [--rounds 5] [--threads 2]

time: forward and backward of causal attention, in turn; told are medians, and the medians of ratios with their range. The
package's weights are materialized, as it must have them: softmax's place in softmax(q k^T / sqrt(d) + mask) v.
error: of weights, against the package's and against bisection in float64.
memory: what the forward and the backward hold at their peaks beyond inputs and results, one head, in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import entmax
import torch
from torch import Tensor

import softlookup as sl

OURS = {"entmax 1.5": sl.Entmax(1.5), "sparsemax": sl.Sparsemax()}
THEIRS: dict[str, Callable[..., Tensor]] = {"entmax 1.5": entmax.entmax15, "sparsemax": entmax.sparsemax}


def step(attention: Callable[..., Tensor], tensors: list[Tensor], upstream: Tensor) -> float:
    start = time.perf_counter()
    torch.autograd.grad(attention(*tensors), tensors, upstream)
    return time.perf_counter() - start


def materialized(name: str, hidden: Tensor) -> Callable[..., Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(hidden, -1e9)
        return THEIRS[name](scores, dim=-1) @ v

    return attention


def times(keys: int, heads: int, width: int, rounds: int) -> None:
    tensors = [torch.randn(1, heads, keys, width, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(1, heads, keys, width)
    hidden = torch.ones(keys, keys, dtype=torch.bool).triu(1)
    ways = {"softmax": lambda q, k, v: sl.attend(q, k, v, mask=sl.Causal())}
    for name, normalizer in OURS.items():
        ways[name] = lambda q, k, v, by=normalizer: sl.attend(q, k, v, mask=sl.Causal(), normalizer=by)
        ways[f"{name}, package"] = materialized(name, hidden)
    each: dict[str, list[float]] = {name: [] for name in ways}
    for n in range(rounds + 1):
        for name, way in ways.items():
            seconds = step(way, tensors, upstream)
            if n:
                each[name].append(seconds)
    print(f"forward and backward, causal, {keys} keys, {heads} heads of {width}")
    for name, seconds in each.items():
        print(f"  {name:20s} {statistics.median(seconds) * 1e3:9.0f} ms")
    for name in OURS:
        for over, under in ((f"{name}, package", name), (name, "softmax")):
            ratios = sorted(a / b for a, b in zip(each[over], each[under], strict=True))
            print(f"  {over} / {under}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)


def bisected(s: Tensor, alpha: float) -> Tensor:
    s = s.double() * (alpha - 1)
    low, high = s.amax(-1, keepdim=True) - 1, s.amax(-1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        above = (s - middle).clamp(min=0).pow(1 / (alpha - 1)).sum(-1, keepdim=True) >= 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (s - low).clamp(min=0).pow(1 / (alpha - 1))


def errors(keys: int, width: int) -> None:
    """Of the native engine's weights: its average of an identity matrix."""
    keys = min(keys, 500)  # the widest value that the native engine takes is 512
    q, k = (torch.randn(1, 4, keys, width) for _ in range(2))
    eye = torch.eye(keys).expand(1, 4, -1, -1)
    s = q @ k.mT / math.sqrt(width)
    print(f"largest error of a weight, {keys} keys")
    for name, alpha in (("entmax 1.5", 1.5), ("sparsemax", 2.0)):
        assert sl.explain(q, k, eye, normalizer=OURS[name]).engine == "native"
        p = sl.attend(q, k, eye, normalizer=OURS[name])
        exact, package = bisected(s, alpha), THEIRS[name](s, dim=-1)
        print(
            f"  {name}: {float((p - package).abs().max()):.1e} beside the package, {float((p - exact).abs().max()):.1e} beside "
            f"float64 (the package: {float((package - exact).abs().max()):.1e})"
        )


MEMORY = """
import json, sys, torch, softlookup as sl
def status(name):
    return int(next(x for x in open('/proc/self/status') if x.startswith(name)).split()[1]) * 1024
def peak(call):
    open('/proc/self/clear_refs', 'w').write('5')
    before = status('VmRSS')
    result = call()
    tensors = result if isinstance(result, tuple) else (result,)
    return result, status('VmHWM') - before - sum(t.numel() * t.element_size() for t in tensors)
torch.set_num_threads(2)
def run(n):
    q, k, v = (torch.randn(1, 1, n, 64, requires_grad=True) for _ in range(3))
    y, forward = peak(lambda: sl.attend(q, k, v, mask=sl.Causal(), normalizer=sl.Entmax()))
    up = torch.randn_like(y)
    _, backward = peak(lambda: torch.autograd.grad(y, (q, k, v), up))
    return forward, backward
run(1024)
print(json.dumps(run(int(sys.argv[1]))))
"""


def memory() -> None:
    print("memory held beyond inputs and results, entmax 1.5, causal, 1 head of 64")
    for n in (4096, 8192, 16384, 32768, 65536):
        out = subprocess.run([sys.executable, "-c", MEMORY, str(n)], capture_output=True, text=True, check=True)
        forward, backward = json.loads(out.stdout)
        print(f"  {n:6d} keys: forward {forward / 2**20:6.1f} MB, backward {backward / 2**20:6.1f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("keys", 4096), ("heads", 8), ("width", 64), ("rounds", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    torch.manual_seed(0)
    errors(said.keys, said.width)
    memory()
    times(said.keys, said.heads, said.width, said.rounds)


if __name__ == "__main__":
    main()
