"""What hyperbolic distances gain over flat ones, on a tree and on a grid."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..figure import THEORY, WITH, WITHOUT
from ..run import Given
from .trees import above, measured, trained, tree

WIDTHS, RATES, STEPS, FAR = (2, 8), (0.03, 0.1), 300, 3
PACKAGES = ("http", "json", "logging", "urllib")


def grid(nodes: int) -> Tensor:
    """(N, N) how many steps node i of a square grid is from node j; 0 beyond `FAR`."""
    side = math.isqrt(nodes)
    place = torch.stack([torch.arange(side * side) // side, torch.arange(side * side) % side], 1)
    steps = (place[:, None] - place).abs().sum(-1)
    return torch.where(steps <= FAR, steps, 0).float()


def precision(kind: str, steps: Tensor, width: int, seed: int, quick: bool) -> float:
    """The average precision of ancestors, at the rate of the least loss."""
    rates, rows = (RATES[:1], 64 if width == 2 else 16) if quick else (RATES, 128)
    runs = [trained(kind, steps, width, seed, rate, STEPS, rows) for rate in rates]
    model, _ = min(runs, key=lambda run: run[1])
    return measured(model, steps)[0]


def measure(given: Given) -> dict[str, Any]:
    steps = above(tree(PACKAGES))
    if given.control:
        steps = grid(len(steps))
    found: dict[str, Any] = {"nodes": len(steps)}
    for width in WIDTHS:
        for kind in ("flat", "hyperbolic"):
            key = f"{kind}, width {width}, {'grid' if given.control else 'tree'} of {len(steps)}, seed {given.seed}"
            found[f"{kind}_{width}"] = given.record(key, partial(precision, kind, steps, width, given.seed, given.quick))
        found[f"gain_{width}"] = found[f"hyperbolic_{width}"] - found[f"flat_{width}"]
    return found


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    places = range(len(WIDTHS))
    for results, colour, label, aside in ((found, WITH, "tree", -0.06), (control, WITHOUT, "grid", 0.06)):
        for n, each in enumerate(results):
            gains = [each[f"gain_{width}"] for width in WIDTHS]
            axes.plot([x + aside for x in places], gains, "o", color=colour, ms=5, label=None if n else label)
    axes.axhline(0, color=THEORY, lw=0.8)
    axes.axhline(0.1, color=THEORY, lw=0.8, ls=":", label="predicted at least, 2 dimensions")
    axes.set(xticks=places, xlim=(-0.5, 1.5), ylabel="average precision, hyperbolic − flat")
    axes.set_xticklabels([f"{width} dimensions" for width in WIDTHS])
    axes.legend(frameon=False)
