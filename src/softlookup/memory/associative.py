"""Attention as an associative memory: a lookup whose keys and values are the same patterns, repeated until it comes to rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..masks import Window
from ..normalizers import Softmax
from ..operator import attend
from ..scores import Dot

OTHERS = ~Window(1)
"""Every pattern but that at the query's own position."""


@dataclass(frozen=True, eq=False)
class Settled:
    """Of n states: state (n, d), where they came to; energy (steps, n), before each update, which none of them raises; moved
    (n,), how far the last update went; entropy (n,), in nats, and effective_patterns (n,), 1 / sum p^2, of the last lookup.

    About 1 effective pattern: one is retrieved. A few: a mixture of neighbours (a metastable state). All: their mean.
    """

    state: Tensor
    energy: Tensor
    moved: Tensor
    entropy: Tensor
    effective_patterns: Tensor


def settle(
    state: Tensor, patterns: Tensor, *, temperature: float | Tensor = 1.0, steps: int = 100, tolerance: float = 1e-5
) -> Settled:
    """Retrieval by a modern Hopfield network: q <- softmax(q patterns^T / temperature) patterns, one lookup an update (Ramsauer
    et al. 2021, eq. 3, whose beta is 1 / temperature). Differentiable in state, patterns and temperature; memory O(n + N).

    With t the temperature the energy is -t logsumexp(patterns q / t) + |q|^2 / 2 + t log N + max |pattern|^2 / 2 (their eq. 2).

    Args:
        state: (n, d), the queries.
        patterns: (N, d).
        temperature: a float, or a tensor () or (n,); 0 takes the pattern of the
            largest product.
        steps: updates at most.
        tolerance: they end when no state moves farther than this times the longest pattern.
    """
    if state.ndim != 2 or patterns.ndim != 2 or state.shape[1] != patterns.shape[1] or not len(patterns):
        got = f"{tuple(state.shape)} and {tuple(patterns.shape)}"
        raise SoftlookupError(f"settle: expected state (n, d) and patterns (N, d) with N of at least 1, got {got}")
    if steps < 1:
        raise SoftlookupError(f"steps: expected at least 1, got {steps}")
    if isinstance(temperature, Tensor) and temperature.ndim and temperature.shape != state.shape[:1]:
        raise SoftlookupError(f"temperature: expected shape () or ({len(state)},), got {tuple(temperature.shape)}")
    per_row = temperature.view(1, 1, -1) if isinstance(temperature, Tensor) and temperature.ndim else temperature
    largest = patterns.square().sum(1).max()
    # In hard retrieval the log-normalizer is the largest score, undivided.
    factor = temperature if isinstance(temperature, Tensor) or temperature else 1.0
    constant = temperature * patterns.new_tensor(len(patterns)).log() + largest / 2
    reach = float(largest.detach().sqrt()) * tolerance
    energies = []
    for _ in range(steps):
        found, stats = attend(
            state[None],
            patterns[None],
            patterns[None],
            score=Dot(),
            normalizer=Softmax(per_row),
            stats=("logsumexp", "entropy", "effective_keys"),
        )
        energies.append(state.square().sum(1) / 2 - factor * stats.logsumexp[0] + constant)
        moved = (found[0] - state).norm(dim=1)
        state = found[0]
        if bool((moved <= reach).all()):
            break
    return Settled(state, torch.stack(energies), moved, stats.entropy[0], stats.effective_keys[0])


def separation(patterns: Tensor) -> Tensor:
    """(N,) how well patterns (N, d) stand apart: x_i . x_i - max_{j != i} x_i . x_j (Ramsauer et al. 2021, eq. 4).

    Retrieval at a temperature t needs it to be large beside t. Differentiable, in one pass with memory O(N).
    """
    if patterns.ndim != 2 or len(patterns) < 2:
        raise SoftlookupError(f"separation: expected patterns (N, d) with N of at least 2, got {tuple(patterns.shape)}")
    x = patterns.detach()[None]
    _, stats = attend(x, x, x[..., :1], score=Dot(), mask=OTHERS, stats="argmax")
    return (patterns * (patterns - patterns[stats.argmax[0]])).sum(1)
