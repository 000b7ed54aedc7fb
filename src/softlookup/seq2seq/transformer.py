"""The encoder-decoder that is attention throughout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..masks import Causal, Lengths, Mask
from ..nn.blocks import TransformerBlock
from ..nn.cache import Cache
from ..nn.positions import sinusoids
from ..running import StatsLike
from ..summary import Stats
from .model import Model, State, with_stats

Caches = list[tuple[Cache, Cache]]


@dataclass(frozen=True)
class _Standing(State):
    """caches: of self-attention, over B K entries, and of cross-attention, over B, which K partial outputs ask together."""

    caches: Caches
    memory: Tensor
    mask: Mask | None
    steps: int
    beams: int

    def take(self, parents: Tensor) -> _Standing:
        batch, beams = parents.shape
        entries = (torch.arange(batch, device=parents.device)[:, None] * self.beams + parents).flatten()
        caches = [(own.take(entries), across) for own, across in self.caches]
        return _Standing(caches, self.memory, self.mask, self.steps, beams)


class Transformer(Model):
    """Encoder and decoder of Vaswani et al. (2017), normalized before each part, with sinusoids for positions.

    Args:
        source_symbols: size of the vocabulary that is read, 0 of which pads.
        target_symbols: of that which is written.
        width: E.
        heads: H.
        layers: of the encoder and of the decoder.
        inner: of feed-forward layers, 4 E by default.
        dropout: of embeddings and of what each part adds.
    """

    def __init__(
        self,
        source_symbols: int,
        target_symbols: int,
        *,
        width: int = 256,
        heads: int = 4,
        layers: int = 3,
        inner: int | None = None,
        dropout: float = 0.1,
    ):
        super().__init__(source_symbols, target_symbols, dropout, width=width, heads=heads, layers=layers)
        self.width = width
        self.source = nn.Embedding(source_symbols, width, padding_idx=0)
        self.target = nn.Embedding(target_symbols, width)
        for table in (self.source, self.target):
            nn.init.normal_(table.weight, std=width**-0.5)
        with torch.no_grad():
            self.source.weight[0] = 0
        self.encoder = nn.ModuleList(TransformerBlock(width, heads, inner=inner, dropout=dropout) for _ in range(layers))
        self.decoder = nn.ModuleList(
            TransformerBlock(width, heads, inner=inner, dropout=dropout, cross=True) for _ in range(layers)
        )
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.out = nn.Linear(width, target_symbols)
        self.drop = nn.Dropout(dropout)

    def forward(
        self, source: Tensor, lengths: Tensor, target: Tensor, *, stats: StatsLike | None = None
    ) -> Tensor | tuple[Tensor, Stats]:
        memory, mask = self._encode(source, lengths, target)
        x, seen = self._embedded(self.target, target), None
        for block in self.decoder:
            here = stats if block is self.decoder[-1] else None
            x, seen = block(x, memory, mask=Causal(), context_mask=mask, stats=here)
        return with_stats(self.out(self.decoder_norm(x)), seen)

    def start(self, source: Tensor, lengths: Tensor) -> _Standing:
        memory, mask = self._encode(source, lengths)
        return _Standing([(Cache(), Cache()) for _ in self.decoder], memory, mask, 0, 1)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, _Standing)
        batch, beams = tokens.shape
        x = self._embedded(self.target, tokens.reshape(-1, 1), state.steps)
        caches: Caches = []
        for block, (own, across) in zip(self.decoder, state.caches, strict=True):
            own = Cache(own.key, own.value)
            x, _ = block(x, state.memory, context_mask=state.mask, caches=(own, across))
            caches.append((own, across))
        logits = self.out(self.decoder_norm(x)).unflatten(0, (batch, beams)).squeeze(2)
        return logits.log_softmax(-1), _Standing(caches, state.memory, state.mask, state.steps + 1, beams)

    def alignment(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Of the last layer, the mean over heads."""
        memory, mask = self._encode(source, lengths, target)
        x = self._embedded(self.target, target)
        *first, last = self.decoder
        for block in first:
            x, _ = block(x, memory, mask=Causal(), context_mask=mask)
        assert isinstance(last, TransformerBlock)
        return last.cross_weights(x, memory, mask=Causal(), context_mask=mask).mean(1)

    def _encode(self, source: Tensor, lengths: Tensor, target: Tensor | None = None) -> tuple[Tensor, Mask | None]:
        """The memory (B, S, E), and which of it is real."""
        self.check(source, lengths, target)
        mask = Lengths(lengths) if int(lengths.min()) < source.shape[1] else None
        x = self._embedded(self.source, source)
        for block in self.encoder:
            x, _ = block(x, mask=mask)
        return self.encoder_norm(x), mask

    def _embedded(self, table: nn.Embedding, tokens: Tensor, first: int = 0) -> Tensor:
        places = sinusoids(tokens.shape[1], self.width, first).to(table.weight)
        return self.drop(table(tokens) * math.sqrt(self.width) + places)
