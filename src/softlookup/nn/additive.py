"""Additive attention as a module, with keys that are projected once and asked many times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..compiled import writable
from ..errors import SoftlookupError
from ..operator import attend
from ..running import MaskLike, StatsLike
from ..scores import AdditiveForm, Score
from ..summary import Stats


class AdditiveAttention(nn.Module):
    """s_ij = u . tanh(W_q q_i + b + W_k k_j) (Bahdanau, Cho & Bengio 2015, appendix A.1.2).

    An encoder's states are projected once, `keys(states)`, and asked at every step of a decoder: `ask`.

    Args:
        query_width: E.
        key_width: Ek.
        width: A, of the space in which they meet.
    """

    def __init__(self, query_width: int, key_width: int, width: int):
        super().__init__()
        if min(query_width, key_width, width) < 1:
            raise SoftlookupError(f"AdditiveAttention: expected widths of at least 1, got {query_width}, {key_width}, {width}")
        self.of_query = nn.Linear(query_width, width)
        self.of_key = nn.Linear(key_width, width, bias=False)
        self.u = nn.Parameter(torch.empty(1, width))
        nn.init.uniform_(self.u, -(width**-0.5), width**-0.5)

    def keys(self, key: Tensor) -> Tensor:
        """(B, S, Ek) -> (B, S, A), to be asked."""
        return self.of_key(key)

    def ask(
        self, query: Tensor, keys: Tensor, value: Tensor, *, mask: MaskLike | None = None, stats: StatsLike | None = None
    ) -> Tensor | tuple[Tensor, Stats]:
        """(B, L, E), (B, S, A) from `keys`, (B, S, Ev) -> (B, L, Ev); with `stats` also a `Stats` of shape (B, 1, L).

        Queries and keys are different sequences: `distance` between them is not defined, and refused where L > S."""
        return in_one_head(ProjectedAdditive(self.u), self.of_query(query), keys, value, mask=mask, stats=stats)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        mask: MaskLike | None = None,
        stats: StatsLike | None = None,
    ) -> Tensor | tuple[Tensor, Stats]:
        """(B, L, E), (B, S, Ek), (B, S, Ev), by default the keys themselves -> as `ask`."""
        return self.ask(query, self.keys(key), key if value is None else value, mask=mask, stats=stats)


class ProjectedAdditive(Score):
    """u . tanh(q + k) of queries and keys that are projected already."""

    takes_scale = False

    def __init__(self, u: Tensor):
        self.u = u

    def lower(self, query: Tensor, key: Tensor) -> AdditiveForm:
        return AdditiveForm(query, key, self.u)


writable(ProjectedAdditive, "u")


def in_one_head(
    score: Score, query: Tensor, key: Tensor, value: Tensor, *, mask: MaskLike | None, stats: StatsLike | None
) -> Any:
    """`attend` over (B, L, E), (B, S, Ek) and (B, S, Ev), which it takes as one head."""
    query, key, value = (x.unsqueeze(1) for x in (query, key, value))
    if stats is None or stats is False:
        return attend(query, key, value, score=score, mask=mask).squeeze(1)
    out, seen = attend(query, key, value, score=score, mask=mask, stats=stats)
    return out.squeeze(1), seen
