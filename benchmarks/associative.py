"""How many random patterns an associative memory holds, against their dimension.

    python benchmarks/associative.py [--queries 64] [--repetitions 8] [--threads 1]

Patterns are uniform on the sphere of radius sqrt(d), or of d signs; the score is their product, the temperature 1 / beta with
beta = 1. A query at cosine rho to its pattern is right after one lookup if more than half of the weight is on it: if
log sum_j exp(beta d m_j) over all others, at cosines m_j, stays below beta d rho. That sum only grows with the patterns, so a
query has one number N at which it fails, and the median of these is the number at which half of all queries fail. The others
are drawn afresh, block by block, and merged into one summary: none is kept. Then the whole memory: from cosine 0.8, `settle` in
patterns that are kept, wrong if it ends at an overlap q . x / d of 0.9 or less; N by bisection of its logarithm.

What theory says. For N = exp(alpha d) the terms of the sum are a random energy model (Lucibello & Mezard 2024): about
exp(d (alpha + s(m))) patterns lie at cosine m, s(m) = log(1 - m^2) / 2 on the sphere, none where that exponent is negative. So

    phi = lim log(sum) / d = max {alpha + s(m) + beta m : alpha + s(m) >= 0},        retrieval if phi < beta rho.

The largest term is at m* = (sqrt(1 + 4 beta^2) - 1) / (2 beta). Where m* < rho it exists at the threshold, and

    alpha = beta (rho - m*) - log(1 - m*^2) / 2;     else the nearest pattern decides, alpha = -log(1 - rho^2) / 2.

For signs the mean of exp(beta d m) is cosh(beta)^d: alpha = beta rho - log cosh beta, m* = tanh(beta). At finite d the sum is
near its mean, N = exp(beta d rho) / E exp(beta d m), where m* < rho. There factors of d cancel (Laplace): log N = alpha d +
log(1 - m*^4) / 2 on the sphere, alpha d for signs; only a nearest pattern's log N has a log(d) / 2. The median sum is below
its mean, so somewhat more patterns fit while d is small.

Settling forgives more: with a weight w on its pattern after the first lookup a state still gets there if the second one's
margin is the larger, a - phi(r) >= rho - phi(1) (the noise taken at its mean), where a = w + (1 - w) m* rho,
r^2 = w^2 + 2 w (1 - w) m* rho + (1 - w)^2 m*^2 and phi(r) is the largest s(m) + beta r m. For the least such w log N is larger
by log((1 - w) / w); its slope is the same.

The bound is Ramsauer et al. 2021, Theorem 3: N >= sqrt(p) c^((d - 1) / 4), for all patterns at once, at p = 1/2. It has its own
condition on c, and the table says where that is not met.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import lambertw
from torch import Tensor

from softlookup.lab.capacity.experiment import Draw, at_once, largest, sphere, threshold
from softlookup.memory import settle

BETA, RIGHT = 1.0, 0.9


def signs(count: int, d: int) -> Tensor:
    """(count, d) of -1 and 1."""
    return torch.randint(0, 2, (count, d), dtype=torch.int8).float() * 2 - 1


def share_wrong(d: int, rho: float, stored: int, queries: int) -> float:
    """Of queries at cosine rho to patterns on the sphere, how many do not settle near theirs."""
    patterns = sphere(stored, d)
    mine = patterns[:queries]
    aside = torch.randn_like(mine)
    aside = torch.nn.functional.normalize(aside - (aside * mine).sum(1, keepdim=True) / d * mine, dim=1) * d**0.5
    state = settle(rho * mine + (1 - rho**2) ** 0.5 * aside, patterns, temperature=1 / BETA, steps=20, tolerance=1e-3).state
    return float(((state * mine).sum(1) / d <= RIGHT).float().mean())


def settling(draw: Draw, d: int, rho: float, queries: int) -> float:
    """log N at which half of the queries settle elsewhere: doubled until they do, then bisected."""
    high = math.log(8) * (1 + float(torch.rand(())))  # anywhere, so that the steps of the bisection average out
    while share_wrong(d, rho, round(math.exp(high)), queries) <= 0.5:
        high += math.log(2)
    low = high - math.log(2)
    for _ in range(4):
        middle = (low + high) / 2
        low, high = (low, middle) if share_wrong(d, rho, round(math.exp(middle)), queries) > 0.5 else (middle, high)
    return (low + high) / 2


def expected(run: Callable[..., float], draw: Draw, rho: float) -> tuple[float, float]:
    """Slope and constant of log N in d, by the random energy model."""
    if draw is signs:
        return BETA * rho - math.log(math.cosh(BETA)), 0.0
    (alpha, constant), (m, _) = threshold(BETA, rho), largest(BETA)
    if run is at_once:
        return alpha, constant

    def margin(w: float) -> float:
        r = math.sqrt(w**2 + 2 * w * (1 - w) * m * rho + ((1 - w) * m) ** 2)
        return BETA * (w + (1 - w) * m * rho) - largest(BETA * r)[1] - alpha

    w = brentq(margin, 0.01, 0.99)
    return alpha, constant + math.log((1 - w) / w)


def bound(d: int, p: float = 0.5) -> tuple[float, bool]:
    """log N of Ramsauer's Theorem 3 for radius sqrt(d), and whether its condition on c is met."""
    k = math.sqrt(d / (d - 1))
    a, b = 2 / (d - 1) * (1 + math.log(2 * BETA * k**2 * p * (d - 1))), 2 * k**2 * BETA / 5
    c = b / float(lambertw(math.exp(a + math.log(b))).real)
    return math.log(p) / 2 + (d - 1) / 4 * math.log(c), c >= (2 / math.sqrt(p)) ** (4 / (d - 1))


