"""Two collapses: the floor that spectral norms set to entropy, and tokens that become equal with depth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import softlookup as sl

from ..figure import THEORY, WITH, WITHOUT, halves
from ..run import Given

TOKENS, WIDTH, DEPTH = 64, 32, 6
NORMS = (1.0, 2.0, 4.0, 8.0, 16.0)
SOUGHT, STEPS, DRAWS = 4.0, 80, 20


def floor(norm: float) -> float:
    """The least entropy of TOKENS keys whose logits have a norm (Zhai et al. 2023, Theorem 3.1)."""
    others, gap = TOKENS - 1, norm * math.sqrt(TOKENS / (TOKENS - 1))
    rest = others * math.exp(-gap)
    return math.log1p(rest) + gap * rest / (1 + rest)


def lowest(x: Tensor, of_query: Tensor, of_key: Tensor) -> float:
    """The least entropy over queries of self-attention among tokens x (n, d), whose logits are x W_Q W_K^T x^T."""
    _, stats = sl.attend(x @ of_query, x @ of_key, x, score=sl.Dot(), stats=("entropy",))
    return float(stats.entropy.min())


def at_random(norm: float, weight: float) -> float:
    """Tokens and projections at random, the spectral norms of X X^T and W_Q W_K^T such that their product is `norm`."""
    x, of_query, of_key = (torch.randn(n, WIDTH, dtype=torch.float64) for n in (TOKENS, WIDTH, WIDTH))
    whole = torch.linalg.matrix_norm(x, 2) ** 2 * torch.linalg.matrix_norm(of_query @ of_key.T, 2)
    return lowest(x, of_query * (weight * norm / whole), of_key)


def worst(norm: float, weight: float) -> float:
    """X = 1 and W_Q W_K^T of rank one: the first query's logits are one above equal others, and their norm is `norm`."""
    eye = torch.eye(TOKENS, dtype=torch.float64)
    row = eye[0] - eye.mean(0)
    return lowest(eye, eye[:, :1] * norm * weight, (row / row.norm())[:, None])


def descended(norm: float) -> float:
    """The least entropy of a row of logits of a norm, by descent from 32 random ones."""
    row = torch.nn.Parameter(torch.randn(32, TOKENS, dtype=torch.float64))
    optimizer = torch.optim.Adam([row], 0.2)
    eye = torch.eye(TOKENS, dtype=torch.float64)
    for _ in range(STEPS):
        logits = norm * torch.nn.functional.normalize(row, dim=1)
        _, stats = sl.attend(logits, eye, eye, score=sl.Dot(), stats=("entropy",))
        optimizer.zero_grad()
        stats.entropy.sum().backward()
        optimizer.step()
    return float(stats.entropy.detach().min())


def tokens(residual: float) -> Tensor:
    """(1, TOKENS, WIDTH), a common part of norm sqrt(WIDTH) and residuals of so much of it."""
    common, rest = torch.randn(WIDTH, dtype=torch.float64), torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    rest = rest - rest.mean(1, keepdim=True)
    return WIDTH**0.5 * common / common.norm() + residual * rest / rest.square().mean().sqrt()


def apart(x: Tensor) -> float:
    """|X - 1 mean^T| / |X|."""
    return float((x - x.mean(1, keepdim=True)).norm() / x.norm())


def residuals(x: Tensor, count: int, skips: bool) -> list[float]:
    """How far apart tokens are before and after each of some layers of attention, of one head whose values and outputs are
    rotated."""
    found = [apart(x)]
    for _ in range(count):
        layer = sl.nn.MultiHeadAttention(WIDTH, 1, bias=False).double()
        torch.nn.init.orthogonal_(layer.of_value.weight)
        torch.nn.init.orthogonal_(layer.out.weight)
        with torch.no_grad():
            x = x * skips + layer(x)
        found.append(apart(x))
    return found


def cubed(skips: bool) -> float:
    """Slope of the logarithm of one layer's residual over that before it, for residuals of the same shape."""
    sizes = torch.logspace(-3, -1, 5).tolist()
    shape = torch.random.get_rng_state()
    pairs = []
    for size in sizes:
        torch.random.set_rng_state(shape)
        pairs.append(residuals(tokens(size), 1, skips))
    before, after = np.log(pairs).T
    return float(np.polyfit(before, after, 1)[0])


def measure(given: Given) -> dict[str, Any]:
    torch.manual_seed(given.seed)
    weight = 2.0 if given.control else 1.0
    random = [[at_random(norm, weight) for _ in range(DRAWS)] for norm in NORMS]
    attained = [worst(norm, weight) for norm in NORMS]
    depth = residuals(tokens(1.0), DEPTH, given.control)
    first, second, third = np.log(residuals(tokens(0.3), 2, given.control))
    return {
        "margin": min(min(some) - floor(norm) for norm, some in zip(NORMS, random, strict=True)),
        "attained": max(abs(entropy - floor(norm)) for norm, entropy in zip(NORMS, attained, strict=True)),
        "sought": descended(SOUGHT * weight) / floor(SOUGHT),
        "cubic": cubed(given.control),
        "rate": (third - second) / (second - first),
        "left": depth[-1],
        "depth": depth,
        "worst": attained,
    }


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    left, right = halves(axes)
    norms = np.linspace(0.01, NORMS[-1], 200)
    left.plot(norms, [floor(norm) for norm in norms], color=THEORY, lw=0.9, label="floor")
    left.plot(NORMS, found[0]["worst"], "o", color=WITH, ms=4, label="worst case")
    left.plot(NORMS, control[0]["worst"], "o", color=WITHOUT, ms=4, mfc="none", label="twice the weights")
    left.set(xlabel="spectral norm σ", ylabel="least entropy (nats)")
    for some, colour, label in ((found, WITH, "attention alone"), (control, WITHOUT, "with skip connections")):
        for n, each in enumerate(some):
            right.plot(each["depth"], "o-", color=colour, ms=3, lw=0.8, alpha=0.7, label=label if n == 0 else None)
    first, second = np.exp(np.log([each["depth"][1:3] for each in found]).mean(0))
    cubed = [first * (second / first) ** ((3**n - 1) / 2) for n in range(4)]
    right.plot(range(1, 5), cubed, color=THEORY, lw=1.4, ls="--", zorder=3, label="each fall 3 times the last")
    right.axhline(2**-53, color=THEORY, lw=0.8, ls=":", label="rounding")
    right.set(yscale="log", xlabel="layers", ylabel="residual ‖X − 1x̄ᵀ‖ / ‖X‖", ylim=(1e-26, 9))
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=8, loc="lower left")
