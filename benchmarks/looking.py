"""The cost of looking: SmolLM2 under `sl.watch` against its plain forward, interleaved in one run.

    python benchmarks/looking.py [--tokens 2048] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import softlookup as sl
from softlookup.inspection.loading import load
from softlookup.inspection.text import read_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = load("smollm2")
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    ids = tokenizer(read_text(None)[0], return_tensors="pt", truncation=True, max_length=args.tokens)["input_ids"]

    def timed(watched: bool) -> float:
        start = time.perf_counter()
        with torch.no_grad():
            if watched:
                with sl.watch(model):
                    model(ids)
            else:
                model(ids)
        return time.perf_counter() - start

    timed(False), timed(True)
    pairs = [(timed(False), timed(True)) for _ in range(args.rounds)]
    low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    plain = statistics.median(a for a, _ in pairs)
    print(f"SmolLM2-135M, {ids.shape[1]} tokens, {args.threads} threads: plain sdpa forward {plain:.2f} s,")
    print(f"watched with the cheap set {middle:.2f} times that (quartiles {low:.2f} – {high:.2f}; below is better)")


if __name__ == "__main__":
    main()
