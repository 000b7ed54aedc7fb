"""The variance of random features, and how many pairs a state of d x d numbers holds."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import softlookup as sl
from softlookup import linear

from ..figure import THEORY, WITH, WITHOUT
from ..run import Given

FEATURES = 4
PAIRS = (((0.3, 0.1), (0.2, 0.4)), ((0.5, -0.5), (0.5, 0.2)), ((0.8, 0.1), (-0.3, 0.5)))
"""Of vectors whose product's exponential is estimated."""
SIZES, COLD = (32, 64), 0.05


def variance(kind: str, x: Tensor, y: Tensor, draws: int, seed: int, exact: bool) -> float:
    """Of estimates of exp(x . y) by `FEATURES` independent features each, over that of Choromanski et al. 2021, Lemma 2; or of
    that number itself, draw by draw."""
    if exact:
        estimates = (x @ y).exp().expand(draws)
    else:
        of = linear.RandomFeatures(2, FEATURES * draws, kind=kind, orthogonal=False, scale=1.0, seed=seed).double()
        products = (of(x[None]) * of(y[None]))[0]
        if kind == "trigonometric":  # cosines, then sines
            products = products.view(2, -1).sum(0)
        estimates = products.view(draws, FEATURES).sum(1) * draws
    found = float(estimates.var())
    apart, together = (float(v.square().sum()) for v in (x - y, x + y))
    if kind == "positive":
        return found / (math.exp(together + 2 * float(x @ y)) * (1 - math.exp(-together)) / FEATURES)
    return found / (math.exp(float(x @ x + y @ y)) * (1 - math.exp(-apart)) ** 2 / (2 * FEATURES))


def answered(d: int, n: int, exact: bool) -> float:
    """The share of n keys at which the value that was written there is the nearest to what is read."""
    keys, values = (normalize(torch.randn(n, d), dim=1)[None, None] for _ in range(2))
    if exact:
        read = sl.attend(keys, keys, values, score=sl.Dot(), normalizer=sl.Softmax(COLD))
    else:
        nothing = torch.zeros_like(keys)
        _, state = linear.recur(nothing, keys, values)
        read, _ = linear.recur(keys, nothing, nothing, state=state)
    return float(((read @ values.mT)[0, 0].argmax(1) == torch.arange(n)).float().mean())


def chance(d: int, n: float) -> float:
    """The same by theory: the mean over z of Phi((1 + z c) / s)^(n - 1), c^2 = n / d^2, s^2 = 2 / d + c^2."""
    normal, c = NormalDist(), math.sqrt(n) / d
    s = math.sqrt(2 / d + c * c)
    z = [normal.inv_cdf((i + 0.5) / 400) for i in range(400)]
    return sum(normal.cdf((1 + x * c) / s) ** (n - 1) for x in z) / len(z)


def half(d: int) -> float:
    """The n of which half are answered, by theory."""
    low, high = 1.0, 4.0 * d * d
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if chance(d, middle) > 0.5 else (low, middle)
    return low


def measure(given: Given) -> dict[str, Any]:
    torch.manual_seed(given.seed)
    found: dict[str, Any] = {}
    draws = 40_000 if given.quick else 200_000
    vectors = [[torch.tensor(v, dtype=torch.float64) for v in pair] for pair in PAIRS]
    for kind in ("positive", "trigonometric"):
        ratios = [variance(kind, x, y, draws, given.seed, given.control) for x, y in vectors]
        found[kind] = sum(ratios) / len(ratios)
    for d in SIZES:
        counts = [round(half(d) * 2 ** (step / 2)) for step in range(-3, 9 if given.control else 4)]
        shares = [sum(answered(d, n, given.control) for _ in range(4)) / 4 for n in counts]
        found[f"capacity_{d}"] = crossing(counts, shares) / half(d)
        found[f"curve_{d}"] = [counts, shares]
    return found


def crossing(counts: list[int], shares: list[float]) -> float:
    """Where shares fall to one half, between counts in their logarithms; the last count if they never do."""
    for (n, before), (m, after) in zip(pairs := list(zip(counts, shares, strict=True)), pairs[1:], strict=False):
        if before >= 0.5 > after:
            return n * (m / n) ** ((before - 0.5) / (before - after))
    return float(counts[-1])


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    for d, style in zip(SIZES, ("--", "-"), strict=True):
        counts, _ = found[0][f"curve_{d}"]
        axes.plot(counts, [chance(d, n) for n in counts], color=THEORY, ls=style, lw=1, label=f"theory, {d} × {d}")
        for n, each in enumerate(found):
            axes.plot(counts, each[f"curve_{d}"][1], "o", color=WITH, ms=3, label=None if n or d != 64 else "linear state")
    counts, shares = control[0]["curve_64"]
    axes.plot(counts, shares, "s-", color=WITHOUT, ms=3, lw=1, label="exact attention, d = 64")
    axes.set(xscale="log", xlabel="pairs written", ylabel="values read rightly", ylim=(0, 1.03))
    axes.legend(frameon=False)
