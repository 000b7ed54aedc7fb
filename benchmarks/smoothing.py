"""Kernel regression against others that do it: 100,000 observations in 8 dimensions, 10,000 places.

    python benchmarks/smoothing.py [--rounds 3] [--threads 2]

statsmodels' `KernelReg` (local constant, same bandwidth) is asked for a few places, and its time per place compared; KeOps and
plain torch (distances, kernel values and their average, some places at a time) do the same work in the same precision, in turn
in one process. Then the search of a bandwidth by leave-one-out error: 20,000 observations, 30 bandwidths, without and with
gradients.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlookup.smoothing import NadarayaWatson, leave_one_out

DIMENSIONS, BANDWIDTH, FEW = 8, 0.8, 40
BLOCK = 2**22
"""Pairs at a time of plain torch: the fastest of 2^18 to 2^24 on two cores, in either precision."""


def made(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations (S, d) and their values (S,)."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, DIMENSIONS))
    return x, np.sin(x).sum(1) + 0.1 * random.normal(size=count)


def plain(places: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(n, 1) by torch."""
    found = []
    for some in places.split(max(1, BLOCK // len(x))):
        k = torch.cdist(some, x).square_().mul_(-0.5 / BANDWIDTH**2).exp_()
        found.append(k @ y / k.sum(1, keepdim=True))
    return torch.cat(found)


def keops(places: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(n, 1) by KeOps, which compiles the reduction."""
    from pykeops.torch import LazyTensor

    p, o, v = LazyTensor(places[:, None]), LazyTensor(x[None]), LazyTensor(torch.cat([y, torch.ones_like(y)], 1)[None])
    sums = ((((p - o) ** 2).sum(-1) * (-0.5 / BANDWIDTH**2)).exp() * v).sum(1)
    return sums[:, :1] / sums[:, 1:]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def regression(rounds: int) -> None:
    from statsmodels.nonparametric.kernel_regression import KernelReg

    (x, y), (places, _) = made(100_000, 0), made(10_000, 1)
    reg = KernelReg(y, x, "c" * DIMENSIONS, "lc", np.full(DIMENSIONS, BANDWIDTH))
    theirs, (want, _) = timed(lambda: reg.fit(places[:FEW]))
    for dtype in ("float32", "float64"):
        model = NadarayaWatson(BANDWIDTH, dtype=dtype).fit(x, y)
        tensors = [torch.tensor(z, dtype=getattr(torch, dtype)) for z in (places, x, y[:, None])]
        ways = {
            "softlookup": lambda m=model: m.predict(places),
            "torch": lambda t=tensors: plain(*t),
            "KeOps": lambda t=tensors: keops(*t),
        }
        found = {name: np.asarray(way()).reshape(-1) for name, way in ways.items()}  # warm, and KeOps compiled
        times = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                times[name].append(timed(way)[0])
        ours = statistics.median(times["softlookup"])
        faster = theirs / FEW / (ours / len(places))
        print(f"{dtype}: {ours:.2f} s for {len(places):,} places; {faster:,.0f} times KernelReg's speed")
        print(f"    from KernelReg by {np.abs(found['softlookup'][:FEW] - want).max():.1e} at most", end="")
        for name in ("torch", "KeOps"):
            ratios = [b / a for a, b in zip(times["softlookup"], times[name], strict=True)]
            off = np.abs(found[name] - found["softlookup"]).max()
            print(f"; {name} takes {statistics.median(ratios):.1f} times as long (within {off:.0e})", end="")
        print(flush=True)


def searching() -> None:
    x, y = (torch.tensor(z, dtype=torch.float32) for z in made(20_000, 0))
    widths = torch.logspace(-0.7, 0.5, 30)
    leave_one_out(x[:500], y[:500, None], widths)
    with torch.no_grad():
        took, errors = timed(lambda: leave_one_out(x, y[:, None], widths))
    least = float(widths[errors.argmin()])
    print(f"leave-one-out errors of 30 bandwidths, 20,000 observations: {took:.1f} s; least at {least:.2f}")
    widths.requires_grad_()
    took, _ = timed(lambda: leave_one_out(x, y[:, None], widths).sum().backward())
    print(f"the same with gradients: {took:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    regression(args.rounds)
    searching()


if __name__ == "__main__":
    main()
