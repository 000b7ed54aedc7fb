"""The operator: attend, lookup, merge, received, divergence, explain. Validate, lower, choose an engine, wrap.

Shapes follow torch: query (…, H, L, E), key (…, Hkv, S, E), value (…, Hkv, S, Ev) with H a multiple of Hkv; statistics
(…, H, L). Two-dimensional inputs (L, E) have no heads; leading dimensions broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, overload

import torch
from torch import Tensor

from .biases import Bias
from .engines import divergence as _divergence
from .engines import native, reference, streaming
from .engines import received as _received
from .engines.tiling import visible_counts
from .errors import SoftlookupError
from .masks import Mask, describe
from .normalizers import Softmax
from .problem import Dropout, Problem, Shapes, build, place_of
from .scores import ScaledDot, Score
from .summary import Stats, Summary, chosen, map_tensors, merge_all, needed

ENGINES: tuple[ModuleType, ...] = (native, streaming, reference)
"""In order of preference. An engine is a module with `name`, `refusal(problem) -> str | None`, `run(problem) -> Summary`."""

MaskLike = Mask | Tensor | Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
StatsLike = bool | str | Iterable[str]

_forced: ContextVar[str | None] = ContextVar("softlookup_engine", default=None)


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


@dataclass(frozen=True)
class Plan:
    """Which engine runs a lookup, and why each of the others does not. Prints itself."""

    engine: str
    reasons: dict[str, str]

    def __str__(self) -> str:
        lines = [f"engine: {self.engine}"]
        return "\n".join(lines + [f"  not {name}: {reason}" for name, reason in self.reasons.items()])


def _plan(problem: Problem) -> tuple[ModuleType, Plan]:
    forced, chosen_engine, reasons = _forced.get(), None, {}
    for each in ENGINES:
        reason = each.refusal(problem)
        if reason is None and forced is not None and each.name != forced:
            reason = f'not asked for: inside softlookup.engine("{forced}")'
        if reason is None and chosen_engine is not None:
            reason = f"can run this, but {chosen_engine.name} is preferred" + getattr(each, "drawback", "")
        if reason is None:
            chosen_engine = each
        else:
            reasons[each.name] = reason
    if chosen_engine is None:
        raise SoftlookupError("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    return chosen_engine, Plan(chosen_engine.name, reasons)


def _autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Under autocast, inputs are cast as torch casts those of scaled_dot_product_attention (float64 stays)."""
    first = next((t for t in tensors if isinstance(t, Tensor)), None)
    if first is None or not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)

    def cast(t: Any) -> Any:
        fits = isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64
        return t.to(dtype) if fits else t

    return tuple(cast(t) for t in tensors)


def _dropout(p: float, seed: int | None) -> Dropout | None:
    if not 0 <= p <= 1:
        raise SoftlookupError(f"dropout_p: expected a probability between 0 and 1, got {p}")
    if p == 0:
        return None
    return Dropout(float(p), int(torch.randint(2**62, ()).item()) if seed is None else int(seed))


def _build(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    *,
    score: Score = ScaledDot(),  # noqa: B008
    mask: MaskLike | None = None,
    bias: Bias | Tensor | None = None,
    normalizer: Softmax = Softmax(),  # noqa: B008
    scale: float | Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    names: tuple[str, ...] = (),
    query_offset: int | Tensor | None = None,
    key_offset: int = 0,
    total_keys: int | None = None,
    sinks: int = 1,
) -> tuple[Problem, Tensor | None, Shapes]:
    query, key, value = _autocast(query, key, value)
    device = query.device.type if isinstance(query, Tensor) else "cpu"
    with torch.autocast(device, enabled=False):
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
            needs=needed(names),
            sinks=sinks,
        )


def _run(problem: Problem) -> Summary:
    """The summary from the chosen engine, (B, H, L)."""
    with torch.autocast(problem.query.device.type, enabled=False):
        return _plan(problem)[0].run(problem)


