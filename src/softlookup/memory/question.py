"""What a table is asked, and how rows answer it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..masks import Mask, Padding
from ..normalizers import Softmax
from ..operator import lookup, merge
from ..scores import Score
from ..summary import Summary, join_rows
from .store import State


@dataclass(frozen=True, eq=False)
class Question:
    """Queries (n, d), the score and temperature (a number, or a tensor (n,)) by which rows answer them, and statistics by
    name."""

    query: Tensor
    score: Score
    temperature: float | Tensor
    names: tuple[str, ...]

    @property
    def hard(self) -> bool:
        """Whether the best row alone is asked for."""
        return not isinstance(self.temperature, Tensor) and self.temperature == 0

    @property
    def divisor(self) -> float | Tensor:
        """The temperature, of each query (n, 1) where they differ, without its graph."""
        return self.temperature.detach()[:, None] if isinstance(self.temperature, Tensor) else self.temperature

    def of(self, rows: Tensor) -> Question:
        """The same of some queries."""
        temperature = self.temperature[rows] if isinstance(self.temperature, Tensor) else self.temperature
        return replace(self, query=self.query[rows], temperature=temperature)

    def asking(self, query: Tensor) -> Question:
        """The same of other queries."""
        return replace(self, query=query)

    def shaped(self, *sizes: int) -> Question:
        """The same with queries (*sizes, d), and a temperature for each where there is one."""
        temperature = self.temperature.view(sizes) if isinstance(self.temperature, Tensor) else self.temperature
        return replace(self, query=self.query.view(*sizes, -1), temperature=temperature)

    def over(self, keys: Tensor, values: Tensor | None, mask: Mask | None = None, first: int = 0, total: int = 0) -> Summary:
        """The summary over rows, keys (S, d), at positions from `first` on, of `total` in all; or of queries (B, 1, n, d) over
        rows of each entry's own, (B, 1, S, d). Without values its average is of no meaning."""
        temperature = self.temperature
        if isinstance(temperature, Tensor) and keys.ndim == 2:
            temperature = temperature.view(1, 1, -1)
        return lookup(
            self.query,
            keys,
            keys[..., :1] if values is None else values,
            score=self.score,
            mask=mask,
            normalizer=Softmax(temperature),
            stats=self.names,
            query_offset=0,
            key_offset=first,
            total_keys=total or first + keys.shape[-2],
        )

    def everywhere(self, state: State, of_keys: bool = False, start: int = 0) -> Summary | None:
        """The summary over all live rows at positions from `start` on, part by part, so that nothing but the pages in use need
        be in memory; None where there are none. of_keys: average keys instead of values."""
        found = []
        for part in state.parts:
            some = slice(max(0, start - part.first), None)
            keys, first = part.keys[some], max(part.first, start)
            alive = None if state.alive is None else state.alive[first : first + len(keys)]
            if len(keys) and (alive is None or bool(alive.any())):
                values = keys if of_keys else None if part.values is None else part.values[some]
                mask = None if state.alive is None or alive is None or bool(alive.all()) else Padding(state.alive[None])
                found.append(self.over(keys, values, mask, first, state.total))
        return merge(*found) if found else None


@dataclass(frozen=True, eq=False)
class Answer:
    """The summary over the rows that were read; of the best among them scores and positions (n, k); and of those not read the
    largest share of the whole weight (n,), and score (n,), that they can have, NaN where that is not known."""

    summary: Summary
    scores: Tensor
    positions: Tensor
    missed: Tensor
    unseen: Tensor

    @classmethod
    def join(cls, answers: Sequence[Answer]) -> Answer:
        """Of the queries of all."""
        names = [name for name in cls.__dataclass_fields__ if name != "summary"]
        rest = {name: torch.cat([getattr(answer, name) for answer in answers]) for name in names}
        return cls(join_rows([answer.summary for answer in answers]), **rest)
