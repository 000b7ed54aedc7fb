"""An engine against torch's fused attention, side by side in one run.

    python benchmarks/attention.py [--engine native] [--rounds 7] [--json PATH] [--threads 2] [--only TEXT]

Each round times every contender once, in turn; a row is the median over rounds of (peer's time / ours), with quartiles,
so that drifting clocks cancel. Above 1 means that ours is faster. Outputs are checked equal first.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

import softlookup as sl

H = 8


def inputs(n: int, width: int = 64, grad: bool = False) -> list[torch.Tensor]:
    return [torch.randn(1, H, n, width).requires_grad_(grad) for _ in range(3)]


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratios(peer: Callable[[], object], ours: Callable[[], object], rounds: int) -> dict[str, float]:
    """Quartiles of peer's time over ours, and both medians in milliseconds."""
    peer(), ours()
    pairs = [(timed(peer), timed(ours)) for _ in range(rounds)]
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    a, b = (1e3 * statistics.median(x) for x in zip(*pairs, strict=True))
    return {"ratio": middle, "q1": low, "q3": high, "peer_ms": a, "ours_ms": b}


def forward(n: int, width: int, stats: bool, causal: bool, rounds: int) -> dict[str, float]:
    q, k, v = inputs(n, width)
    mask = sl.Causal() if causal else None

    def peer() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def ours() -> torch.Tensor:
        return sl.attend(q, k, v, mask=mask, stats=True)[0] if stats else sl.attend(q, k, v, mask=mask)

    torch.testing.assert_close(ours(), peer(), rtol=2e-5, atol=2e-6)
    return ratios(peer, ours, rounds)


def backward(n: int, width: int, stats: bool, causal: bool, rounds: int) -> dict[str, float]:
    """Backward alone: the forward of each round is not timed."""
    q, k, v = inputs(n, width, grad=True)
    g = torch.randn(1, H, n, width)
    mask = sl.Causal() if causal else None
    times: dict[str, list[float]] = {"peer": [], "ours": []}
    for _ in range(rounds + 1):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        times["peer"].append(timed(lambda: torch.autograd.grad(y, (q, k, v), g)))  # noqa: B023
        if stats:
            z, s = sl.attend(q, k, v, mask=mask, stats=True)
            outputs = [z, *(s[name] for name in s.names if s[name].requires_grad)]
            grads = [g, *(torch.ones_like(x) for x in outputs[1:])]
        else:
            outputs, grads = [sl.attend(q, k, v, mask=mask)], [g]
        times["ours"].append(timed(lambda: torch.autograd.grad(outputs, (q, k, v), grads)))  # noqa: B023
    pairs = list(zip(times["peer"][1:], times["ours"][1:], strict=True))
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    a, b = (1e3 * statistics.median(x) for x in zip(*pairs, strict=True))
    return {"ratio": middle, "q1": low, "q3": high, "peer_ms": a, "ours_ms": b}


def window(n: int, width: int, rounds: int) -> dict[str, float]:
    q, k, v = inputs(n)
    i = torch.arange(n)
    dense_mask = (i[:, None] >= i[None]) & (i[:, None] - i[None] < width)
    mask = sl.Causal() & sl.Window(width)

    def peer() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask)

    def ours() -> torch.Tensor:
        return sl.attend(q, k, v, mask=mask, stats=True)[0]

    torch.testing.assert_close(ours(), peer(), rtol=2e-5, atol=2e-6)
    return ratios(peer, ours, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("--engine", default="native", choices=("native", "streaming"))
    parser.add_argument("--only", default="", help="run only the rows whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows: dict[str, Callable[[], dict[str, float]]] = {}
    for width in (64, 128):
        for n in (1024, 4096):
            for causal in (False, True):
                for stats in (False, True):
                    name = f"{n}{' causal' * causal}, D={width}{', statistics' * stats}"
                    arguments = n, width, stats, causal, args.rounds
                    rows[f"forward {name}"] = partial(forward, *arguments)
                    rows[f"backward {name}"] = partial(backward, *arguments)
    rows["forward window 256 of 8192, statistics"] = lambda: window(8192, 256, max(3, args.rounds // 2))
    machine = platform.processor() or platform.machine()
    print(f"{machine}, torch {torch.__version__}, {args.threads} threads, B=1 H={H}, engine {args.engine}")
    print(f"{'peer: torch SDPA (fp32)':42s} {'ratio':>6s}  {'quartiles':>12s} {'peer ms':>9s} {'ours ms':>9s}")
    results = {}
    for name, run in rows.items():
        if args.only in name:
            with sl.engine(args.engine):
                results[name] = r = run()
            spread = f"{r['q1']:.2f} – {r['q3']:.2f}"
            print(f"{name:42s} {r['ratio']:6.2f}  {spread:>12s} {r['peer_ms']:9.1f} {r['ours_ms']:9.1f}", flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