def _finish(summary: Summary, problem: Problem, shift: Tensor | None, shapes: Shapes, normalizer: Softmax) -> Summary:
    """The engine's summary in the user's shapes, with the sink to be applied when it is read."""
    if shift is not None:
        with torch.autocast(problem.query.device.type, enabled=False):
            t = problem.temperature
            shift = shift.to(problem.accumulate) / (t.squeeze(-1) if isinstance(t, Tensor) else t or 1.0)
            summary = _shifted(summary, shift)
    summary = map_tensors(summary, shapes.restore)
    sink = normalizer.sink_logit(summary.log_z)
    if sink is not None and shapes.headless:
        sink = sink.reshape(())
    return replace(summary, sink=sink, dtype=problem.value.dtype)


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
    }
    return replace(summary, **changed)


@overload
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score = ...,
    mask: MaskLike | None = ...,
    bias: Bias | Tensor | None = ...,
    normalizer: Softmax = ...,
    scale: float | Tensor | None = ...,
    dropout_p: float = ...,
    seed: int | None = ...,
    stats: None = ...,
    query_offset: int | Tensor | None = ...,
    sinks: int = ...,
) -> Tensor: ...


@overload
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score = ...,
    mask: MaskLike | None = ...,
    bias: Bias | Tensor | None = ...,
    normalizer: Softmax = ...,
    scale: float | Tensor | None = ...,
    dropout_p: float = ...,
    seed: int | None = ...,
    stats: StatsLike,
    query_offset: int | Tensor | None = ...,
    sinks: int = ...,
) -> tuple[Tensor, Stats]: ...


@torch.compiler.disable
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score = ScaledDot(),  # noqa: B008
    mask: MaskLike | None = None,
    bias: Bias | Tensor | None = None,
    normalizer: Softmax = Softmax(),  # noqa: B008
    scale: float | Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    stats: StatsLike | None = None,
    query_offset: int | Tensor | None = None,
    sinks: int = 1,
) -> Tensor | tuple[Tensor, Stats]:
    """Attention, softmax(scores) @ value, and what its distribution looked like (Vaswani et al. 2017, eq. 1).

    Args:
        query: (…, H, L, E). key: (…, Hkv, S, E). value: (…, Hkv, S, Ev). H is a multiple of Hkv.
        score: what is relevant; `ScaledDot()` by default.
        mask: what is visible: a `Mask`, a boolean tensor (True = visible), a function (b, h, i, j) -> bool, or a float
            tensor that is added to the scores and hides where it is <= finfo.min / 2.
        bias: added to the scores: a float tensor that broadcasts to (…, H, L, S), `ALiBi` or `RelativeTable`.
        normalizer: `Softmax(temperature, sink)`.
        scale: multiplies the product inside of the score; None is the score's own (1/sqrt(E) for `ScaledDot`).
        dropout_p, seed: probability that a weight is dropped; the same seed drops the same weights.
        stats: None, or what to compute in the same pass: True for all of `CHEAP`, or names.
        query_offset: position of the first query, or of each, (L,); by default the last query stands at the last key.
        sinks: how many of the first keys `sink_mass` counts.

    Returns:
        (…, H, L, Ev) in the inputs' dtype; with `stats`, also a `Stats`. An empty row (nothing visible) gives zeros.

    Raises:
        SoftlookupError: one line saying what was expected and what was got.
    """
    names = chosen(stats)
    problem, shift, shapes = _build(
        query,
        key,
        value,
        score=score,
        mask=mask,
        bias=bias,
        normalizer=normalizer,
        scale=scale,
        dropout_p=dropout_p,
        seed=seed,
        names=names,
        query_offset=query_offset,
        sinks=sinks,
    )
    raw = _run(problem)
    summary = _finish(raw, problem, shift, shapes, normalizer)
    if stats is None or stats is False:
        return summary.value
    values: dict[str, Tensor] = {}
    for each in names:
        values[each] = shapes.restore(_column_sums(problem, raw)) if each == "received" else summary.stats(each)  # type: ignore
    return summary.value, Stats(values)


