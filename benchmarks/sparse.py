"""Sparse attention by blocks: how few blocks real heads need, what bounds can promise about them, and what is gained in time.

    python benchmarks/sparse.py [--tokens 8192] [--rounds 7] [--threads 2] [--only heads|planted]

heads: of all heads of SmolLM2 reading real text, the share that keeps 99 % of its weight (the mean over queries, measured) when
so many times fewer blocks are read, each block of queries reading its k best: by the bound of their scores, by the score of
their mean, and by an oracle that knows their weight. planted: keys in clusters, each a run of 256, and queries that look for
one of them; told are times, what is certified and what is true.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from real_heads import of_smollm2
from torch import Tensor
from torch.nn.functional import normalize, pad

import softlookup as sl
from softlookup import sparse
from softlookup.sparse.blocks import KEYS, ROWS

SPEEDS = (1.25, 1.5, 2, 3, 4, 6, 8, 12, 16)
MASS = 0.99


def block_weights(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Of one head (L, E), causal: the weight of each block of keys for each query (L, N), and logsumexp (L,)."""
    length = len(query)
    weights, sums = [], []
    for start in range(0, length, ROWS):
        q = query[start : start + ROWS] * query.shape[1] ** -0.5
        s = q @ key[: start + ROWS].T
        s = s.masked_fill(torch.arange(s.shape[1]) > start + torch.arange(len(q))[:, None], -torch.inf)
        sums.append(s.logsumexp(-1))
        p = (s - sums[-1][:, None]).exp()
        whole = -(-length // KEYS) * KEYS
        weights.append(pad(p, (0, whole - p.shape[1])).unflatten(1, (-1, KEYS)).sum(-1))
    return torch.cat(weights), torch.cat(sums)


def k_of(speed: float, blocks: Tensor) -> int:
    """The most blocks that each block of queries may read where `blocks` (P,) could be."""
    fits = [k for k in range(1, int(blocks.max()) + 1) if blocks.clamp(max=k).sum() * speed <= blocks.sum()]
    return max(fits, default=0)


@torch.no_grad()
def heads(tokens: int) -> None:
    panels = -(-tokens // ROWS)
    blocks = ((torch.arange(panels) + 1) * ROWS // KEYS).clamp(max=-(-tokens // KEYS))
    ks = {speed: k_of(speed, blocks) for speed in SPEEDS}
    ways = ("oracle", "upper", "mean")
    kept = {(way, speed): [] for way in ways for speed in SPEEDS}
    promised: list[Tensor] = []
    for query, key, _ in of_smollm2(tokens):
        group = query.shape[1] // key.shape[1]
        weights, sums = (
            torch.stack(x)
            for x in zip(*(block_weights(query[0, h], key[0, h // group]) for h in range(query.shape[1])), strict=True)
        )
        of_panels = pad(weights, (0, 0, 0, panels * ROWS - tokens)).unflatten(1, (panels, ROWS))
        for speed, k in ks.items():
            best = of_panels.sum(2).topk(k, -1).indices
            live = {"oracle": torch.zeros(of_panels.shape[0], panels, of_panels.shape[3]).bool().scatter_(-1, best, True)}
            for way in ways[1:]:
                live[way] = sparse.top_blocks(query, key, k=k, causal=True, by=way).live[0]
            for way in ways:
                mass = (of_panels * live[way][:, :, None]).sum(-1).flatten(1)[:, :tokens]
                kept[way, speed].append(mass.mean(-1) >= MASS)
                if way == "upper" and speed == 4:
                    chosen = sparse.Blocks(live[way][None])
                    promised.append(sparse.missed(query, key, chosen, (sums + mass.log())[None], causal=True)[0])
    count = sum(len(x) for x in kept["oracle", SPEEDS[0]])
    print(
        f"{count} heads of SmolLM2, {tokens} tokens: share that keeps {MASS:.0%} of its weight with so many times fewer blocks"
    )
    print("  chosen by " + "".join(f"{speed:>8g}x" for speed in SPEEDS))
    for way in ways:
        shares = (torch.cat(kept[way, speed]).double().mean() for speed in SPEEDS)
        print(f"  {way:10s}" + "".join(f"{float(x):9.0%}" for x in shares), flush=True)
    bounds = torch.cat(promised)
    print(
        f"  certified at 4x, by the bound: below 0.5 for {float((bounds < 0.5).double().mean()):.1%} of queries, below 0.1 for "
        f"{float((bounds < 0.1).double().mean()):.1%}; of heads, the mean is below 0.5 in "
        f"{float((bounds.mean(-1) < 0.5).double().mean()):.1%}"
    )


@torch.no_grad()
def planted(tokens: int, rounds: int) -> None:
    torch.manual_seed(0)
    width, count = 64, tokens // 256
    centres = normalize(torch.randn(8, count, width), dim=-1) * 16
    topic = torch.arange(tokens) // 256
    looks_for = torch.stack([torch.randperm(count) for _ in range(8)])[:, topic % count]
    key = (centres[:, topic] + 0.2 * torch.randn(8, tokens, width))[None]
    query = (centres.gather(1, looks_for[..., None].expand(-1, -1, width)) + 0.2 * torch.randn(8, tokens, width))[None]
    value = torch.randn(1, 8, tokens, width)
    exact = sl.attend(query, key, value)
    print(f"planted: {count} clusters of 256 keys, 8 heads of {width}, {tokens} queries, not causal")
    for tolerance in (1e-1, 1e-2, 1e-3):
        found = sparse.attend(query, key, value, tolerance=tolerance)
        q, k = query.double(), key.double()
        whole, part = (sl.attend(q, k, k, mask=m, stats="logsumexp")[1].logsumexp for m in (None, found.mask))
        true = -torch.expm1(part - whole)
        few = lambda t=tolerance: sparse.attend(query, key, value, tolerance=t)  # noqa: E731
        ratios, seconds = side_by_side(lambda: sl.attend(query, key, value), few, rounds)
        share, above = float(found.mask.live.double().mean()), int((true > found.missed).sum())
        print(
            f"  tolerance {tolerance:g}: {share:.1%} of blocks, {seconds * 1e3:.0f} ms, exact "
            f"{statistics.median(ratios):.1f} times as long ({min(ratios):.1f} to {max(ratios):.1f}); missed at most "
            f"{float(found.missed.max()):.1e} certified, {float(true.max()):.1e} true, {above} above; "
            f"values differ by {float((found.value - exact).abs().max()):.1e}",
            flush=True,
        )


def side_by_side(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[list[float], float]:
    """Ratios of their times, and the median seconds of the second."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        first()
        middle = time.perf_counter()
        second()
        times.append((middle - start, time.perf_counter() - middle))
    return [a / b for a, b in times[1:]], statistics.median(b for _, b in times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("tokens", 8192), ("rounds", 7), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=("heads", "planted"))
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    if said.only != "heads":
        planted(said.tokens, said.rounds)
    if said.only != "planted":
        heads(said.tokens)


if __name__ == "__main__":
    main()
