"""Linear functions, learned from the pairs of a context by a transformer, and by one head that averages their y."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import softlookup as sl
from softlookup.nn import TransformerBlock

from ..descend import descend
from ..figure import THEORY, WITH, WITHOUT
from ..run import Given

NOISE, PLACES, TESTED, INNER = 0.5, 8, 4000, 48
BANDWIDTHS = np.geomspace(0.3, 3, 24).tolist()
BINS = 40
"""Of a training, in the figure."""

Foretell = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of x (B, n, d), y (B, n, 1) and places (B, PLACES, d): what is said at these, (B, PLACES, 1)."""


class Contexts(NamedTuple):
    """y = w·x + noise, and w·x at the places, with another w for each of B."""

    x: Tensor
    y: Tensor
    places: Tensor
    target: Tensor

    @classmethod
    def sample(cls, count: int, width: int) -> Contexts:
        """Twice as many pairs as dimensions; x on the sphere of radius √d."""
        pairs = 2 * width
        x = nn.functional.normalize(torch.randn(count, pairs + PLACES, width), dim=2) * width**0.5
        values = x @ torch.randn(count, width, 1) / width**0.5
        y = values[:, :pairs] + NOISE * torch.randn(count, pairs, 1)
        return cls(x[:, :pairs], y, x[:, pairs:], values[:, pairs:])

    def error(self, foretell: Foretell) -> Tensor:
        return (foretell(self.x, self.y, self.places) - self.target).square().mean()


class Transformer(nn.Module):
    """Pairs and places are tokens of one sequence, and read the pairs."""

    def __init__(self, width: int, layers: int, heads: int, normalizer: sl.Softmax):
        super().__init__()
        self.pair, self.place = nn.Linear(width + 1, INNER), nn.Linear(width, INNER)
        self.blocks = nn.ModuleList(TransformerBlock(INNER, heads, inner=2 * INNER) for _ in range(layers))
        self.read = nn.Linear(INNER, 1)
        for block in self.blocks:
            block.attention.normalizer = normalizer  # type: ignore[union-attr]

    def forward(self, x: Tensor, y: Tensor, places: Tensor) -> Tensor:
        pairs = x.shape[1]
        tokens = torch.cat([self.pair(torch.cat([x, y], 2)), self.place(places)], 1)
        for block in self.blocks:
            tokens, _ = block(tokens, mask=sl.Prefix(pairs))
        return self.read(tokens[:, pairs:])


class Head(nn.Module):
    """One head: keys are the x, values are the y."""

    def __init__(self, width: int, normalizer: sl.Softmax):
        super().__init__()
        self.query, self.key = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.normalizer = normalizer

    def forward(self, x: Tensor, y: Tensor, places: Tensor) -> Tensor:
        return sl.attend(self.query(places), self.key(x), y, normalizer=self.normalizer)


def ridge(penalty: float) -> Foretell:
    def foretell(x: Tensor, y: Tensor, places: Tensor) -> Tensor:
        return places @ torch.linalg.solve(x.mT @ x + penalty * torch.eye(x.shape[2]), x.mT @ y)

    return foretell


def smoother(bandwidth: float) -> Foretell:
    return lambda x, y, places: sl.attend(places, x, y, score=sl.Gaussian(bandwidth))


class Sizes(NamedTuple):
    """width: d. batch, steps: of training."""

    width: int
    layers: int
    heads: int
    batch: int
    steps: int


FULL, QUICK = Sizes(3, 3, 2, 64, 2000), Sizes(2, 2, 4, 32, 900)


ATTENTION, MEAN = sl.Softmax(), sl.Softmax(temperature=1e9)


def trained(seed: int, sizes: Sizes, normalizer: sl.Softmax) -> dict[str, Any]:
    """Errors on new contexts, and on the way of the two trainings."""
    torch.manual_seed(seed)
    width, layers, heads, batch, steps = sizes
    models = {"transformer": Transformer(width, layers, heads, normalizer), "head": Head(width, normalizer)}
    curves = {}

    def train(model: nn.Module) -> list[float]:
        return descend(model.parameters(), lambda: Contexts.sample(batch, width).error(model), steps, 0.004)

    for name, model in models.items():
        curves[name] = [float(np.mean(some)) for some in np.array_split(train(model), BINS)]
    with torch.no_grad():
        test = Contexts.sample(TESTED, width)
        errors = {
            "ridge": float(test.error(ridge(width * NOISE**2))),
            "least squares": float(test.error(ridge(0.0))),
            "smoother": min(float(test.error(smoother(h))) for h in BANDWIDTHS),
        }
        errors |= {name: float(test.error(model)) for name, model in models.items()}
    return {"errors": errors, "curves": curves, "steps": steps}


def measure(given: Given) -> dict[str, Any]:
    key = f"seed {given.seed}: 6 pairs in 3 dimensions, 2000 steps of 64" + ", means for attention" * given.control
    sizes, normalizer = QUICK if given.quick else FULL, MEAN if given.control else ATTENTION
    found = given.record(key, lambda: trained(given.seed, sizes, normalizer))
    errors = found["errors"]
    return {
        "ridge": errors["transformer"] / errors["ridge"],
        "smoother": errors["transformer"] / errors["smoother"],
        "head": errors["head"] / errors["smoother"],
        **found,
    }


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    steps = found[0]["steps"]
    ways = (np.arange(BINS) + 0.5) * steps / BINS
    for results, colour, which in ((found, WITH, ""), (control, WITHOUT, ", means for weights")):
        for name, style, label in (("transformer", "-", "layers"), ("head", "--", "one head over x and y")):
            for n, each in enumerate(results):
                said = None if n else label + which
                axes.plot(ways, each["curves"][name], style, color=colour, lw=1.2, alpha=0.6, label=said)
    for name, style in (("smoother", "--"), ("least squares", ":"), ("ridge", "-")):
        axes.axhline(np.mean([each["errors"][name] for each in found]), color=THEORY, lw=0.9, ls=style, label=name)
    axes.set(yscale="log", xlabel="step of training", ylabel="mean squared error (of the answer 0: 1)")
    axes.set_yticks((0.2, 0.5, 1), ("0.2", "0.5", "1"))
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper right", bbox_to_anchor=(1, 0.8))
