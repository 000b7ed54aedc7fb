"""`watch`: what every attention head of a model does, from the pass that computes its output."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import nn

from ..errors import SoftlookupError, UnsupportedError
from ..summary import chosen
from ..watching import Probe, Seen
from .module_paths import _cannot_attend
from .own_calls import following
from .recording import Watcher
from .torch_modules import Interception


@contextmanager
def watch(
    model: nn.Module,
    *,
    keep: str = "heads",
    stats: Iterable[str] | None = None,
    rows: int | Literal["all"] | None = None,
    every: int = 1,
    seed: int = 0,
    probes: Iterable[Probe] = (),
) -> Iterator[Seen]:
    """Watch a model's attention.

        with sl.watch(model) as seen:
            model(**inputs)
        print(seen.table())

    Hugging Face models (and those inside any other module) are switched to softlookup's attention and back on exit,
    exceptions included. Elsewhere calls of `F.scaled_dot_product_attention`, `nn.MultiheadAttention` and `attend` are followed.
    Layers are named by module path; a module that attends several times in one pass is "path", "path#2", …

    keep: "heads" (moments and quantiles per head, no per-token tensor), "rows" (also each layer's last call, per query), or
    "graph" (that with its gradient, for a term of the loss: `seen.layers[…].graph(stat)`). stats: names of the statistics, the
    cheap set by default. probes: called with each attention `Call`, in order, without gradients.

    rows: "all", or how many query positions of each call to look at. The model's own kernel then computes its output, on any
    device, and the statistics are exact for some, an eighth of them the first, the others drawn at random (`seed`): means are
    unbiased, with a standard error (`stderr`); extremes are those of the sample. By default all where the native engine runs
    (on a CPU) or keep is not "heads", else 64. every: of so many forward passes (calls of the model, or of modules of it
    that are called by themselves) the first is looked at, and the others are left alone.

    Queries that are padding, or see no key, count in nothing. A decoding step counts its one query. Calls by other
    threads, and recomputation under gradient checkpointing, are not recorded; with checkpointing run `backward` inside, as
    what is computed again must be what was computed, and with every > 1 after each pass.

    Raises `SoftlookupError` on exit if no attention was seen.
    """
    if not isinstance(model, nn.Module):
        raise SoftlookupError(f"watch: expected a torch.nn.Module, got {type(model).__name__}")
    names = chosen(True if stats is None else stats)
    if "received" in names:
        raise UnsupportedError("watch: expected statistics per query, got 'received', which is per key (sl.received)")
    if not names:
        raise SoftlookupError("watch: expected at least one statistic, got none")
    for name, number, others in (("rows", rows, ("all", None)), ("every", every, ())):
        if number not in others and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise SoftlookupError(f"watch: expected {name} to be a number of at least 1, got {number!r}")
    if keep == "graph" and every > 1:
        raise SoftlookupError(f'watch: expected every=1 with keep="graph", as a loss needs each pass, got {every}')
    if keep != "heads":
        if rows not in ("all", None):
            raise SoftlookupError(f'watch: expected rows="all" with keep="{keep}", which keeps every query, got {rows}')
        rows = "all"
    seen = Seen(names, keep)
    watcher = Watcher(model, seen, probes, _interception, rows, every, seed)
    with ExitStack() as stack:
        _switch_hugging_face(model, stack)
        if "torch._dynamo" in sys.modules:
            # Inside a compiled graph nothing can be seen: run what it was compiled from.
            stack.enter_context(_eagerly())
        stack.enter_context(watcher.watching())
        yield seen
    if not seen.layers:
        raise SoftlookupError(_nothing_seen(model, watcher))


@contextmanager
def _interception() -> Iterator[None]:
    """Around every pass of a watched model."""
    with Interception(), following():
        yield


_eager = ExitStack()
_watches = 0  # that are open


@contextmanager
def _eagerly() -> Iterator[None]:
    """Compiled models run as what they were compiled from while any watch is open, in whatever order watches are left."""
    global _watches
    if not _watches:
        _eager.enter_context(torch.compiler.set_stance("force_eager"))
    _watches += 1
    try:
        yield
    finally:
        _watches -= 1
        if not _watches:
            _eager.close()


def _switch_hugging_face(model: nn.Module, stack: ExitStack) -> None:
    """Switch the Hugging Face models in `model`, if transformers is there at all: who has one has imported it."""
    if "transformers" not in sys.modules or not any(hasattr(module, "config") for module in model.modules()):
        return
    from . import huggingface

    huggingface.register()
    stack.enter_context(huggingface.switched(model))


def _nothing_seen(model: nn.Module, watcher: Watcher) -> str:
    name = type(model).__name__
    if not watcher.passes and not all(map(_cannot_attend, model.modules())):  # where nothing can attend, nothing is counted
        return f"watch: expected {name} to be called inside the with block, in the same thread, got no call"
    return (
        f"watch: expected attention through F.scaled_dot_product_attention, nn.MultiheadAttention, softlookup.attend or "
        f"transformers' attention interface, got none in {name}: it computes attention by itself, where a call of sl.attend "
        f"would be seen, or has none"
    )
