"""The two limits of the temperature, how the gradient dies between them, and what it takes to learn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import softlookup as sl

from ..figure import THEORY, WITH, WITHOUT
from ..run import Given

ROWS, WIDTH, LEARNED, STEPS = 64, 16, 16, 300


def value(scores: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """(n, S) scores of rows (S, E) -> (n, E): a product with keys of one-hot rows has any scores."""
    one_hot = torch.eye(len(rows), dtype=rows.dtype)
    return sl.attend(scores, one_hot, rows, score=sl.Dot(), normalizer=sl.Softmax(temperature))


def gradient(scores: Tensor, rows: Tensor, temperature: float) -> float:
    """The Frobenius norm of the Jacobian of the value in the scores."""
    jacobian = torch.autograd.functional.jacobian(lambda s: value(s, rows, temperature)[0], scores)
    return float(jacobian.norm())


def learn(temperature: float, quick: bool) -> list[float]:
    """The share of rows that are retrieved, by step."""
    keys, rows = torch.randn(LEARNED, WIDTH), torch.eye(LEARNED)
    query = torch.nn.Parameter(0.1 * torch.randn(LEARNED, WIDTH))
    optimizer, shares = torch.optim.Adam([query], 0.05), []
    for _ in range(STEPS // 2 if quick else STEPS):
        y = sl.attend(query, keys, rows, normalizer=sl.Softmax(temperature))
        loss = (y - rows).square().sum(1).mean()
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        shares.append(float((y.argmax(1) == torch.arange(LEARNED)).float().mean()))
    return shares


def measure(given: Given) -> dict[str, Any]:
    torch.manual_seed(given.seed)

    def at(temperature: float) -> float:
        return 0.0 if given.control else temperature

    scores, rows = torch.randn(1, ROWS, dtype=torch.float64), torch.randn(ROWS, WIDTH, dtype=torch.float64)
    best, second = scores[0].topk(2).values.tolist()
    gap = best - second
    others = torch.logspace(-4, -10, 7).tolist()
    inverse = [-math.log(share) / gap for share in others]  # 1 / temperature
    norms = [gradient(scores, rows, at(1 / x)) for x in inverse]
    logs = [math.log(norm / x) if norm else -math.inf for norm, x in zip(norms, inverse, strict=True)]
    shares = learn(at(1.0), given.quick)
    return {
        "retrieval": max(float((value(scores, rows, t) - rows[scores.argmax()]).abs().max()) for t in (0.0, at(gap / 40))),
        "mean": float((value(scores, rows, at(1e9)) - rows.mean(0)).abs().max()),
        "decay": (logs[-1] - logs[0]) / (inverse[-1] - inverse[0]) / gap if all(norms) else math.nan,
        "learned": shares[-1],
        "shares": shares,
    }


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    for results, colour, label in ((found, WITH, "soft, τ = 1"), (control, WITHOUT, "hard, τ = 0")):
        for n, each in enumerate(results):
            axes.plot(each["shares"], color=colour, alpha=0.6, lw=1.2, label=label if n == 0 else None)
    axes.axhline(1 / LEARNED, color=THEORY, lw=0.8, ls=":", label="chance")
    axes.set(xlabel="step of training", ylabel="rows retrieved", ylim=(0, 1.03))
    axes.legend(frameon=False, loc="center right")
