"""What watching costs: a training step of a small GPT with every statistic of every head, and a sample of rows in SmolLM2.

    python benchmarks/watching.py [--rounds 9] [--threads 2]

Interleaved in one run; a ratio above 1 is what watching adds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from training_step import GPT, VOCABULARY

import softlookup as sl
from softlookup.inspection.loading import load
from softlookup.inspection.text import read, read_text


def ratios(of: Callable[[bool], float], rounds: int) -> str:
    """The watched time over the plain one, median and quartiles."""
    of(False), of(True)
    pairs = [(of(False), of(True)) for _ in range(rounds)]
    low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    return f"{middle:.3f} (quartiles {low:.3f} – {high:.3f}; plain {statistics.median(a for a, _ in pairs):.3f} s)"


def training_step(looking: bool, rounds: int) -> str:
    """Of the GPT of training_step.py. looking: its attention is softlookup's and has statistics of its own; else torch's."""
    torch.manual_seed(0)
    model, tokens = GPT(), torch.randint(VOCABULARY, (2, 1024))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def timed(watching: bool) -> float:
        with sl.watch(model) if watching else nullcontext() as seen:
            start = time.perf_counter()
            optimizer.zero_grad()
            model(tokens, looking).backward()
            optimizer.step()
            took = time.perf_counter() - start
            if seen is not None:
                seen.clear()
        return took

    return ratios(timed, rounds)


def sampled_rows(rounds: int) -> None:
    """Cost of 64 rows at 2,048 tokens, and how far the means are from those of all rows, in standard errors."""
    loaded = load("smollm2")
    content, _ = read_text(None)
    batch = read(loaded.tokenizer, content, 2048).batch
    loaded.model.eval()
    kept = {}

    def timed(watching: bool) -> float:
        with sl.watch(loaded.model, rows=64) if watching else nullcontext() as seen:
            start = time.perf_counter()
            loaded.model(**batch, use_cache=False)
            took = time.perf_counter() - start
        kept["sample"] = seen or kept.get("sample")
        return took

    with torch.no_grad():
        print(f"SmolLM2, 2,048 tokens, rows=64: {ratios(timed, rounds)} times the plain forward")
        with sl.watch(loaded.model, rows="all") as whole:
            loaded.model(**batch, use_cache=False)
    for stat in ("entropy", "entropy_ratio", "max_weight", "sink_mass", "distance", "logit_var", "expected_logit"):
        off = []
        for name, layer in kept["sample"].layers.items():
            off.append((layer.mean(stat) - whole.layers[name].mean(stat)).abs() / layer.stderr(stat).clamp(min=1e-12))
        far = torch.cat(off)
        print(f"    {stat:15s} within 3 standard errors: {float((far <= 3).double().mean()):.1%} of {len(far)} heads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"a training step under sl.watch, against torch's kernel alone: {training_step(False, args.rounds)}")
    print(f"the same, against softlookup's attention with statistics in the loss: {training_step(True, args.rounds)}")
    sampled_rows(args.rounds)


if __name__ == "__main__":
    main()
