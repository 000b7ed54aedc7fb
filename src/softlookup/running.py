"""Running one lookup: from the user's words to a problem, to an engine, to a summary in the user's shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from numbers import Real
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .biases import Bias
from .engines import native, reference, streaming
from .engines import received as _received
from .engines.tiling import visible_counts
from .errors import SoftlookupError, whole
from .masks import Mask
from .normalizers import Hard, Normalizer, Softmax, Threshold
from .outcome import Outcome
from .outcome import needed as needed_of_outcome
from .problem import Dropout, Problem, Shapes, build, place_of
from .scores import ScaledDot, Score
from .summary import Summary, map_tensors, needed

ENGINES: tuple[ModuleType, ...] = (native, streaming, reference)
"""In order of preference. An engine is a module with `name`, `refusal(problem) -> str | None`, `run(problem) -> Summary`."""

MaskLike = Mask | Tensor | Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
StatsLike = bool | str | Iterable[str]

_forced: ContextVar[str | None] = ContextVar("softlookup_engine", default=None)

Follower = Callable[[Tensor, Tensor, Tensor, StatsLike | None, dict[str, Any]], Any]
follower: ContextVar[Follower | None] = ContextVar("softlookup_follower", default=None)
"""What `attend` hands its calls to while a watched model runs: it answers them in its place."""


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Run everything inside the `with` block on the named engine: "native", "streaming" or "reference" (the oracle)."""
    known = [each.name for each in ENGINES]
    if name not in known:
        raise SoftlookupError(f"engine: expected one of {', '.join(known)}, got {name!r}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> str | None:
    """The engine that everything runs on here, or None."""
    return _forced.get()


@dataclass(frozen=True)
class Plan:
    """Which engine runs a lookup, and why each of the others does not. Prints itself. sampled: whether `watch` looks at a
    sample of rows here unless it is told otherwise."""

    engine: str
    reasons: dict[str, str]
    sampled: bool = False

    def __str__(self) -> str:
        lines = [f"engine: {self.engine}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.reasons.items()]
        if self.sampled:
            lines.append("  under watch: a sample of rows, output by the model's own kernel (rows='all': every row, by this)")
        return "\n".join(lines)


def choose(problem: Problem) -> ModuleType:
    """The engine that runs the problem."""
    if forced() is None:
        for each in ENGINES:
            if each.refusal(problem) is None:
                return each
    return plan(problem)[0]


def plan(problem: Problem) -> tuple[ModuleType, Plan]:
    """The engine that runs the problem, and why."""
    named, chosen_engine, reasons = forced(), None, {}
    for each in ENGINES:
        reason = each.refusal(problem)
        if reason is None and named is not None and each.name != named:
            reason = f'not asked for: inside softlookup.engine("{named}")'
        if reason is None and chosen_engine is not None:
            reason = f"can run this, but {chosen_engine.name} is preferred" + getattr(each, "drawback", "")
        if reason is None:
            chosen_engine = each
        else:
            reasons[each.name] = reason
    if chosen_engine is None:
        raise SoftlookupError("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    return chosen_engine, Plan(chosen_engine.name, reasons, not native.runs_on(problem.query.device))


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Under autocast, inputs are cast as torch casts those of scaled_dot_product_attention (float64 stays)."""
    first = next((t for t in tensors if isinstance(t, Tensor)), None)
    if first is None or not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)

    def cast(t: Any) -> Any:
        fits = isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64
        return t.to(dtype) if fits else t

    return tuple(cast(t) for t in tensors)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _dropout(p: float, seed: int | None) -> Dropout | None:
    if not (isinstance(p, Real) and 0 <= p <= 1):
        raise SoftlookupError(f"dropout_p: expected a probability between 0 and 1, got {p!r}")
    if p == 0:
        return None
    return Dropout(float(p), int(torch.randint(2**62, ()).item()) if seed is None else whole("seed", seed))


def canonical(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    *,
    score: Score = ScaledDot(),  # noqa: B008
    mask: MaskLike | None = None,
    bias: Bias | Tensor | None = None,
    normalizer: Normalizer = Softmax(),  # noqa: B008
    scale: float | Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    names: tuple[str, ...] = (),
    query_offset: int | Tensor | None = None,
    key_offset: int = 0,
    total_keys: int | None = None,
    sinks: int = 1,
) -> tuple[Problem, Tensor | None, Shapes]:
    query, key, value = autocast(query, key, value)
    with without_autocast(query.device.type if isinstance(query, Tensor) else "cpu"):
        return build(
            query,
            key,
            value,
            score=score,
            mask=mask,
            bias=bias,
            normalizer=normalizer,
            scale=scale,
            dropout=_dropout(dropout_p, seed),
            place=lambda length, keys: place_of(length, keys, query_offset, key_offset, total_keys),
            visible_counts=visible_counts,
            needs=needed_of_outcome(names) if isinstance(normalizer, Threshold) else needed(names),
            sinks=sinks,
        )


def run(problem: Problem) -> Summary | Outcome:
    """The summary from the chosen engine, (B, H, L), or the outcome where weights are not a softmax's."""
    with without_autocast(problem.query.device.type):
        return choose(problem).run(problem)


def finish(
    summary: Summary | Outcome, problem: Problem, shift: Tensor | None, shapes: Shapes, normalizer: Normalizer
) -> Summary | Outcome:
    """What the engine gave in the user's shapes, with the sink to be applied when it is read."""
    if shift is not None:
        with without_autocast(problem.query.device.type):
            t = problem.temperature
            shift = shift.to(problem.accumulate) / (t.squeeze(-1) if isinstance(t, Tensor) else t or 1.0)
            summary = summary.shifted(shift) if isinstance(summary, Outcome) else _shifted(summary, shift)
    if isinstance(summary, Outcome):
        return summary if shapes.canonical else summary.map(shapes.restore)
    if not shapes.canonical:
        summary = map_tensors(summary, shapes.restore)
    sink = normalizer.sink_logit(summary.log_z) if isinstance(normalizer, Softmax) else None
    if sink is None:
        return summary
    return replace(summary, sink=sink.reshape(()) if shapes.headless else sink)


def _shifted(summary: Summary, shift: Tensor) -> Summary:
    """Add a per-query constant to the logits. The gradient that passes through it is that of lse, E_p[s] and the mean."""
    some = summary.visible > 0
    constant = torch.where(some, shift, 0)
    zero = constant - constant.detach()  # 0 in value: carries the gradient where the maximum, a constant to autograd, cannot
    changed: dict[str, Any] = {
        "max_logit": summary.max_logit + constant.detach(),
        "log_z": summary.log_z + zero,
        "excess": None if summary.excess is None else summary.excess + zero,
        "logit_mean": None if summary.logit_mean is None else summary.logit_mean + constant,
        "derived": {},
    }
    return replace(summary, **changed)


def value_and_stats(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    names: tuple[str, ...],
    by: Callable[[Problem], Summary | Outcome] = run,
    **arguments: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The value and the statistics of these names. by: what runs the problem; arguments as `canonical` has them."""
    normalizer = arguments["normalizer"]
    problem, shift, shapes = canonical(query, key, value, names=names, **arguments)
    raw = by(problem)
    summary = finish(raw, problem, shift, shapes, normalizer)
    values: dict[str, Tensor] = {}
    for each in names:
        apart = each == "received" and isinstance(raw, Summary)
        values[each] = shapes.restore(column_sums(problem, raw)) if apart else summary.stats(each)  # type: ignore
    if not isinstance(normalizer, Hard):
        return summary.value, values
    best = finish(by(replace(problem, temperature=0.0, needs=frozenset())), problem, None, shapes, normalizer).value
    return best.detach() + (summary.value - summary.value.detach()), values


def column_sums(problem: Problem, known: Summary | None = None) -> Tensor:
    """(B, H, S) what each key received; `known` saves the pass for the log-normalizer."""
    if problem.rule is not None:
        found = run(replace(problem, needs=frozenset({"received"})))
        assert isinstance(found, Outcome) and found.received is not None
        return found.received
    by = choose(problem)
    return reference.received(problem) if by is reference else _received.received(problem, by, known)
