"""The encoder-decoder before attention: all that the decoder learns of the source is one vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..running import StatsLike
from ..summary import Stats
from .model import Model, State, taken
from .recurrent import Bridge, Encoder, Hidden, Readout, whole


@dataclass(frozen=True)
class _Standing(State):
    """hidden: (B, K, width) each. vector: (B, 1, 2 width)."""

    hidden: Hidden
    vector: Tensor

    def take(self, parents: Tensor) -> _Standing:
        return _Standing(tuple(taken(x, parents) for x in self.hidden), self.vector)


class FixedVector(Model):
    """The final states of a bidirectional encoder begin the decoder and are read again at every step (Cho et al. 2014).

    Args:
        source_symbols: size of the vocabulary that is read, 0 of which pads.
        target_symbols: of that which is written.
        width: of the decoder's state, and of each direction of the encoder.
        embedding: of symbols.
        layers: of the encoder.
        cell: "gru" or "lstm".
        dropout: of embeddings, states and the readout.
    """

    attends = False

    def __init__(
        self,
        source_symbols: int,
        target_symbols: int,
        *,
        width: int = 256,
        embedding: int = 128,
        layers: int = 1,
        cell: str = "gru",
        dropout: float = 0.0,
    ):
        super().__init__(source_symbols, target_symbols, dropout, width=width, embedding=embedding, layers=layers)
        self.encoder = Encoder(source_symbols, embedding, width, layers, cell, dropout)
        self.embedding = nn.Embedding(target_symbols, embedding)
        self.bridge = Bridge(2 * width, width, cell)
        kind = nn.GRU if cell == "gru" else nn.LSTM
        self.recurrent = kind(embedding + 2 * width, width, batch_first=True)
        self.readout = Readout(3 * width + embedding, width, target_symbols, dropout)
        self.drop = nn.Dropout(dropout)

    def forward(
        self, source: Tensor, lengths: Tensor, target: Tensor, *, stats: StatsLike | None = None
    ) -> Tensor | tuple[Tensor, Stats]:
        if stats is not None and stats is not False:
            raise UnsupportedError("FixedVector: expected stats=None, as there is no attention to look at")
        self.check(source, lengths, target)
        vector = self.encoder(source, lengths).final
        return self._decode(target, self.bridge(vector), vector.unsqueeze(1))[0]

    def start(self, source: Tensor, lengths: Tensor) -> _Standing:
        self.check(source, lengths)
        vector = self.encoder(source, lengths).final
        return _Standing(tuple(x.unsqueeze(1) for x in self.bridge(vector)), vector.unsqueeze(1))

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, _Standing)
        batch, beams = tokens.shape
        vector = state.vector.expand(-1, beams, -1).flatten(0, 1).unsqueeze(1)
        logits, hidden = self._decode(tokens.reshape(-1, 1), tuple(x.flatten(0, 1) for x in state.hidden), vector)
        after = _Standing(tuple(x.unflatten(0, (batch, beams)) for x in hidden), state.vector)
        return logits.squeeze(1).unflatten(0, (batch, beams)).log_softmax(-1), after

    def _decode(self, tokens: Tensor, hidden: Hidden, vector: Tensor) -> tuple[Tensor, Hidden]:
        """(B, T) after `hidden`, with vectors (B, 1, 2 width) -> logits (B, T, V), and the last state."""
        known = self.drop(self.embedding(tokens))
        vectors = vector.expand(-1, tokens.shape[1], -1)
        states, hidden = whole(self.recurrent, torch.cat([known, vectors], -1), hidden)
        return self.readout(states, vectors, known), hidden