@torch.compiler.disable
def lookup(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score = ScaledDot(),  # noqa: B008
    mask: MaskLike | None = None,
    bias: Bias | Tensor | None = None,
    normalizer: Softmax = Softmax(),  # noqa: B008
    scale: float | Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    stats: StatsLike = True,
    query_offset: int | Tensor | None = None,
    key_offset: int = 0,
    total_keys: int | None = None,
    sinks: int = 1,
) -> Summary:
    """The mergeable summary of a lookup in *some* of the keys: a cache chunk, a shard, a page.

    Arguments are those of `attend`, and the part's place in the whole: positions, masks, biases, dropout and SSMax's count
    are those of the whole, so that `merge` of any split equals the lookup in all keys at once. Dense masks and biases
    have a column for every key of the whole.

    Args:
        key_offset: position of the first key of this part.
        total_keys: number of keys of the whole; by default this part is its end.
        query_offset: position of the first query (or of each, (L,)); right-aligned with the whole's keys by default.
        stats: which statistics the summary can be read for; all of `CHEAP` by default. Where there are more queries than
            keys, name those wanted: queries and keys have no common positions, and `distance` is refused.

    Returns:
        `Summary`, with `.value`, `.stats(*names)`.
    """
    if dropout_p and seed is None:
        raise SoftlookupError("seed: expected an int, the same for every part, as dropout_p > 0, got None")
    names = chosen(stats)
    if "received" in names:
        raise SoftlookupError("received: expected softlookup.received(query, key), per key, got a summary, which is per query")
    problem, shift, shapes = _build(
        query,
        key,
        value,
        score=score,
        mask=mask,
        bias=bias,
        normalizer=normalizer,
        scale=scale,
        dropout_p=dropout_p,
        seed=seed,
        names=names,
        query_offset=query_offset,
        key_offset=key_offset,
        total_keys=total_keys,
        sinks=sinks,
    )
    return _finish(_run(problem), problem, shift, shapes, normalizer)


def merge(*parts: Summary) -> Summary:
    """The summary over the union of the parts' keys, differentiable; parts must be disjoint and of the same queries.

    Associative and commutative up to rounding. A statistic that one part does not have is missing from the result.
    """
    if not parts:
        raise SoftlookupError("merge: expected at least one Summary, got none")
    for part in parts:
        if not isinstance(part, Summary):
            raise SoftlookupError(f"merge: expected Summary objects, got {describe(part)}")
        if part.average.shape != parts[0].average.shape:
            want, got = tuple(parts[0].average.shape), tuple(part.average.shape)
            raise SoftlookupError(f"merge: expected parts of the same queries and value width, {want}, got {got}")
        if part.hard != parts[0].hard:
            raise SoftlookupError("merge: expected one temperature, got parts of hard (0) and soft retrieval")
        if (part.log_z.dtype, part.dtype) != (parts[0].log_z.dtype, parts[0].dtype):
            raise SoftlookupError(f"merge: expected parts of one dtype, {parts[0].dtype}, got {part.dtype}")
        if part.average.device != parts[0].average.device:
            raise SoftlookupError(f"merge: expected parts on {parts[0].average.device}, got one on {part.average.device}")
        if not _same_sink(part.sink, parts[0].sink):
            raise SoftlookupError("merge: expected one sink, the same in every part, got different ones")
    return merge_all(parts)


