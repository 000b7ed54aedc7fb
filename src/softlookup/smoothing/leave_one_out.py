"""How well every observation is foretold by all others: the error that a bandwidth is chosen by."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..masks import Window
from ..operator import attend
from ..scores import Gaussian

OTHERS = ~Window(1)
"""Every key but that at the query's own position."""
REACH = 15.0


def leave_one_out(observed: Tensor, values: Tensor, bandwidths: Tensor) -> Tensor:
    """The mean squared error, over observations and outputs, of foretelling each value from all others by a Gaussian kernel,
    for C bandwidths in one pass (each is a head). Exact, in memory O(S), and differentiable in everything.

    observed: (S, d); values: (S, m); bandwidths: (C,), or (C, d), one for each dimension. Returns (C,). Where a bandwidth is so
    small that all others are out of reach, the nearest still foretells: weights are ratios.
    """
    if observed.ndim != 2 or values.ndim != 2 or len(values) != len(observed) or len(observed) < 2:
        got = f"{tuple(observed.shape)} and {tuple(values.shape)}"
        raise SoftlookupError(f"leave_one_out: expected observed (S, d) and values (S, m) with S of at least 2, got {got}")
    if bandwidths.ndim not in (1, 2):
        raise SoftlookupError(f"leave_one_out: expected bandwidths (C,) or (C, d), got {tuple(bandwidths.shape)}")
    centre = values.detach().mean(0)
    queries = observed[None].expand(len(bandwidths), -1, -1)
    foretold = attend(queries, observed[None], (values - centre)[None], score=Gaussian(bandwidths), mask=OTHERS)
    return (foretold + centre - values).square().mean((1, 2))


def extent(observed: Tensor) -> float:
    """How far apart observations (S, d) lie, about: the largest standard deviation of a dimension, times sqrt(d)."""
    return float(observed.std(0, correction=0).max()) * observed.shape[1] ** 0.5


def search(observed: Tensor, values: Tensor, low: float, high: float, count: int = 16) -> tuple[float, float]:
    """The bandwidth with the least error, and that: `count` in equal ratios from `low` to `high`, and as many again between the
    neighbours of the best."""
    best, error = low, float("inf")
    for _ in range(2):
        some = torch.logspace(torch.tensor(low).log10(), torch.tensor(high).log10(), count, dtype=observed.dtype)
        with torch.no_grad():
            errors = leave_one_out(observed, values, some)
        at = int(errors.argmin())
        if float(errors[at]) < error:
            best, error = float(some[at]), float(errors[at])
        low, high = float(some[max(0, at - 1)]), float(some[min(count - 1, at + 1)])
    return best, error


def descend(observed: Tensor, values: Tensor, start: Tensor, steps: int = 60) -> tuple[Tensor, float]:
    """Bandwidths (d,), one for each dimension, and their error: by L-BFGS on their logarithms from `start` (d,), at most a
    factor of exp(REACH) away."""
    logs = start.log().clone().requires_grad_()

    def widths() -> Tensor:
        return logs.clamp(start.log() - REACH, start.log() + REACH).exp()

    optimizer = torch.optim.LBFGS([logs], max_iter=steps, line_search_fn="strong_wolfe")

    def error() -> Tensor:
        optimizer.zero_grad()
        loss = leave_one_out(observed, values, widths()[None])[0]
        loss.backward()
        return loss

    optimizer.step(error)
    with torch.no_grad():
        return widths(), float(leave_one_out(observed, values, widths()[None])[0])
