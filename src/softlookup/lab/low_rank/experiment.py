"""Free queries and keys of each width are fitted to wanted weights: how much of the KL is left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import softlookup as sl

from ..figure import THEORY, WITH, WITHOUT
from ..run import Given

KEYS, SPREAD, STEPS = 32, 0.1, 240
WIDTHS = (4, 8, 16, 24, 30, 31, 32)
QUICK_WIDTHS = (8, 16, 30, 31)


def target(rank: int) -> Tensor:
    """(n, n) logits whose rows have mean 0 and whose `rank` singular values are alike."""
    centred = torch.eye(KEYS, dtype=torch.float64) - 1 / KEYS
    left, right = (torch.linalg.qr(torch.randn(KEYS, rank, dtype=torch.float64)).Q for _ in range(2))
    right = torch.linalg.qr(centred @ right).Q
    return SPREAD * KEYS * rank**-0.5 * left @ right.mT


def loss(logits: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Mean over rows of the KL in nats of what is wanted from softmax(query key^T)."""
    wanted = logits, torch.eye(KEYS, dtype=torch.float64)
    return sl.divergence(wanted, (query, key), score=sl.Dot()).mean()


def fitted(logits: Tensor, width: int, steps: int) -> tuple[Tensor, Tensor, float]:
    """Queries and keys (n, width) of the least loss that is found, and that loss."""
    query, key = (torch.nn.Parameter(0.1 * torch.randn(KEYS, width, dtype=torch.float64)) for _ in range(2))
    optimizer = torch.optim.LBFGS(
        [query, key], max_iter=steps, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss(logits, query, key)
        found.backward()
        return found

    optimizer.step(closure)
    with torch.no_grad():
        return query, key, float(loss(logits, query, key))


def measure(given: Given) -> dict[str, Any]:
    torch.manual_seed(given.seed)
    logits = target(KEYS // 4 if given.control else KEYS - 1)
    nothing = torch.zeros(KEYS, 1, dtype=torch.float64)
    uniform = float(loss(logits, nothing, nothing))
    widths, steps = (QUICK_WIDTHS, STEPS // 5) if given.quick else (WIDTHS, STEPS)
    fits = {width: fitted(logits, width, steps) for width in widths}
    left = {width: fit[2] / uniform for width, fit in fits.items()}
    query, key, _ = fits[KEYS // 2]
    weights = sl.attend(query.detach(), key.detach(), torch.eye(KEYS, dtype=torch.float64), score=sl.Dot())
    return {
        "quarter": left[KEYS // 4],
        "half": left[KEYS // 2],
        "last": left[KEYS - 2],
        "exact": left[KEYS - 1],
        "rank": int(torch.linalg.matrix_rank(weights)),
        "left": list(left.items()),
    }


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    axes.plot([0, KEYS - 1, KEYS], [1, 0, 0], color=THEORY, lw=1, label="Eckart & Young, 1 − d_k / (n − 1)")
    for results, colour, label in ((found, WITH, "logits of rank n − 1"), (control, WITHOUT, "logits of rank n / 4")):
        for n, each in enumerate(results):
            axes.plot(*zip(*each["left"], strict=True), "o", color=colour, alpha=0.6, ms=5, label=None if n else label)
    axes.set(xlabel="width of queries and keys, d_k", ylabel="share of the KL that is left", ylim=(-0.03, 1.03))
    axes.legend(frameon=False)
