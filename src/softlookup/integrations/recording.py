"""Who is watching, and the one door through which a model's attention calls reach the operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from ..operator import attend
from ..summary import CHEAP
from ..watching import Call, Probe, Seen
from .module_paths import Frame, ModulePaths
from .sight import other_sequence

_WATCHERS: ContextVar[tuple[Watcher, ...]] = ContextVar("softlookup_watchers", default=())
"""Per thread and task, so that a watch sees its own calls only, whoever else runs the model meanwhile."""


@dataclass(frozen=True, eq=False)
class Sighting:
    """What a watcher can tell about one attention call. rows: real queries (B, L) or None; cross: two sequences."""

    frame: Frame
    rows: Tensor | None
    cross: bool


class Watcher:
    """One `watch`: its model, what it has seen, and whom else to tell.

    interception: made and entered around every pass of the model, recomputed ones included (a function mode that
    surrounded the whole watch would be off inside `Tensor.backward`, which itself passes through it).
    """

    def __init__(
        self,
        model: nn.Module,
        seen: Seen,
        probes: Iterable[Probe],
        interception: Callable[[], AbstractContextManager[Any]],
    ):
        self.seen, self.probes, self._interception = seen, tuple(probes), interception
        self.paths = ModulePaths(model, lambda: self in _WATCHERS.get())
        self.passes = 0
        self._self_attention: dict[str, tuple[int, int, Tensor | None]] = {}  # of this pass: path -> B, L, real rows

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the model's attention calls within."""
        _WATCHERS.set((*_WATCHERS.get(), self))
        self.paths.attach(self._new_pass)
        try:
            yield
        finally:
            self.paths.detach()
            _WATCHERS.set(tuple(w for w in _WATCHERS.get() if w is not self))

    def _new_pass(self) -> AbstractContextManager[Any]:
        self.passes += 1
        self._self_attention.clear()
        return self._interception()

    def looks_cross(self, frame: Frame, queries: int, keys: int) -> bool:
        """Whether an attention without a word on it is cross attention: by what its module was called with, or lengths.

        Fewer queries than keys are also what decoding from a cache looks like, in a layer that was seen as
        self-attention before.
        """
        if other_sequence(frame.module, frame.args, frame.kwargs):
            return True
        before = self.seen.layers.get(frame.path)
        return queries != keys and not (before is not None and not before.cross and queries < keys)

    def rows_beside(self, frame: Frame, batch: int, queries: int) -> Tensor | None:
        """Real queries of a cross attention: those of the nearest self-attention over as many queries before it.

        A cross attention is told the padding of its keys only. Its queries are those of the self-attention in the same
        block, or at least of the one whose path has most in common.
        """
        best, rows = -1, None
        for path, (its_batch, its_queries, its_rows) in self._self_attention.items():
            shared = _shared_parts(path, frame.path)
            if (its_batch, its_queries) == (batch, queries) and shared >= best:
                best, rows = shared, its_rows
        return rows

    def record(
        self, sighting: Sighting, query: Tensor, key: Tensor, value: Tensor, arguments: dict[str, Any], stats: Any
    ) -> None:
        """Fold one call into what was seen, and show it to the probes."""
        if not sighting.cross:
            self._self_attention[sighting.frame.path] = (query.shape[0], query.shape[2], sighting.rows)
        layer = self.paths.label(sighting.frame.path)
        call = Call(layer, query, key, value, arguments, sighting.rows, sighting.cross)
        self.seen.record(call, stats)
        for probe in self.probes:
            probe(call)


def followed() -> bool:
    """True where a module of a watched model is running, in the thread of its watch."""
    return any(watcher.paths.frame_of() is not None for watcher in _WATCHERS.get())


@torch.compiler.disable
def attend_seen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    arguments: dict[str, Any],
    sight: Callable[[Watcher], Sighting | None],
) -> Tensor:
    """`attend(query, key, value, **arguments)`, shown to every watcher for whom `sight` has something to tell.

    Output and statistics come from one pass.
    """
    found = [(w, s) for w in _WATCHERS.get() if (s := sight(w)) is not None]
    # The operator's own torch calls are nobody's attention, and need no interception.
    with torch._C.DisableTorchFunction():
        if not found:
            return attend(query, key, value, **arguments)
        wanted = {"visible"}.union(*(w.seen.stats for w, _ in found))
        if all(s.cross for _, s in found):
            wanted.discard("distance")
        output, stats = attend(query, key, value, **arguments, stats=tuple(n for n in CHEAP if n in wanted))
        if _recomputing():
            return output
        with torch.no_grad():
            told = {k: v.detach() if isinstance(v, Tensor) else v for k, v in arguments.items()}
            for watcher, sighting in found:
                watcher.record(sighting, query.detach(), key.detach(), value.detach(), told, stats)
    return output


def _shared_parts(a: str, b: str) -> int:
    """How many leading parts two module paths have in common."""
    return sum(1 for _ in takewhile(lambda parts: parts[0] == parts[1], zip(a.split("."), b.split("."), strict=False)))


def _recomputing() -> bool:
    """True inside a backward pass: gradient checkpointing runs the same calls again. It must find the same computation,
    but it is no second look at the tokens.
    """
    return torch._C._current_graph_task_id() != -1
