"""Linear attention against exact attention and its own recurrence, step by step in torch; and what gates cost.

    python benchmarks/linear.py [--keys 65536] [--heads 8] [--width 64] [--rounds 3] [--threads 2]

Causal forward passes with elu + 1; told are medians. The exact pass, which takes a minute, runs once in each round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import elu

import softlookup as sl
from softlookup import linear


def step_by_step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The recurrence as one would first write it."""
    q, k = elu(q) + 1, elu(k) + 1
    sums, total = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]), q.new_zeros(*q.shape[:2], q.shape[-1])
    out = torch.empty_like(v)
    for t in range(q.shape[2]):
        sums = sums + k[:, :, t, :, None] * v[:, :, t, None]
        total = total + k[:, :, t]
        weight = (q[:, :, t] * total).sum(-1, keepdim=True)
        out[:, :, t] = (q[:, :, t, None] @ sums)[:, :, 0] / weight
    return out


def with_gradients(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Chunks in torch, which gradients take."""
    with torch.enable_grad():
        return linear.attend(q.detach().requires_grad_(), k, v, causal=True)


def gated(q: Tensor, k: Tensor, v: Tensor, apart: bool = False) -> Tensor:
    """A recurrence with a gate for each head, or for each of its dimensions."""
    gate = torch.full(q.shape if apart else q.shape[:3], -0.01)
    return linear.recur(q, k, v, log_gate=gate)[0]


@torch.no_grad()
def seconds(act: Callable[..., Tensor], tensors: list[Tensor]) -> float:
    start = time.perf_counter()
    act(*tensors)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("keys", 65536), ("heads", 8), ("width", 64), ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    torch.manual_seed(0)
    ways: dict[str, Callable[..., Tensor]] = {
        "linear, chunks": lambda *x: linear.attend(*x, causal=True),
        "linear, step by step": step_by_step,
        "linear, with gradients": with_gradients,
        "one gate": gated,
        "gates of dimensions": partial(gated, apart=True),
        "exact": lambda *x: sl.attend(*x, mask=sl.Causal()),
    }
    tensors = [torch.randn(1, said.heads, said.keys, said.width) for _ in range(3)]
    few = [x[:, :, :2048] for x in tensors]
    apart = (step_by_step(*few) - linear.attend(*few, causal=True)).abs().max()
    print(f"chunks and steps differ by {float(apart):.1e} at most")
    for way in ways.values():
        seconds(way, few)
    each: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(said.rounds):
        for name, way in ways.items():
            each[name].append(seconds(way, tensors))
    print(f"causal forward, {said.keys} keys, {said.heads} heads of {said.width}")
    for name, found in each.items():
        ratios = sorted(a / b for a, b in zip(found, each["linear, chunks"], strict=True))
        times = f"{statistics.median(ratios):7.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) times chunks"
        print(f"  {name:22s}{statistics.median(found):9.3f} s  {times}", flush=True)
    for keys in (4096, 8192, 16384, 32768, 65536):
        found = [seconds(ways["linear, chunks"], [x[:, :, :keys] for x in tensors]) for _ in range(5)]
        print(f"  {keys:6d} keys: {statistics.median(found) / keys * 1e6:6.2f} us per key", flush=True)


if __name__ == "__main__":
    main()
