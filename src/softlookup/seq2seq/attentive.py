"""The encoder-decoder that looks back: each step asks all states of the encoder what it needs now."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import SoftlookupError
from ..masks import Lengths, Mask
from ..running import StatsLike
from ..scores import Score
from ..summary import Stats
from .alignment import Alignment
from .model import Model, State, stacked, taken, with_stats
from .recurrent import Bridge, Encoded, Encoder, Hidden, Readout, whole

ORDERS = ("bahdanau", "luong")


@dataclass(frozen=True)
class Memory:
    """The encoder's states (B, S, 2 width), projected once to keys (B, S, A), and what of them is real."""

    states: Tensor
    keys: Tensor
    mask: Mask | None


@dataclass(frozen=True)
class _Standing(State):
    """hidden: (B, K, width) each; the K partial outputs of a batch entry ask one memory."""

    hidden: Hidden
    memory: Memory

    def take(self, parents: Tensor) -> _Standing:
        return _Standing(tuple(taken(x, parents) for x in self.hidden), self.memory)


class Attentive(Model):
    """Soft alignment (Bahdanau, Cho & Bengio 2015): c_t = attend(s_{t-1}, states), s_t = cell([y_{t-1}; c_t], s_{t-1}); or in
    Luong, Pham & Manning's order (2015): s_t = cell(y_{t-1}, s_{t-1}), c_t = attend(s_t, states), where all steps of a known
    output ask at once. Symbols are read out of [s_t; c_t; y_{t-1}] through a tanh layer.

    Args:
        source_symbols: size of the vocabulary that is read, 0 of which pads.
        target_symbols: of that which is written.
        score: what aligns, as `Alignment` has it.
        order: "bahdanau" or "luong".
        width: of each direction of the encoder, and of the decoder's state, which is twice as wide where the score is a product
            of states as they are (dot, scaled, a `Score`).
        embedding: of symbols.
        layers: of the encoder.
        cell: "gru" or "lstm".
        dropout: of embeddings, states and the readout.
    """

    def __init__(
        self,
        source_symbols: int,
        target_symbols: int,
        *,
        score: str | Score = "additive",
        order: str = "bahdanau",
        width: int = 256,
        embedding: int = 128,
        layers: int = 1,
        cell: str = "gru",
        dropout: float = 0.0,
    ):
        super().__init__(source_symbols, target_symbols, dropout, width=width, embedding=embedding, layers=layers)
        if order not in ORDERS:
            raise SoftlookupError(f"order: expected {' or '.join(ORDERS)}, got {order!r}")
        self.order = order
        # A product of states as they are needs the two widths to be one.
        state = 2 * width if score in ("dot", "scaled") or isinstance(score, Score) else width
        self.encoder = Encoder(source_symbols, embedding, width, layers, cell, dropout)
        self.embedding = nn.Embedding(target_symbols, embedding)
        self.bridge = Bridge(2 * width, state, cell)
        reads = embedding + (2 * width if order == "bahdanau" else 0)
        if order == "bahdanau":
            self.cell = nn.GRUCell(reads, state) if cell == "gru" else nn.LSTMCell(reads, state)
        else:
            self.recurrent = (nn.GRU if cell == "gru" else nn.LSTM)(reads, state, batch_first=True)
        self.align = Alignment(state, 2 * width, score)
        self.readout = Readout(state + 2 * width + embedding, width, target_symbols, dropout)
        self.drop = nn.Dropout(dropout)

    def forward(
        self, source: Tensor, lengths: Tensor, target: Tensor, *, stats: StatsLike | None = None
    ) -> Tensor | tuple[Tensor, Stats]:
        memory, hidden = self._encode(source, lengths, target)
        known = self.drop(self.embedding(target))
        states, contexts, _, seen = self._run(known, hidden, memory, stats)
        return with_stats(self.readout(states, contexts, known), seen)

    def start(self, source: Tensor, lengths: Tensor) -> _Standing:
        memory, hidden = self._encode(source, lengths)
        return _Standing(tuple(x.unsqueeze(1) for x in hidden), memory)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, _Standing)
        known, shape = self.embedding(tokens), tokens.shape
        before = tuple(x.flatten(0, 1) for x in state.hidden)
        if self.order == "bahdanau":
            context, _ = self._ask(state.hidden[0], state.memory)
            hidden = self._move(torch.cat([known, context], -1).flatten(0, 1), before)
        else:
            _, hidden = whole(self.recurrent, known.reshape(-1, 1, known.shape[-1]), before)
            context, _ = self._ask(hidden[0].unflatten(0, shape), state.memory)
        hidden = tuple(x.unflatten(0, shape) for x in hidden)
        return self.readout(hidden[0], context, known).log_softmax(-1), _Standing(hidden, state.memory)

    def alignment(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        memory, hidden = self._encode(source, lengths, target)
        _, _, queries, _ = self._run(self.embedding(target), hidden, memory, None)
        return self.align.weights(queries, memory.keys, memory.mask)

    def _encode(self, source: Tensor, lengths: Tensor, target: Tensor | None = None) -> tuple[Memory, Hidden]:
        self.check(source, lengths, target)
        encoded: Encoded = self.encoder(source, lengths)
        padded = int(lengths.min()) < source.shape[1]
        mask = Lengths(lengths) if padded else None
        return Memory(encoded.states, self.align.keys(encoded.states), mask), self.bridge(encoded.final)

    def _run(
        self, known: Tensor, hidden: Hidden, memory: Memory, stats: StatsLike | None
    ) -> tuple[Tensor, Tensor, Tensor, Stats | None]:
        """All steps of a known output (B, T, embedding): states, contexts and queries (B, T, …), statistics."""
        if self.order == "luong":
            states, _ = whole(self.recurrent, known, hidden)
            contexts, seen = self._ask(states, memory, stats)
            return states, contexts, states, seen
        steps: list[tuple[Tensor, Tensor, Tensor, Stats | None]] = []
        for each in known.unbind(1):
            query = hidden[0]
            context, seen = self._ask(query.unsqueeze(1), memory, stats)
            hidden = self._move(torch.cat([each, context.squeeze(1)], -1), hidden)
            steps.append((hidden[0], context.squeeze(1), query, seen))
        states, contexts, queries = (torch.stack([step[k] for step in steps], 1) for k in range(3))  # type: ignore[misc]
        all_seen = [step[3] for step in steps if step[3] is not None]
        return states, contexts, queries, stacked(all_seen) if all_seen else None

    def _ask(self, query: Tensor, memory: Memory, stats: StatsLike | None = None) -> tuple[Tensor, Stats | None]:
        return self.align(query, memory.keys, memory.states, mask=memory.mask, stats=stats)

    def _move(self, reads: Tensor, hidden: Hidden) -> Hidden:
        """One step of the cell over (N, …)."""
        after = self.cell(reads, hidden if len(hidden) > 1 else hidden[0])
        return after if isinstance(after, tuple) else (after,)
