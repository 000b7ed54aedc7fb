"""Symbols as integers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import SoftlookupError

PAD, BEGIN, END = range(3)
FIRST = 3


class Vocabulary:
    """Symbols in a fixed order, numbered from 3; 0 pads, 1 begins and 2 ends an output."""

    def __init__(self, symbols: Iterable[str]):
        self.symbols = tuple(symbols)
        self._number = {symbol: FIRST + k for k, symbol in enumerate(self.symbols)}
        if len(self._number) != len(self.symbols):
            raise SoftlookupError("Vocabulary: expected every symbol once, got one twice")

    @classmethod
    def of(cls, sequences: Iterable[Iterable[str]]) -> Vocabulary:
        """Of all symbols that occur, sorted."""
        return cls(sorted({symbol for sequence in sequences for symbol in sequence}))

    def __len__(self) -> int:
        """How many numbers there are, the three without a symbol included."""
        return FIRST + len(self.symbols)

    def unknown(self, sequence: Iterable[str]) -> list[str]:
        """The symbols that are not here, each once."""
        return [symbol for symbol in dict.fromkeys(sequence) if symbol not in self._number]

    def numbers(self, sequence: Sequence[str]) -> list[int]:
        """The numbers of known symbols."""
        return [self._number[symbol] for symbol in sequence]

    def words(self, numbers: Iterable[int]) -> tuple[str, ...]:
        """The symbols of numbers that have one; a model may also say 0 or 1, which stand for nothing."""
        return tuple(self.symbols[n - FIRST] for n in numbers if n >= FIRST)
