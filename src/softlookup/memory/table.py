"""A table that is asked softly."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..files import write
from ..masks import Padding
from ..scores import Dot, Score
from ..summary import CHEAP, Stats, Summary, chosen, join_rows, map_tensors
from .best import best, best_of
from .cells import Cells
from .graph import Graph
from .question import Answer, Question
from .shards import KINDS
from .store import State, Store, gathered

STATISTICS = tuple(name for name in CHEAP if name not in ("argmax", "distance", "sink_mass", "sink_weight"))
"""Those that rows have, which stand in no order."""
INDEXES: dict[str, Any] = {"cells": Cells, "graph": Graph}
FARTHEST = 1e16
"""Of a key's numbers, where FAISS is to take distances: beyond float32's range it ends the process."""
BEST_AT_ONCE = 2**24
"""Numbers of keys and values of the best rows of some queries."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a table answers to n queries.

    value: (n, m), None where rows have no values. stats: of the weights of the rows that were read.
    ids, scores, weights: (n, k) of the best rows, where `top_k` asked for them, k at most the number of rows; ids are -1,
    scores -inf and weights 0 where fewer were read. Weights are shares of what was read.
    missed: (n,) the most that rows not read can weigh, as a share of all; 0 where all were read. unseen: (n,) what their scores
    cannot exceed. Both are theorems, and NaN where there is none (`certified`).
    """

    value: Tensor | None
    stats: Stats
    summary: Summary
    ids: Tensor | None
    scores: Tensor | None
    weights: Tensor | None
    missed: Tensor
    unseen: Tensor

    @property
    def certified(self) -> bool:
        """Whether `missed` and `unseen` are known."""
        return not bool(self.missed.isnan().any())


class SoftTable(Store):
    """Keys and values that are looked up by softmax(query . key / temperature): a store that is asked softly.

    Made by `create` or `open` in a folder, or by `of` from tensors. `add`, `update`, `delete`, `compact` change its rows;
    `get`, `lookup` and `verify` read them.
    """

    def lookup(
        self,
        query: Tensor,
        temperature: float | Tensor = 1.0,
        *,
        top_k: int | None = None,
        tolerance: float | None = None,
        steps: int = 1,
        score: Score = Dot(),  # noqa: B008
        stats: bool | str | Iterable[str] = True,
    ) -> Found:
        """Averages of the rows' values, weighted by softmax(score / temperature).

        Args:
            query: (n, d) or (d,), like the keys in width.
            temperature: a number, or (n,); 0 is the best row itself.
            top_k: name the k best rows. Alone, only their values are averaged: with `index("graph")` found by it, uncertified,
                else exactly, by reading all keys.
            tolerance: how much of the weight may be missed at most; rows are read cell by cell (`index("cells")`) until no
                more can be.
            steps: > 1 looks up the keys first, steps - 1 times, each time asking with what was found (Ramsauer et al. 2021);
                these lookups read all rows.
            score: of a query and a key, where all rows are read.
            stats: names of statistics; True for all that rows in no
                order have.

        Without top_k and tolerance all rows are read, exactly, part by part. Differentiable in query and temperature, and in
        keys and values of a table in memory.
        """
        single = isinstance(query, Tensor) and query.ndim == 1
        question = self._question(query[None] if single else query, score, temperature, stats)
        for name, count in (("top_k", top_k), ("steps", steps)):
            if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
                raise SoftlookupError(f"{name}: expected a whole number of at least 1, got {count!r}")
        if tolerance is not None and not (isinstance(tolerance, int | float) and 0 < tolerance < 1):
            raise SoftlookupError(f"tolerance: expected a share between 0 and 1, got {tolerance!r}")
        if (top_k is not None or tolerance is not None) and type(score) is not Dot:
            raise SoftlookupError(f"score: expected Dot() with top_k or tolerance, got {score!r}")
        with self._ledger.reading():
            state = self._read()
            if not state.count:
                raise SoftlookupError(f"{self._ledger.name}: expected rows to look up, got none")
            for _ in range(steps - 1):
                question = question.asking(self._everything(question, state, of_keys=True).value)
            answer = self._answer(question, state, top_k, tolerance)
            if not bool(answer.summary.logsumexp.isfinite().all()):
                kind = str(self.dtype).removeprefix("torch.")
                raise SoftlookupError(
                    f"lookup: expected scores / temperature that {kind} can hold, got infinity or NaN: keys, query or "
                    "temperature are out of its range (temperature 0 is the best row), or a file is damaged (verify)"
                )
            return self._found(answer, question, top_k, single)

    def index(self, kind: Literal["cells", "graph"], cells: int | None = None) -> None:
        """Build what finds rows without reading all: "cells", for `tolerance`, as many as `cells` (sqrt(rows) by default), or
        "graph", for `top_k`. Rows that come later are read besides, until it is built again. Needs FAISS."""
        state = self.state()
        if not state.count:
            raise SoftlookupError("index: expected rows, got none")
        if kind not in INDEXES:
            raise SoftlookupError(f"index: expected {' or '.join(map(repr, INDEXES))}, got {kind!r}")
        if cells is not None and (not isinstance(cells, int) or isinstance(cells, bool)):
            raise SoftlookupError(f"cells: expected a whole number, got {cells!r}")
        if max(abs(float(end)) for part in state.parts for end in part.keys.detach().aminmax()) > FARTHEST:
            raise SoftlookupError(f"index: expected keys of numbers up to {FARTHEST:.0e}, whose squares FAISS can add up")
        built = INDEXES[kind].build(state, cells)
        content = built.to_bytes()
        with self._writing():
            shards = self._ledger.shards()
            if [number for number, _ in shards][: len(state.shards)] != state.shards:
                raise SoftlookupError("index: expected the rows to stay where they are meanwhile, but the table was compacted")
            name = f"index-{self._ledger.meta('version'):06d}-{kind}"
            if self.folder is not None:
                write(self.folder / name, content)
            self._ledger.replace_file(name, kind, built.covered, zlib.crc32(content))
        self._tidy()
        self._built[name, zlib.crc32(content)] = built

    def _question(self, query: Any, score: Score, temperature: Any, stats: Any) -> Question:
        if not isinstance(query, Tensor) or query.ndim != 2 or query.shape[1] != self.key_width or not len(query):
            got = tuple(query.shape) if isinstance(query, Tensor) else type(query).__name__
            raise SoftlookupError(f"query: expected a tensor (n, {self.key_width}) or ({self.key_width},), got {got}")
        if query.dtype != self.dtype:
            raise SoftlookupError(f"query: expected {self.dtype} like the keys, got {query.dtype}")
        if not bool(query.isfinite().all()):
            raise SoftlookupError("query: expected finite numbers, got NaN or infinity")
        if isinstance(temperature, Tensor) and temperature.ndim and temperature.shape != query.shape[:1]:
            raise SoftlookupError(f"temperature: expected a number or ({len(query)},), got {tuple(temperature.shape)}")
        if not isinstance(temperature, Tensor):
            if not isinstance(temperature, Real) or not 0 <= float(temperature) < float("inf"):
                raise SoftlookupError(f"temperature: expected a finite number >= 0, got {temperature!r}")
            temperature = float(temperature)
        names = STATISTICS if stats is True else chosen(stats)
        if strange := set(names) - set(STATISTICS):
            raise SoftlookupError(f"stats: expected names among {', '.join(STATISTICS)}, got {', '.join(sorted(strange))}")
        return Question(query, score, temperature.expand(len(query)) if isinstance(temperature, Tensor) else temperature, names)

    def _everything(self, question: Question, state: State, of_keys: bool = False) -> Summary:
        summary = question.everywhere(state, of_keys)
        assert summary is not None
        return summary

    def _answer(self, question: Question, state: State, top_k: int | None, tolerance: float | None) -> Answer:
        k = min(top_k or 0, state.count)
        if tolerance is not None:
            cells = self._index(state, "cells")
            if cells is None:
                raise SoftlookupError(
                    "tolerance: expected a table with cells (index('cells'), or softlookup table index), got one without"
                )
            return cells.ask(question, state, tolerance, k)
        if k:
            return self._of_best(question, state, k)
        n = question.query.new_zeros(len(question.query))
        return Answer(self._everything(question, state), n[:, None][:, :0], n.long()[:, None][:, :0], n, n - float("inf"))

    def _of_best(self, question: Question, state: State, k: int) -> Answer:
        """Over the k best rows of each query."""
        query, graph = question.query, self._index(state, "graph")
        if graph is None:
            scores, positions = best(query, state, k)
        else:
            found = graph.best(query, state.alive, k)
            scores, positions = best_of(found, best(query, state, k, graph.covered), k)
            if len(few := (positions < 0).any(1).nonzero()[:, 0]):  # where many are deleted the search may end among them
                every = best(query[few], state, k)
                scores, positions = scores.index_copy(0, few, every[0]), positions.index_copy(0, few, every[1])
        step = max(1, BEST_AT_ONCE // (k * (self.key_width + self.value_width)))
        some = torch.arange(len(query), device=query.device).split(step)
        summary = join_rows([_over_own(question.of(who), state, positions[who]) for who in some])
        if graph is not None:
            unknown = scores.new_full((len(query),), float("nan"))
            return Answer(summary, scores, positions, unknown, unknown)
        if k == state.count:
            return Answer(summary, scores, positions, torch.zeros_like(scores[:, 0]), scores[:, 0] - float("inf"))
        # None of the rest scores more than the k-th.
        if question.hard:
            missed = (scores[:, -1:] == scores[:, :1]).to(scores)
        else:
            missed = (_logs(scores, question, summary)[:, -1:] + math.log(state.count - k)).sigmoid()
        return Answer(summary, scores, positions, missed[:, 0], scores[:, -1])

    def _found(self, answer: Answer, question: Question, top_k: int | None, single: bool) -> Found:
        summary = answer.summary
        ids = weights = scores = None
        if top_k is not None:
            scores, places = answer.scores, answer.positions
            known = self._ledger.ids(places.unique().tolist())
            ids = torch.tensor([known.get(p, -1) for p in places.flatten().tolist()], device=places.device).view_as(places)
            if question.hard:
                first = (scores == scores[:, :1]).to(scores)
                weights = first / first.sum(1, keepdim=True)
            else:
                weights = _logs(scores, question, summary).exp()
        missed, unseen = answer.missed, answer.unseen
        if single:
            summary = map_tensors(summary, lambda x, trailing: x.squeeze(-1 - trailing))
            ids, scores, weights = (None if x is None else x[0] for x in (ids, scores, weights))
            missed, unseen = missed[0], unseen[0]
        read = Stats({name: _tensor(summary.stats(name)) for name in question.names})
        return Found(summary.value if self.value_width else None, read, summary, ids, scores, weights, missed, unseen)

    def _index(self, state: State, kind: str) -> Any:
        """What was built of that kind, if it was."""
        if not self._ledger.changing:  # else the files of now may yet be undone
            known = {(name, expected) for name, _, _, expected in state.files}
            self._built = {key: built for key, built in self._built.items() if key in known}
        for name, there, _, expected in state.files:
            if there == kind:
                if (name, expected) not in self._built:
                    self._built[name, expected] = INDEXES[kind].from_bytes(self._content(name, expected))
                return self._built[name, expected]
        return None


def _logs(scores: Tensor, question: Question, summary: Summary) -> Tensor:
    """(n, k) logarithms of the weights of the best rows, scores best first: from the best one, so that no digits are lost."""
    return (scores - scores[:, :1]) / question.divisor - summary.log_z.detach()[:, None]


def _over_own(question: Question, state: State, positions: Tensor) -> Summary:
    """The summary of each query over rows of its own, at positions (n, k), -1 for none."""
    n, real = len(positions), positions >= 0
    keys, values = (gathered(state.parts, positions.clamp(min=0)[:, None], kind) for kind in KINDS)
    mask = None if bool(real.all()) else Padding(real)
    return map_tensors(question.shaped(n, 1, 1).over(keys, values, mask), lambda x, trailing: x.flatten(0, 2))


def _tensor(x: Tensor | Stats) -> Tensor:
    assert isinstance(x, Tensor)
    return x
