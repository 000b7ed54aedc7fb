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
from runaway import batches
from scipy.stats import t as student
from torch.nn import functional as F

from softlookup.lab.scaling.experiment import HEADS, LENGTH, SCALES, Decoder

STEPS = 200
WIDTHS = (8, 16, 32, 64, 128, 256)
RATES = [2.0 ** (-x / 2) for x in range(8, 25)]  # 1/16 to 1/4096 in half octaves
GRADIENT_RATE = 2.0**-9


def train(d_k: int, scale: str, rate: float, seed: int, probing: bool) -> dict[str, Any]:
    """The loss of the last 20 steps; with probing, also the norm of the loss's gradient with respect to the scores."""
    torch.manual_seed(seed)
    model = Decoder(d_k, SCALES[scale](d_k))
    optimizer = torch.optim.Adam(model.parameters(), rate, betas=(0.9, 0.95), fused=True)
    losses, norms = [], []
    for step, batch in enumerate(batches(seed, STEPS, LENGTH)):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10)
        optimizer.zero_grad()
        for each in model.attention if probing else ():
            each.bias = torch.zeros(len(batch), HEADS, LENGTH, LENGTH, requires_grad=True)
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        if probing:
            norms.append(math.sqrt(sum(float(x.bias.grad.square().sum()) for x in model.attention)))
        optimizer.step()
        losses.append(loss.item())
    norm = float(np.exp(np.mean(np.log(norms)))) if norms else None
    return {"loss": float(np.mean(losses[-20:])), "first": norms[:1], "norm": norm}


class Runs:
    """The file of runs: what is there is not made again."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.all: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def get(self, d_k: int, scale: str, rate: float, seed: int, probing: bool) -> dict[str, Any]:
        """A run, made if it has to be."""
        run = {"d_k": d_k, "scale": scale, "seed": seed, "rate": rate, "probing": probing}
        found = next((x for x in self.all if {name: x[name] for name in run} == run), None)
        if found is None:
            found = run | train(**run)
            with self.path.open("a") as out:
                out.write(json.dumps(found) + "\n")
            self.all.append(found)
        return found

    def loss(self, d_k: int, scale: str, rate: float, seeds: list[int]) -> float:
        """Mean over seeds; not a number counts as 99."""
        return float(np.mean([np.nan_to_num(self.get(d_k, scale, rate, seed, False)["loss"], nan=99.0) for seed in seeds]))

    def best(self, d_k: int, scale: str, seeds: list[int]) -> tuple[float, float]:
        """The rate with the least loss, and that: sought from the middle until two rates on either side are worse."""
        at, losses = len(RATES) // 2, {}
        while True:
            near = [n for n in range(at - 2, at + 3) if 0 <= n < len(RATES)]
            losses |= {n: self.loss(d_k, scale, RATES[n], seeds) for n in near if n not in losses}
            least = min(losses, key=losses.__getitem__)
            if least == at:
                return RATES[at], losses[at]
            at = least


def run(runs: Runs, seeds: list[int]) -> None:
    """The gradients at one rate, and the search of the best rate."""
    kinds = [(d_k, scale) for scale in SCALES for d_k in WIDTHS]
    for seed in seeds:
        for d_k, scale in kinds:
            runs.get(d_k, scale, GRADIENT_RATE, seed, True)
    for d_k, scale in kinds:
        rate, loss = runs.best(d_k, scale, seeds)
        print(f"d_k {d_k:3d} scale {scale:12s} best rate {rate:.5f}, loss {loss:.3f}", flush=True)


def slope(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Of a line through (log d_k, log norm), with its 95 % interval."""
    x, y = np.array(points).T
    centred = x - x.mean()
    b = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - b * centred
    error = math.sqrt(rest @ rest / (len(x) - 2) / (centred @ centred))
    half = float(student.ppf(0.975, len(x) - 2)) * error
    return b, b - half, b + half


def report(runs: Runs, seeds: list[int]) -> None:
    for scale in SCALES:
        probed = [x for x in runs.all if x["scale"] == scale and x["probing"] and x["seed"] in seeds]
        for name, of in (("in training", lambda x: x["norm"]), ("at the first step", lambda x: x["first"][0])):
            b, low, high = slope([(math.log(x["d_k"]), math.log(of(x))) for x in probed])
            print(f"scale {scale:12s} slope of log gradient norm on log d_k {name:18s} {b:6.3f} (95 % {low:.3f} to {high:.3f})")
        best = {d_k: runs.best(d_k, scale, seeds) for d_k in WIDTHS}
        for d_k, (rate, loss) in best.items():
            print(f"    d_k {d_k:3d}: best rate {rate:.5f}, loss {loss:.3f}")
        rates = [rate for rate, _ in best.values()]
        print(f"    best rates differ {max(rates) / min(rates):.1f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, nargs="*", default=list(range(5)))
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"run": run, "report": report}[args.what](Runs(args.out), args.seed)


if __name__ == "__main__":
    main()
