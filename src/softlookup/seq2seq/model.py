"""What every encoder-decoder here can do; training and search know no more than this.

Symbols are integers; 0 pads, and a source is (B, S) with lengths (B,). In decoding, K partial outputs of each batch entry go on
side by side, so tokens are (B, K).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SoftlookupError, UnsupportedError, at_least_one
from ..running import StatsLike
from ..summary import Stats

PAD = 0


class State:
    """Where a decoder stands: everything that the next step depends on."""

    def take(self, parents: Tensor) -> State:
        """The state whose partial output k continues the present one's `parents`[b, k]; parents: int (B, K)."""
        raise NotImplementedError


class Model(nn.Module):
    """Base of all encoder-decoders. `attends` tells whether there are statistics and alignments."""

    attends = True

    def __init__(self, source_symbols: int, target_symbols: int, dropout: float = 0.0, **sizes: int):
        super().__init__()
        at_least_one(type(self).__name__, **sizes)
        if not 0 <= dropout < 1:
            raise SoftlookupError(f"{type(self).__name__}: expected a dropout of at least 0 and below 1, got {dropout}")
        if min(source_symbols, target_symbols) < 2:
            got = f"{source_symbols} and {target_symbols}"
            raise SoftlookupError(f"{type(self).__name__}: expected vocabularies of 2 symbols at least (0 pads), got {got}")
        self.source_symbols, self.target_symbols = source_symbols, target_symbols

    def forward(
        self, source: Tensor, lengths: Tensor, target: Tensor, *, stats: StatsLike | None = None
    ) -> Tensor | tuple[Tensor, Stats]:
        """Teacher forcing. source (B, S), lengths (B,), target (B, T), the output so far at every step, first the symbol that
        begins it -> logits (B, T, V) of the next symbols; with `stats` also a `Stats` of shape (B, H, T)."""
        raise NotImplementedError

    def start(self, source: Tensor, lengths: Tensor) -> State:
        """The state before the first step, with K = 1."""
        raise NotImplementedError

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The last symbols (B, K) -> log-probabilities (B, K, V) of the next, and the state after."""
        raise NotImplementedError

    def alignment(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """(B, T, S) how much each step of a teacher-forced output reads of each source symbol."""
        raise UnsupportedError(f"{type(self).__name__}: expected a model with attention for an alignment, got one without")

    def check(self, source: Tensor, lengths: Tensor, target: Tensor | None = None) -> None:
        """Raise `SoftlookupError` unless these are a padded batch, and outputs (B, T) for it."""
        for name, x in (("source", source), ("lengths", lengths), ("target", target)):
            if x is not None and (not isinstance(x, Tensor) or x.is_floating_point()):
                kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
                raise SoftlookupError(f"{name}: expected an int tensor, got {kind}")
        if source.ndim != 2 or tuple(lengths.shape) != source.shape[:1] or not source.numel():
            got = f"{tuple(source.shape)} and {tuple(lengths.shape)}"
            raise SoftlookupError(f"source: expected int (B, S) with lengths (B,), got {got}")
        if target is not None and (target.ndim != 2 or len(target) != len(source) or not target.numel()):
            raise SoftlookupError(f"target: expected int ({len(source)}, T), got {tuple(target.shape)}")
        if int(lengths.min()) < 1 or int(lengths.max()) > source.shape[1]:
            got = f"{int(lengths.min())} to {int(lengths.max())}"
            raise SoftlookupError(f"lengths: expected 1 to {source.shape[1]}, got {got}")


def stacked(seen: list[Stats]) -> Stats:
    """Statistics of single steps, (B, H, 1) each, as those of all steps, (B, H, T)."""

    def all_of(name: str) -> Tensor:
        each = [step[name] for step in seen]
        return torch.stack(each).sum(0) if name == "received" else torch.cat(each, -1)  # what keys received adds up

    return Stats({name: all_of(name) for name in seen[0].names})


def taken(x: Tensor, parents: Tensor) -> Tensor:
    """x (B, K, ...) -> (B, K', ...), entry k from `parents`[b, k] of the same batch entry."""
    index = parents.reshape(*parents.shape, *(1,) * (x.ndim - 2)).expand(*parents.shape, *x.shape[2:])
    return x.gather(1, index)


def with_stats(logits: Tensor, seen: Any) -> Any:
    """What `forward` returns."""
    return logits if seen is None else (logits, seen)
