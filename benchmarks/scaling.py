"""What 1/sqrt(d_k) does in training: d_k from 8 to 256, scores without a scale, with 1/sqrt(d_k) and with 1/d_k.

    python benchmarks/scaling.py run --out FILE [--seed …]     # a line per run; what is in FILE is not made again
    python benchmarks/scaling.py report --out FILE

A decoder of two layers, 64 wide with 2 heads, learns the text of Python's help byte by byte (`pydoc_data.topics`); only the
width of queries and keys differs. Their projections begin with variance 1/64, so that queries and keys have components of
variance 1, as the argument for the scale assumes (Vaswani et al. 2017, footnote 4). The gradient at the input of the softmax is
that of a bias of zeros that is added to the scores.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runaway import text
from torch import Tensor, nn
from torch.nn import functional as F

import softlookup as sl

WIDTH, HEADS, LAYERS, LENGTH, BATCH, STEPS = 64, 2, 2, 64, 16, 200
WIDTHS = (8, 16, 32, 64, 128, 256)
SCALES = {"1": lambda d: 1.0, "1/sqrt(d_k)": lambda d: d**-0.5, "1/d_k": lambda d: 1 / d}
RATES = [2.0 ** (-x / 2) for x in range(8, 25)]  # 1/16 to 1/4096 in half octaves
GRADIENT_RATE = 2.0**-9


class Attention(nn.Module):
    """Causal, queries and keys d_k wide and values as wide as ever; the scores get a bias of zeros to read a gradient from."""

    def __init__(self, d_k: int, scale: float):
        super().__init__()
        self.query, self.key = (nn.Linear(WIDTH, HEADS * d_k, bias=False) for _ in range(2))
        self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        for each in (self.query, self.key, self.value, self.out):
            nn.init.normal_(each.weight, std=WIDTH**-0.5)
        self.scale, self.probe = scale, None

    def forward(self, x: Tensor, probing: bool) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        self.probe = x.new_zeros(len(x), HEADS, x.shape[1], x.shape[1]).requires_grad_() if probing else None
        y = sl.attend(q, k, v, score=sl.Dot(), scale=self.scale, mask=sl.Causal(), bias=self.probe)
        return self.out(y.transpose(1, 2).flatten(2))


class GPT(nn.Module):
    def __init__(self, d_k: int, scale: float):
        super().__init__()
        self.embedding, self.places = nn.Embedding(256, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.attention = nn.ModuleList(Attention(d_k, scale) for _ in range(LAYERS))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH)) for _ in range(LAYERS)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * LAYERS + 1))
        self.last = nn.Linear(WIDTH, 256, bias=False)

    def forward(self, tokens: Tensor, probing: bool = False) -> Tensor:
        x = self.embedding(tokens) + self.places.weight
        for n, (attention, feed) in enumerate(zip(self.attention, self.feed, strict=True)):
            x = x + attention(self.norms[2 * n](x), probing)
            x = x + feed(self.norms[2 * n + 1](x))
        return self.last(self.norms[-1](x))


def train(d_k: int, scale: str, rate: float, seed: int, probing: bool) -> dict[str, Any]:
    """The loss of the last 20 steps; with probing, also the norm of the loss's gradient with respect to the scores."""
    torch.manual_seed(seed)
    model, data = GPT(d_k, SCALES[scale](d_k)), text()
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), rate, betas=(0.9, 0.95), fused=True)
    losses, norms = [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10)
        start = torch.randint(len(data) - LENGTH - 1, (BATCH,), generator=random)
        batch = data[start[:, None] + torch.arange(LENGTH + 1)]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[:, :-1], probing).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        if probing:
            norms.append(math.sqrt(sum(float(x.probe.grad.square().sum()) for x in model.attention)))
        optimizer.step()
        losses.append(loss.item())
    norm = float(np.exp(np.mean(np.log(norms)))) if norms else None
    return {"loss": float(np.mean(losses[-20:])), "first": norms[:1], "norm": norm}


def wanted(seeds: list[int]) -> list[dict[str, Any]]:
    """All runs: the gradients at one rate, and the search of the best rate."""
    kinds = [{"d_k": d_k, "scale": scale, "seed": seed} for seed in seeds for scale in SCALES for d_k in WIDTHS]
    probed = [kind | {"rate": GRADIENT_RATE, "probing": True} for kind in kinds]
    return probed + [kind | {"rate": rate, "probing": False} for kind in kinds for rate in RATES]


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("d_k", "scale", "rate", "seed", "probing"))


def slope(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Of a line through (log d_k, log norm), with its 95 % interval."""
    x, y = np.array(points).T
    centred = x - x.mean()
    b = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - b * centred
    error = math.sqrt(rest @ rest / (len(x) - 2) / (centred @ centred))
    half = 2.048 * error if len(x) == 30 else 2.2 * error  # Student's t with n - 2 degrees of freedom: 30 runs have 28
    return b, b - half, b + half


def report(found: list[dict[str, Any]]) -> None:
    for scale in SCALES:
        probed = [x for x in found if x["scale"] == scale and x["probing"]]
        for name, of in (("in training", lambda x: x["norm"]), ("at the first step", lambda x: x["first"][0])):
            b, low, high = slope([(math.log(x["d_k"]), math.log(of(x))) for x in probed])
            print(f"scale {scale:12s} slope of log gradient norm on log d_k {name:18s} {b:6.3f} (95 % {low:.3f} to {high:.3f})")
        best = {}
        for d_k in WIDTHS:
            losses = {}
            for x in found:
                if (x["scale"], x["d_k"], x["probing"]) == (scale, d_k, False):
                    losses.setdefault(x["rate"], []).append(x["loss"])
            means = {rate: float(np.mean(np.nan_to_num(each, nan=99.0))) for rate, each in losses.items()}
            best[d_k] = min(means, key=means.__getitem__)
            print(f"    d_k {d_k:3d}: best rate {best[d_k]:.5f}, loss {means[best[d_k]]:.3f}")
        print(f"    best rates differ {max(best.values()) / min(best.values()):.1f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, nargs="*", default=list(range(5)))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    if args.what == "report":
        report(found)
        return
    done = {key(x) for x in found}
    with args.out.open("a") as out:
        for run in wanted(args.seed):
            if key(run) not in done:
                out.write(json.dumps(run | train(**run)) + "\n")
                out.flush()


if __name__ == "__main__":
    main()
