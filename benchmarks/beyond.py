"""Everything beyond softmax over all pairs, side by side on a real model's queries, keys and values: one page from one command.

    python benchmarks/beyond.py [--only error|cost|cost_of_all|hierarchy] [--page docs/beyond.md] [--tokens 8192] [--threads 2]

error: of each mechanism, how far its values are from exact attention's, for all heads of six layers of SmolLM2 reading 8,192
tokens; nothing is trained or fitted. cost: seconds of a causal forward of one layer (9 heads of 64) by length, beyond 8,192
tokens on the same queries, keys and values tiled; cost_of_all: the same of those that read all keys. hierarchy:
`hierarchy.py`. What is measured is kept in beyond.json part by part, and the page is made of it; a part that is there is
measured again only if named.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hierarchy
import torch
from beyond_page import page
from machine import describe
from real_heads import of_smollm2
from torch import Tensor

import softlookup as sl
from softlookup import linear, sparse
from softlookup.files import write_text
from softlookup.lab.hyperbolic import trees

HERE = Path(__file__).parent
KEPT = HERE / "beyond.json"
LAYERS = (2, 7, 12, 17, 22, 27)
LENGTHS = tuple(2**n for n in range(10, 17))
LONGEST = 60.0
"""Seconds that a forward may be expected to take; longer ones are left out."""
Way = Callable[[Tensor, Tensor, Tensor], Tensor]
Ways = Callable[[int], Iterator[tuple[str, str, Way]]]


def causal_ways(length: int) -> Iterator[tuple[str, str, Way]]:
    """Kind, name and function of each mechanism with a causal form."""
    causal = sl.Causal()

    def masked(mask: sl.Mask) -> Way:
        return lambda q, k, v: sl.attend(q, k, v, mask=causal & mask)

    def normalized(normalizer: sl.Normalizer) -> Way:
        return lambda q, k, v: sl.attend(q, k, v, mask=causal, normalizer=normalizer)

    def scored(score: sl.Score, scale: float | None = None) -> Way:
        return lambda q, k, v: sl.attend(q, k, v, mask=causal, score=score, scale=scale)

    def by_features(features: linear.FeatureMap) -> Way:
        return lambda q, k, v: linear.attend(q, k, v, features=features, causal=True)

    yield "", "exact", lambda q, k, v: sl.attend(q, k, v, mask=causal)
    yield "normalizer", "entmax 1.5", normalized(sl.Entmax(1.5))
    yield "normalizer", "sparsemax", normalized(sl.Sparsemax())
    yield "normalizer", "64 best keys", normalized(sl.TopK(64))
    yield "normalizer", "sigmoid", normalized(sl.Sigmoid())
    yield "sparse", "window of 512", masked(sl.Window(512))
    yield "sparse", "window of 512, first 4 keys", masked(sl.Window(512) | sl.Prefix(4))
    yield "sparse", "BigBird", masked(sparse.big_bird(length, heads=9))
    yield "sparse", "strided, 4", masked(sparse.strided(length, 4))
    blocks = max(1, length // sparse.blocks.KEYS // 8)
    for by in ("upper", "mean"):
        best: Way = lambda q, k, v, by=by: sparse.attend(q, k, v, k=blocks, causal=True, by=by).value  # noqa: E731
        yield "sparse", f"1/8 of the blocks, by {by}", best
    yield "sparse", "16 clusters", lambda q, k, v: sparse.route(q, k, v, clusters=16, causal=True)
    yield "linear", "elu + 1", by_features(linear.EluPlusOne())
    yield "linear", "ReLU", by_features(linear.ReLU())
    yield "linear", "cosFormer", by_features(linear.CosFormer(length))
    yield "linear", "Hedgehog, untrained", by_features(linear.Hedgehog(64, 9))
    for features in (64, 256):
        yield "linear", f"{features} random features", by_features(linear.RandomFeatures(64, features))
    yield "geometry", "Gaussian kernel", scored(sl.Gaussian(64**0.25))
    yield "geometry", "cosine, 16", scored(sl.Cosine(), 16.0)
    lift, hyperbolic = sl.Hyperbolic.lift, scored(sl.Hyperbolic())
    yield "geometry", "hyperbolic distance", lambda q, k, v: hyperbolic(lift(q), lift(k), v)


def other_ways(length: int) -> Iterator[tuple[str, str, Way]]:
    """Of those that read all keys, beside exact attention to all keys."""
    yield "", "exact", sl.attend
    for landmarks in (64, 256):
        yield "landmarks", f"Nyström, {landmarks}", lambda q, k, v, m=landmarks: linear.nystrom(q, k, v, landmarks=m)
    means = torch.eye(256).repeat_interleave(length // 256, 1) * 256 / length
    yield "mixtures", "Linformer, means of 256 segments", lambda q, k, v: linear.linformer(q, k, v, means)
    yield "linear", "256 random features", lambda q, k, v: linear.attend(q, k, v, features=linear.RandomFeatures(64, 256))
    blocks = max(1, length // sparse.blocks.KEYS // 8)
    yield "sparse", "1/8 of the blocks, by upper", lambda q, k, v: sparse.attend(q, k, v, k=blocks).value


@torch.no_grad()
def error(tokens: int) -> list[dict[str, Any]]:
    """One row per mechanism: its kind and name, and relative error and explained variance of every head."""
    layers = of_smollm2(tokens)
    rows = []
    for causal, ways in ((True, causal_ways(tokens)), (False, other_ways(tokens))):
        for kind, name, way in ways:
            if name == "exact":
                continue
            found = []
            for layer in LAYERS:
                q, k, v = layers[layer]
                got = way(q, k, v)
                for head in range(q.shape[1]):
                    of_key = slice(head // 3, head // 3 + 1)
                    one = q[:, head : head + 1], k[:, of_key], v[:, of_key]
                    told = linear.error_against_exact(
                        lambda *_, h=head, y=got: y[:, h : h + 1], *one, mask=sl.Causal() if causal else None
                    )
                    found.append((told.relative, told.explained))
            relative, explained = (list(x) for x in zip(*found, strict=True))
            rows.append({"causal": causal, "kind": kind, "name": name, "relative": relative, "explained": explained})
            print(f"{name:34s}{statistics.median(relative):8.3f}{statistics.median(explained):8.1%}", flush=True)
    return rows


@torch.no_grad()
def cost(tokens: int, ways: Ways = causal_ways) -> list[dict[str, Any]]:
    """One row per mechanism: seconds by length, the median of three, of one where it takes over five seconds."""
    q, k, v = of_smollm2(tokens)[LAYERS[2]]
    rows: dict[str, dict[str, Any]] = {}
    for length in LENGTHS:
        tensors = [x.repeat(1, 1, -(-length // tokens), 1)[:, :, :length].contiguous() for x in (q, k, v)]
        for kind, name, way in ways(length):
            row = rows.setdefault(name, {"kind": kind, "name": name, "seconds": {}})
            before = row["seconds"].get(str(length // 2))
            if length > LENGTHS[0] and (before is None or 4 * before > LONGEST):
                continue
            if length == LENGTHS[0]:
                way(*tensors)
            times: list[float] = []
            while len(times) < 3 and (not times or times[-1] < 5):
                start = time.perf_counter()
                way(*tensors)
                times.append(time.perf_counter() - start)
            row["seconds"][str(length)] = statistics.median(times)
            print(f"{length:6d} {name:34s}{row['seconds'][str(length)]:9.3f} s", flush=True)
    return list(rows.values())


def tree(_: int) -> list[dict[str, Any]]:
    """One row for each width and score of `hierarchy.py`, with its own defaults."""
    torch.set_num_threads(1)
    steps, rows = trees.above(trees.tree()), []
    for width, kind, rate, found, _model in hierarchy.compared(steps, hierarchy.WIDTHS, hierarchy.RATES, 2, 300):
        precision, first = (statistics.mean(x) for x in zip(*found, strict=True))
        rows.append({"width": width, "score": kind, "rate": rate, "precision": precision, "parent": first})
        print(rows[-1], flush=True)
    return rows


PARTS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "error": error,
    "cost": cost,
    "cost_of_all": partial(cost, ways=other_ways),
    "hierarchy": tree,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="measure this part, again if it is there")
    parser.add_argument("--page", default=str(HERE.parent / "docs" / "beyond.md"))
    for name, default in (("tokens", 8192), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    said = parser.parse_args()
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in [said.only] if said.only else [name for name in PARTS if name not in kept]:
        torch.set_num_threads(said.threads)
        about = describe(said.threads)
        kept[name] = {"tokens": said.tokens, "threads": said.threads, "machine": about["cpu"], "rows": PARTS[name](said.tokens)}
        write_text(KEPT, json.dumps(kept, indent=1) + "\n")
    write_text(said.page, page(kept))
    print(f"wrote {said.page}")


if __name__ == "__main__":
    main()
