"""The rows that score highest."""

from __future__ import annotations

import torch
from torch import Tensor

from .store import State

SCORES_AT_ONCE = 2**24
"""Of queries and rows."""


@torch.no_grad()
def best(query: Tensor, state: State, k: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Scores and positions (n, k) of the live rows from `start` on with the k largest products with queries (n, d), best first;
    where there are fewer, -inf and -1."""
    scores = query.new_full((len(query), k), float("-inf"))
    found = scores, torch.full(scores.shape, -1, dtype=torch.int64, device=query.device)
    if not k:
        return found
    step = max(k, SCORES_AT_ONCE // max(1, len(query)))
    for part in state.parts:
        for at in range(max(0, start - part.first), len(part.keys), step):
            here = query @ part.keys[at : at + step].T
            if state.alive is not None:
                here.masked_fill_(~state.alive[part.first + at :][: here.shape[1]], float("-inf"))
            top, where = here.topk(min(k, here.shape[1]), 1)
            found = best_of(found, (top, where + part.first + at), k)
    return found


def best_of(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k best of two lists of scores and positions."""
    scores, positions = (torch.cat(pair, 1) for pair in zip(first, second, strict=True))
    scores, order = scores.topk(k, 1)
    return scores, positions.gather(1, order).masked_fill(scores.isneginf(), -1)
