"""Who is watching, and the one door through which a model's attention calls reach the operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..engines import native
from ..operator import attend
from ..running import follower
from ..summary import CHEAP, Stats
from ..uncompiled import eager
from ..watching import Call, Probe, Seen
from ..watching.sampling import ROWS, Sampler
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

    rows: how many query positions of a call to look at, "all", or None for all where the native engine is and `ROWS`
    elsewhere. every: of so many passes the first is looked at. seed: of the positions drawn. interception: made and entered
    around every pass of the model, recomputed ones included (a function mode that surrounded the whole watch would be off
    inside `Tensor.backward`, which itself passes through it).
    """

    def __init__(
        self,
        model: nn.Module,
        seen: Seen,
        probes: Iterable[Probe],
        interception: Callable[[], AbstractContextManager[Any]],
        rows: int | Literal["all"] | None = "all",
        every: int = 1,
        seed: int = 0,
    ):
        self.seen, self.probes, self._interception = seen, tuple(probes), interception
        self.paths = ModulePaths(model, lambda: self in _WATCHERS.get())
        self.passes, self._every = 0, every
        self.looking = True  # in this pass
        self._rows, self._sampler = rows, Sampler(rows if isinstance(rows, int) else ROWS, seed)
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
        if not _recomputing():  # which belongs to the pass before
            self.looking = self.passes % self._every == 0
            self.passes += 1
            self._self_attention.clear()
        return self._interception() if self.looking else nullcontext()

    def samples(self, query: Tensor) -> bool:
        """Whether it looks at some positions only, and leaves the output to the model's own kernel."""
        return self._rows != "all" if self._rows is not None else not native.runs_on(query.device)

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
        self, sighting: Sighting, query: Tensor, key: Tensor, value: Tensor, arguments: dict[str, Any], stats: Stats | None
    ) -> None:
        """Fold one call into what was seen, and show it to the probes. stats: of all its queries; None: draw some."""
        if not sighting.cross:
            self._self_attention[sighting.frame.path] = (query.shape[0], query.shape[2], sighting.rows)
        layer = self.paths.label(sighting.frame.path)
        call = Call(layer, query, key, value, arguments, sighting.rows, sighting.cross)
        if stats is None:
            part, sample = self._sampler.sample(call)
            names = _named({*self.seen.stats}, call.cross)
            _, stats = attend(part.query, part.key, part.value, **part.arguments, stats=names)
            self.seen.record(part, stats, sample)
        else:
            self.seen.record(call, stats)
        for probe in self.probes:
            probe(call)


def followed() -> bool:
    """True where a module of a watched model is running, in the thread of its watch, in a pass that it looks at."""
    return any(watcher.looking and watcher.paths.frame_of() is not None for watcher in _WATCHERS.get())


@contextmanager
def unseen() -> Iterator[None]:
    """Within, the operator's calls, and torch's inside of it, are nobody's attention and need no interception."""
    token = follower.set(None)
    try:
        with torch._C.DisableTorchFunction():
            yield
    finally:
        follower.reset(token)


@eager
def attend_seen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    arguments: dict[str, Any],
    sight: Callable[[Watcher], Sighting | None],
    own: Callable[[], Tensor] | None = None,
    names: tuple[str, ...] = (),
) -> tuple[Tensor, Stats | None]:
    """`attend(query, key, value, **arguments)`, shown to every watcher for whom `sight` has something to tell.

    Output and statistics come from one pass. Where nobody wants those of all queries, the output is `own()`: what the
    model's own kernel gives, (B, H, L, Ev); without one, that is `attend`. names: statistics that the model asks for itself.

    Returns the output, and the statistics where there are any: `names` and those of the watchers.
    """
    found = [(w, s) for w in _WATCHERS.get() if w.looking and (s := sight(w)) is not None]
    with unseen():
        whole = [(w, s) for w, s in found if not w.samples(query)]
        wanted = set(names)
        if whole:
            wanted |= _named({stat for w, _ in whole for stat in w.seen.stats}, all(s.cross for _, s in whole))
        stats: Stats | None = None
        if wanted:
            output, stats = attend(query, key, value, **arguments, stats=[n for n in CHEAP if n in wanted])
        else:
            output = attend(query, key, value, **arguments) if own is None else own()
        if not found or _recomputing():
            return output, stats
        with torch.no_grad():
            told = {k: v.detach() if isinstance(v, Tensor) else v for k, v in arguments.items()}
            for watcher, sighting in found:
                known = None if watcher.samples(query) else stats
                watcher.record(sighting, query.detach(), key.detach(), value.detach(), told, known)
    return output, stats


def _named(stats: set[str], cross: bool) -> set[str]:
    """The statistics to compute for a watch of these: cross attention has no distance, and `visible` tells which rows count."""
    return {"visible", *(stats - {"distance"} if cross else stats)}


def _shared_parts(a: str, b: str) -> int:
    """How many leading parts two module paths have in common."""
    return sum(1 for _ in takewhile(lambda parts: parts[0] == parts[1], zip(a.split("."), b.split("."), strict=False)))


def _recomputing() -> bool:
    """True inside a backward pass: gradient checkpointing runs the same calls again. It must find the same computation,
    but it is no second look at the tokens.
    """
    return torch._C._current_graph_task_id() != -1
