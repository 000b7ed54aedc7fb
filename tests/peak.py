"""What a lookup holds in memory at its peak, beyond what it is given and what it gives: in processes of their own."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import softlookup as sl


class Distance(sl.Score):
    def block(self, q, k, i, j):
        return -(q.unsqueeze(-2) - k.unsqueeze(-3)).abs().sum(-1)


class Network(sl.Score):
    def __init__(self, width: int, hidden: int):
        self.first, self.second = nn.Linear(2 * width, hidden), nn.Linear(hidden, 1)

    def block(self, q, k, i, j):
        q, k = torch.broadcast_tensors(q.unsqueeze(-2), k.unsqueeze(-3))
        return self.second(torch.relu(self.first(torch.cat([q, k], -1)))).squeeze(-1)


CASES: dict[str, tuple[int, int, int, Callable[[], dict[str, Any]]]] = {
    "window, 8 heads of 64": (8192, 8, 64, lambda: {"mask": sl.Causal() & sl.Window(256)}),
    "all pairs, 1 head of 64": (8192, 1, 64, dict),
    "all pairs, 8 heads of 64": (8192, 8, 64, dict),
    "entmax, 1 head of 64": (8192, 1, 64, lambda: {"normalizer": sl.Entmax(), "mask": sl.Causal() & sl.Window(2048)}),
    "top k, 1 head of 64": (8192, 1, 64, lambda: {"normalizer": sl.TopK(32), "mask": sl.Causal() & sl.Window(1024)}),
    "a score of one's own, window": (8192, 1, 16, lambda: {"score": Distance(), "mask": sl.Causal() & sl.Window(256)}),
    "a network as score, window": (16384, 1, 16, lambda: {"score": Network(16, 32), "mask": sl.Causal() & sl.Window(256)}),
}
"""Queries and keys, heads, their width, and the other arguments."""


def status(name: str) -> int:
    """Bytes, as the kernel counts them."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024


def tensors_in(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, sl.Stats):
        yield from (x[name] for name in x)
    else:
        for each in x:
            yield from tensors_in(each)


def peak(call: Callable[[], Any]) -> tuple[Any, int]:
    """(result of the call, bytes that it held at its peak beyond what it was given and what it gives)."""
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts again here
    before = status("VmRSS")
    result = call()
    held = sum(t.untyped_storage().nbytes() for t in {t.untyped_storage().data_ptr(): t for t in tensors_in(result)}.values())
    return result, status("VmHWM") - before - held


def lookup(n: int, heads: int, width: int, **more: Any) -> tuple[int, int]:
    """Bytes that the forward and the backward of a lookup with all statistics hold."""
    q, k, v = (torch.randn(1, heads, n, width, requires_grad=True) for _ in range(3))
    (y, stats), forward = peak(lambda: sl.attend(q, k, v, stats=True, **more))
    real = [stats[name] for name in stats if stats[name].requires_grad]
    up = [torch.randn_like(y), *(torch.randn_like(x) for x in real)]
    _, backward = peak(lambda: torch.autograd.grad([y, *real], [q, k, v], up))
    return forward, backward


def extra(name: str, warm: int, n: int, engine: str | None = None) -> tuple[int, int]:
    """`lookup` of a case with n queries and keys, after a small one that warms up. engine: to force."""
    torch.set_num_threads(2)
    _, heads, width, arguments = CASES[name]
    with sl.engine(engine) if engine else nullcontext():
        lookup(warm, heads, width, **arguments())
        return lookup(n, heads, width, **arguments())