def _same_sink(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _column_sums(problem: Problem, known: Summary | None = None) -> Tensor:
    """(B, H, S) what each key received; `known` saves the pass for the log-normalizer."""
    if _plan(problem)[0] is reference:
        return reference.received(problem)
    return _received.received(problem, known)


@torch.compiler.disable
def received(
    query: Tensor,
    key: Tensor,
    *,
    score: Score = ScaledDot(),  # noqa: B008
    mask: MaskLike | None = None,
    bias: Bias | Tensor | None = None,
    normalizer: Softmax = Softmax(),  # noqa: B008
    scale: float | Tensor | None = None,
    query_offset: int | Tensor | None = None,
) -> Tensor:
    """(…, H, S): the weight that each key received, summed over queries (sinks not counted). Arguments as in `attend`.

    What KV-cache eviction ranks keys by ("heavy hitters", Zhang et al. 2023). Differentiable; memory O(n).
    """
    problem, _, shapes = _build(
        query,
        key,
        None,
        score=score,
        mask=mask,
        bias=bias,
        normalizer=normalizer,
        scale=scale,
        query_offset=query_offset,
    )
    return shapes.restore(_column_sums(problem))


@torch.compiler.disable
def divergence(
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    *,
    mask: MaskLike | None | tuple[MaskLike | None, MaskLike | None] = None,
    score: Score | tuple[Score, Score] = ScaledDot(),  # noqa: B008
    bias: Bias | Tensor | None = None,
    normalizer: Softmax = Softmax(),  # noqa: B008
    scale: float | Tensor | None = None,
    query_offset: int | Tensor | None = None,
) -> Tensor:
    """KL(first || second) in nats between the attention distributions of (query, key) pairs: (…, H, L), gradients to both.

    Both have the same queries and keys in number, not necessarily in width or head grouping. `mask` and `score` may be
    pairs. It is +inf where the second hides a key that the first gives weight to.
    """
    masks = mask if isinstance(mask, tuple) else (mask, mask)
    scores = score if isinstance(score, tuple) else (score, score)
    problems = []
    for (query, key), one_mask, one_score in zip((first, second), masks, scores, strict=True):
        problem, _, shapes = _build(
            query,
            key,
            None,
            score=one_score,
            mask=one_mask,
            bias=bias,
            normalizer=normalizer,
            scale=scale,
            query_offset=query_offset,
        )
        if problem.hard:
            raise SoftlookupError("divergence: expected temperature > 0, got 0")
        problems.append(problem)
    a, b = problems
    if a.query.shape[:3] != b.query.shape[:3] or a.key.shape[2] != b.key.shape[2] or a.value.dtype != b.value.dtype:
        got = ", ".join(f"query {tuple(q.shape)} key {tuple(k.shape)} {q.dtype}" for q, k in (first, second))
        raise SoftlookupError(f"divergence: expected the same dtype, batch, heads, queries and keys, got {got}")
    if a.group != b.group:
        a, b = (_ungrouped(x) for x in (a, b))
    if _plan(a)[0] is reference:
        return shapes.restore(reference.divergence(a, b))
    return shapes.restore(_divergence.divergence(a, b))


def _ungrouped(problem: Problem) -> Problem:
    """The same problem with a key head for every query head."""
    key, value = (x.repeat_interleave(problem.group, 1) for x in (problem.key, problem.value))
    return replace(problem, form=replace(problem.form, key=key), value=value)


@torch.compiler.disable
def explain(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Plan:
    """Which engine `attend` would use for these arguments, and why each other one is not used."""
    arguments = arguments | {"names": chosen(arguments.pop("stats", None))}
    return _plan(_build(query, key, value, **arguments)[0])[1]


@torch.compiler.disable
def scores_of(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
    """Final scores (…, H, L, S), -inf where hidden: the whole matrix, for small slices. Arguments as in `attend`."""
    problem, shift, shapes = _build(query, key, value, **arguments)
    s, visible = reference.scores(problem, reference.whole(problem))
    if shift is not None:
        s = s + shift.to(s.dtype)[..., None]
    return shapes.restore(s.masked_fill(~visible, float("-inf")), 1)


@torch.compiler.disable
def weights_of(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
    """Attention weights (…, H, L, S), after a sink if there is one: the whole matrix, for small slices."""
    problem, shift, shapes = _build(query, key, value, **arguments)
    p = shapes.restore(reference.distribution(problem, reference.whole(problem))[0], 1)
    normalizer = arguments.get("normalizer", Softmax())
    if normalizer.sink is None:
        return p
    weight = _finish(_run(problem), problem, shift, shapes, normalizer).stats("sink_weight")
    assert isinstance(weight, Tensor)
    return p * (1 - weight).unsqueeze(-1)