def line(d: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope, constant and R^2 of y (dimensions, repetitions) on d."""
    x = np.repeat(d, y.shape[1])
    slope, constant = np.polyfit(x, y.reshape(-1), 1)
    rest = y.reshape(-1) - slope * x - constant
    return slope, constant, 1 - rest.var() / y.var()


def measure(
    name: str, run: Callable[..., float], draw: Draw, rho: float, dimensions: Iterable[int], said: argparse.Namespace
) -> None:
    """A table of log N against d, and the line through it."""
    slope, constant = expected(run, draw, rho)
    print(f"\n{name}: log N, the random energy model's, and N", flush=True)
    rows = []
    for d in dimensions:
        torch.manual_seed(d)
        rows.append([run(draw, d, rho, said.queries) for _ in range(said.repetitions)])
        mean = float(np.mean(rows[-1]))
        off = f"± {np.std(rows[-1], ddof=1) / math.sqrt(said.repetitions):.3f}"
        print(f"    d {d:3d}   {mean:6.3f} {off}   {slope * d + constant:6.3f}   {math.exp(mean):12,.0f}", flush=True)
    x, y = np.array(list(dimensions), float), np.array(rows)
    print(f"    random energy model: slope {slope:.4f}, constant {constant:.2f}")
    for name, some in (("all d", slice(None)), ("the larger half", slice(len(x) // 2, None))):
        found, level, r2 = line(x[some], y[some])
        random = np.random.default_rng(0)
        again = [line(x[some], np.stack([random.choice(row, len(row)) for row in y[some]]))[0] for _ in range(2000)]
        low, high = np.quantile(again, [0.025, 0.975])
        interval = f"slope {found:.4f} (95 % {low:.4f} to {high:.4f}), {found / slope:.3f} of the model's"
        print(f"    {name}: {interval}; constant {level:.2f}, R^2 {r2:.5f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    measure("sphere, at the pattern, one lookup", at_once, sphere, 1.0, range(8, 25, 2), said)
    measure("sphere, at cosine 0.8, one lookup", at_once, sphere, 0.8, range(12, 37, 3), said)
    measure("signs, at the pattern, one lookup", at_once, signs, 1.0, range(8, 27, 2), said)
    measure("sphere, from cosine 0.8, settled", settling, sphere, 0.8, range(12, 28, 3), said)
    print("\nRamsauer's Theorem 3, log N")
    for d in (8, 12, 16, 20, 24, 36, 100, 1000):
        least, met = bound(d)
        print(f"    d {d:4d}   {least:6.3f}{'' if met else '   (its condition on c is not met)'}")
    print(f"    slope from 8 to 24 {(bound(24)[0] - bound(8)[0]) / 16:.4f}, at 1000 {bound(1000)[0] - bound(999)[0]:.4f}")


if __name__ == "__main__":
    main()
