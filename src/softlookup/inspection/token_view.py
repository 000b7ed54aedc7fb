"""Where single heads look: the strongest keys of every query, and the weight that they cover.

The n×n weights of a head are never stored. Query rows are taken in chunks through the materialized reference, and of
each row only the strongest keys stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..operator import weights_of
from ..watching import Call, Probe
from ..watching.slices import at_heads, at_rows

KEYS = 8
"""Keys kept per query. For most heads they cover nearly everything; the page shows how much for each query."""

CHUNK_ELEMENTS = 1 << 21
"""Weights materialized at a time over all heads of a layer: 8 MB, and some copies on the way."""


@dataclass(frozen=True)
class TokenView:
    """One head, first sequence of the batch.

    keys:    (L, K) int64 key index, strongest first, −1 where fewer are visible or the query is padding
    weights: (L, K) weight on each; what is missing to 1 rests on other keys and on the sink logit
    total:   number of keys
    """

    layer: int
    head: int
    path: str
    keys: Tensor
    weights: Tensor
    total: int

    @property
    def covered(self) -> Tensor:
        """(L,) weight that the kept keys cover."""
        return self.weights.sum(-1)


def probe(
    wanted: Iterable[tuple[int, int]],
    indices: dict[str, int],
    found: dict[tuple[int, int], TokenView],
    keys: int = KEYS,
) -> Probe:
    """A probe for ``watch``: a ``TokenView`` of each wanted (layer, head) into ``found``; ``indices`` maps layer
    names to numbers."""
    heads_of: dict[int, list[int]] = {}
    for layer, head in wanted:
        heads_of.setdefault(layer, []).append(head)

    def look_at(call: Call) -> None:
        layer = indices[call.layer]
        if layer not in heads_of:
            return
        heads = torch.tensor(heads_of[layer], device=call.query.device)
        length, total = call.query.shape[-2], call.key.shape[-2]
        part = at_heads(call, heads)
        if part is not None:
            call, heads = part, torch.arange(len(heads), device=heads.device)
        step = max(1, CHUNK_ELEMENTS // (total * call.query.shape[-3] * call.query.shape[0]))
        # Made before the loop: results allocated between large temporaries would keep those from being given back.
        shape = len(heads), length, min(keys, total)
        index, weight = torch.empty(shape, dtype=torch.int64), torch.empty(shape)
        for rows in torch.arange(length).split(step):
            query, arguments = at_rows(call, rows)
            weights = weights_of(query, call.key, call.value, **arguments)[0, heads]
            index[:, rows], weight[:, rows] = strongest(weights, shape[-1])
        if call.rows is not None:
            padding = ~call.rows[0].cpu()
            index[:, padding], weight[:, padding] = -1, 0
        for place, head in enumerate(heads_of[layer]):
            found[layer, head] = TokenView(layer, head, call.layer, index[place], weight[place], total)

    return look_at


def strongest(weights: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """(heads, R, S) -> (heads, R, K) indices (−1 for weight 0) and weights, on the CPU."""
    top = weights.float().topk(min(keys, weights.shape[-1]), -1)
    return top.indices.masked_fill(top.values == 0, -1).cpu(), top.values.cpu()
