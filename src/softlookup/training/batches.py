"""Pairs as padded batches of like lengths, in an order that seed and epoch alone decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .tasks import Pair
from .vocabulary import BEGIN, END, Vocabulary

POOL = 64
"""Batches whose examples are sorted by length together: like lengths, yet other company in every epoch."""

Example = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Batch:
    """source (B, S) with lengths (B,); given (B, T): the symbols before each step; wanted (B, T): those that it should say;
    0 pads."""

    source: Tensor
    lengths: Tensor
    given: Tensor
    wanted: Tensor

    @property
    def symbols(self) -> int:
        """How many symbols are to be said."""
        return int((self.wanted > 0).sum())


def examples(pairs: Sequence[Pair], source: Vocabulary, target: Vocabulary) -> list[Example]:
    """Every reference of every pair, as numbers."""
    return [(source.numbers(pair.source), target.numbers(each)) for pair in pairs for each in pair.references]


def count(examples: int, size: int) -> int:
    """Batches of an epoch."""
    return -(-examples // size)


def epoch_of(examples: Sequence[Example], size: int, seed: int, epoch: int) -> Iterator[Batch]:
    """All examples once."""
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(examples))
    made: list[np.ndarray] = []
    for start in range(0, len(order), POOL * size):
        pool = order[start : start + POOL * size]
        lengths = [(len(examples[k][0]), len(examples[k][1])) for k in pool]
        pool = pool[sorted(range(len(pool)), key=lengths.__getitem__)]
        made.extend(pool[k : k + size] for k in range(0, len(pool), size))
    for k in random.permutation(len(made)):
        yield padded([examples[each] for each in made[k]])


def padded(chosen: Sequence[Example]) -> Batch:
    """One batch of these examples."""
    sources = [torch.tensor(source) for source, _ in chosen]
    given = [torch.tensor([BEGIN, *target]) for _, target in chosen]
    wanted = [torch.tensor([*target, END]) for _, target in chosen]
    return Batch(stack(sources), torch.tensor([len(x) for x in sources]), stack(given), stack(wanted))


def stack(rows: Sequence[Tensor]) -> Tensor:
    """(B, N), each row padded to the longest."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
