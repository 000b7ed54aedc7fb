"""What heads are for one another and for tokens, as far as weights tell: compositions between layers, and the tokens that a
head's strongest pair of directions looks for and is found by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry import LayerWeights, compositions, singular_pairs
from .words import words_of

SHOWN = 20
"""Compositions of each kind that are kept, of tens of thousands."""
TOKENS = 6


@dataclass(frozen=True)
class Composition:
    """What an earlier head writes is read by a later one: by its queries, keys or values; heads as "layer.head"."""

    kind: str
    earlier: str
    later: str
    strength: float


def strongest(layers: Sequence[LayerWeights], say: Callable[[float], None] = lambda _: None) -> tuple[Composition, ...]:
    """The strongest compositions, kind by kind."""
    found: dict[str, list[Composition]] = {}
    pairs, done = len(layers) * (len(layers) - 1) // 2, 0
    for earlier, later, strengths in compositions(layers):
        for kind, values in strengths.items():
            top = values.flatten().topk(min(SHOWN, values.numel()))
            each = [
                Composition(kind, f"{earlier}.{at // values.shape[1]}", f"{later}.{at % values.shape[1]}", x)
                for x, at in zip(top.values.tolist(), top.indices.tolist(), strict=True)
            ]
            found[kind] = nlargest(SHOWN, found.get(kind, []) + each, key=lambda x: x.strength)
        done += 1
        say(done / pairs)
    return tuple(x for each in found.values() for x in each)


@dataclass(frozen=True)
class TokenPair:
    """The strongest pair of directions of a head's W_Q W_K^T: the share of its squared norm, the tokens whose embeddings lie
    most along what a query looks for, and along what a key is found by."""

    share: float
    looks_for: tuple[str, ...]
    found_by: tuple[str, ...]


def token_pairs(layers: Iterable[LayerWeights], network: nn.Module, tokenizer: Any) -> list[list[TokenPair]] | None:
    """Of every head of every layer; None where the model has no token embedding of the width that layers read.

    A pair has two ends, and attends from either to its own; told is the end to which some token's embedding lies nearer."""
    embedding = None if tokenizer is None else _embedding(network)
    if embedding is None:
        return None
    rows = embedding.weight.detach().float().cpu()
    known = min(len(rows), len(tokenizer))
    rows = nn.functional.normalize(rows[:known] - rows[:known].mean(0), dim=-1)
    found = []
    for layer in layers:
        if layer.query.shape[1] != rows.shape[1]:
            return None
        looks, strength, finds = (x.float() for x in singular_pairs(layer, layer.query.shape[2]))
        share = (strength[:, 0].square() / strength.square().sum(1)).tolist()
        along, to = rows @ looks[:, :, 0].T, rows @ finds[:, :, 0].T  # (V, H)
        ends = torch.where(along.amax(0) >= -along.amin(0), 1.0, -1.0)
        of_queries, of_keys = ((scores * ends).T for scores in (along, to))
        each = zip(share, of_queries, of_keys, strict=True)
        found.append([TokenPair(x, _most(q, tokenizer), _most(k, tokenizer)) for x, q, k in each])
    return found


def _embedding(network: nn.Module) -> nn.Embedding | None:
    """Of tokens, where the network has one: transformers' way to it raises where a model reads something else."""
    getter: Any = getattr(network, "get_input_embeddings", lambda: None)
    try:
        found = getter()
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Embedding) else None


def _most(scores: Tensor, tokenizer: Any) -> tuple[str, ...]:
    return tuple(words_of(tokenizer, scores.topk(min(TOKENS, len(scores))).indices.tolist()))
