"""Additive scores against products in time: what it costs to bring every pair of states through a tanh.

    python benchmarks/alignment.py [--rounds 7] [--threads 2] [--width 128]

Forward and backward of n queries over n keys, both ways to score, by `attend` and materialized in plain torch, in turn in one
process. A figure is the median over rounds of a ratio of times. Queries and keys are projected already.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import softlookup as sl
from softlookup.nn.additive import ProjectedAdditive

SIZES = (16, 64, 256, 1024)
PAIRS = 2**20
"""Pairs of states in a batch, whatever their length."""


def ways(n: int, width: int) -> dict[str, Callable[[], list[Tensor]]]:
    """Each way to the gradients of the same kind of lookup, by name."""
    torch.manual_seed(0)
    shape = max(1, PAIRS // n**2), 1, n, width
    q, k, v, g = (torch.randn(shape) for _ in range(4))
    u = torch.randn(1, width) / width**0.5
    tensors = [x.requires_grad_() for x in (q, k, v)]

    def of(value: Callable[[], Tensor]) -> Callable[[], list[Tensor]]:
        return lambda: list(torch.autograd.grad(value(), tensors, g))

    additive = ProjectedAdditive(u)
    return {
        "additive": of(lambda: sl.attend(q, k, v, score=additive)),
        "product": of(lambda: sl.attend(q, k, v)),
        "additive, materialized": of(lambda: (torch.tanh(q.unsqueeze(3) + k.unsqueeze(2)) @ u[0]).softmax(-1) @ v),
        "product, materialized": of(lambda: (q @ k.mT / width**0.5).softmax(-1) @ v),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    print(f"{said.threads} threads, width {said.width}; times of forward and backward, additive / product")
    print("     n   softlookup   materialized   materialized / softlookup: additive   product")
    for n in SIZES:
        run = ways(n, said.width)
        times: dict[str, list[float]] = {name: [] for name in run}
        for number in range(said.rounds + 1):
            for name, way in run.items():
                start = time.perf_counter()
                way()
                if number:
                    times[name].append(time.perf_counter() - start)

        def ratio(a: str, b: str, times: dict[str, list[float]] = times) -> float:
            return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

        plain = "{}, materialized".format
        print(
            f"{n:6d}   {ratio('additive', 'product'):10.1f}   {ratio(plain('additive'), plain('product')):12.1f}   "
            f"{ratio(plain('additive'), 'additive'):35.1f}   {ratio(plain('product'), 'product'):7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
