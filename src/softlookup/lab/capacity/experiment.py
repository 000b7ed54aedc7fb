"""How many random patterns one lookup tells apart, by their dimension.

Patterns are uniform on the sphere of radius sqrt(d); the score is beta times their product. A query at cosine rho to its
pattern is right if more than half of the weight is on it: if log sum_j exp(beta d m_j) over all others, at cosines m_j, stays
below beta d rho. That sum only grows with the patterns, so a query has one number N at which it fails, and the median of these
is the number at which half of all queries fail. The others are drawn afresh, block by block, and merged into one summary: none
is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import softlookup as sl

from ..figure import THEORY, WITH, WITHOUT
from ..run import Given

GROWTH = 2**0.25
"""Patterns after a block over patterns before it."""
QUERIES = 64
SETTINGS = {"exact": (1.0, 1.0, range(8, 25, 2)), "noisy": (1.0, 0.8, range(12, 37, 3)), "gentle": (0.5, 1.0, range(12, 37, 3))}
"""beta, rho and dimensions."""

Draw = Callable[[int, int], Tensor]


class Square(sl.Score):
    """s = log (q . k)^2: weights are squares of products, as in the energy of the classical Hopfield network."""

    def block(self, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return 2 * (q @ k.mT).abs().log()


def sphere(count: int, d: int) -> Tensor:
    """(count, d), uniform on the sphere of radius sqrt(d)."""
    return torch.nn.functional.normalize(torch.randn(count, d), dim=1) * d**0.5


def at_once(draw: Draw, d: int, rho: float, queries: int, beta: float = 1.0, score: sl.Score = sl.Dot()) -> float:  # noqa: B008
    """log N at which half of the queries fail, after one lookup."""

    def summed(asked: Tensor, patterns: Tensor) -> sl.Summary:
        values = patterns[..., :1]
        return sl.lookup(asked, patterns, values, score=score, normalizer=sl.Softmax(1 / beta), stats="logsumexp")

    own = float(summed(torch.full((1, 1, 1), d * rho), torch.ones(1, 1, 1)).logsumexp)
    asked, fails = draw(queries, d)[None], torch.full((queries,), math.inf)
    stored, whole, before = 0, None, torch.full((queries,), -math.inf)
    while float((fails < math.inf).float().mean()) < 0.6:
        block = draw(max(4, int(stored * (GROWTH - 1))), d)[None]
        part = summed(asked, block)
        whole = part if whole is None else sl.merge(whole, part)
        now = whole.logsumexp[0]
        # Within a block the logarithm of the sum grows with that of the number, about.
        share = ((own - before) / (now - before)).clamp(0, 1).nan_to_num(1)  # the first begins at -inf
        at = math.log(max(1, stored)) * (1 - share) + math.log(stored + block.shape[1]) * share
        fails = torch.where((now > own) & (fails == math.inf), at, fails)
        stored, before = stored + block.shape[1], now
    return float(fails.quantile(0.5))


def largest(beta: float) -> tuple[float, float]:
    """The cosine m of the largest term of the random energy model, and that term, log(1 - m^2) / 2 + beta m."""
    m = (math.sqrt(1 + 4 * beta**2) - 1) / (2 * beta)
    return m, math.log(1 - m**2) / 2 + beta * m


def threshold(beta: float, rho: float) -> tuple[float, float]:
    """Slope and constant of log N in d, by the random energy model; beyond the slope factors of d cancel (Laplace)."""
    m, term = largest(beta)
    return beta * rho - term, math.log(1 - m**4) / 2


def measure(given: Given) -> dict[str, Any]:
    torch.manual_seed(given.seed)
    score = Square() if given.control else sl.Dot()
    found: dict[str, Any] = {"numbers": {}}
    for name, (beta, rho, dimensions) in SETTINGS.items():
        some = [d for d in dimensions if not given.quick or d <= 20 + 8 * (name != "exact")]
        numbers = [at_once(sphere, d, rho, QUERIES, 1.0 if given.control else beta, score) for d in some]
        found[name], found["numbers"][name] = float(np.polyfit(some, numbers, 1)[0]), numbers
    return found


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    labels = {"exact": "β = 1", "noisy": "β = 1, query at cosine 0.8", "gentle": "β = 1/2"}
    for marker, (name, (beta, rho, dimensions)) in zip("o^s", SETTINGS.items(), strict=True):
        numbers = [np.exp(np.mean([each["numbers"][name] for each in some], 0)) for some in (found, control)]
        d = np.array(dimensions[: len(numbers[0])])
        slope, constant = threshold(beta, rho)
        axes.plot(d, np.exp(slope * d + constant), color=THEORY, lw=0.9, zorder=0)
        axes.plot(d, numbers[0], marker, color=WITH, ms=4, label=labels[name])
        axes.plot(d, numbers[1], marker, color=WITHOUT, ms=4, mfc="none")
    axes.plot([], [], color=THEORY, lw=0.9, label="random energy model")
    axes.plot([], [], "o", color=WITHOUT, ms=4, mfc="none", label="square of the product")
    axes.set(yscale="log", xlabel="dimension d", ylabel="patterns N, half of queries right")
    axes.legend(frameon=False, loc="upper left")
