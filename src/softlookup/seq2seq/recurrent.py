"""What the two recurrent models share: a bidirectional encoder over padded sources, and the cell of the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..errors import SoftlookupError

Hidden = tuple[Tensor, ...]
"""A cell's state: (h,) of a GRU, (h, c) of an LSTM, each (B, width)."""

CELLS = ("gru", "lstm")


@dataclass(frozen=True)
class Encoded:
    """states: (B, S, 2 width), 0 where padded. final: (B, 2 width), the last state of each direction."""

    states: Tensor
    final: Tensor


class Encoder(nn.Module):
    """Embedding and a bidirectional GRU (Cho et al. 2014) or LSTM; what is padded has no influence."""

    def __init__(self, symbols: int, embedding: int, width: int, layers: int, cell: str, dropout: float):
        super().__init__()
        if cell not in CELLS:
            raise SoftlookupError(f"cell: expected {' or '.join(CELLS)}, got {cell!r}")
        self.embedding = nn.Embedding(symbols, embedding, padding_idx=0)
        kind = nn.GRU if cell == "gru" else nn.LSTM
        between = dropout if layers > 1 else 0.0
        self.recurrent = kind(embedding, width, layers, batch_first=True, bidirectional=True, dropout=between)
        self.drop = nn.Dropout(dropout)

    def forward(self, source: Tensor, lengths: Tensor) -> Encoded:
        """source (B, S), lengths (B,)."""
        packed = pack_padded_sequence(self.drop(self.embedding(source)), lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, last = self.recurrent(packed)
        states, _ = pad_packed_sequence(states, batch_first=True, total_length=source.shape[1])
        h = last[0] if isinstance(last, tuple) else last
        return Encoded(self.drop(states), self.drop(torch.cat([h[-2], h[-1]], -1)))


class Bridge(nn.Module):
    """The decoder's first state from a vector: tanh(W x + b), for each of the cell's parts."""

    def __init__(self, vector: int, width: int, cell: str):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(vector, width) for _ in range(1 if cell == "gru" else 2))

    def forward(self, vector: Tensor) -> Hidden:
        return tuple(torch.tanh(part(vector)) for part in self.parts)


class Readout(nn.Module):
    """Logits from what a step knows, through one layer that is as wide as the state (a deep output, Pascanu et al. 2014)."""

    def __init__(self, known: int, width: int, symbols: int, dropout: float):
        super().__init__()
        self.inner, self.out, self.drop = nn.Linear(known, width), nn.Linear(width, symbols), nn.Dropout(dropout)

    def forward(self, *known: Tensor) -> Tensor:
        return self.out(self.drop(torch.tanh(self.inner(torch.cat(known, -1)))))


def whole(recurrent: nn.GRU | nn.LSTM, x: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
    """All steps of a decoder whose inputs (B, T, E) are known: its states (B, T, width), and the last one."""
    first = tuple(part.unsqueeze(0).contiguous() for part in hidden)
    states, last = recurrent(x, first if len(first) > 1 else first[0])
    return states, tuple(part.squeeze(0) for part in (last if isinstance(last, tuple) else (last,)))
