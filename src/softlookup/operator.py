"""The operator: attend, lookup, merge, received, divergence, explain.

Shapes follow torch: query (…, H, L, E), key (…, Hkv, S, E), value (…, Hkv, S, Ev) with H a multiple of Hkv; statistics
(…, H, L). Two-dimensional inputs (L, E) have no heads; leading dimensions broadcast.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from . import compiled, repeated
from .biases import Bias
from .engines import divergence as _divergence
from .engines import reference
from .errors import SoftlookupError, UnsupportedError
from .masks import describe
from .normalizers import Normalizer, Softmax
from .problem import Problem
from .running import MaskLike, Plan, StatsLike, canonical, column_sums, finish, follower, plan, run, value_and_stats
from .scores import ScaledDot, Score
from .summary import Stats, Summary, chosen, merge_all
from .uncompiled import eager


@overload
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score = ...,
    mask: MaskLike | None = ...,
    bias: Bias | Tensor | None = ...,
    normalizer: Normalizer = ...,
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
    normalizer: Normalizer = ...,
    scale: float | Tensor | None = ...,
    dropout_p: float = ...,
    seed: int | None = ...,
    stats: StatsLike,
    query_offset: int | Tensor | None = ...,
    sinks: int = ...,
) -> tuple[Tensor, Stats]: ...


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score = ScaledDot(),  # noqa: B008
    mask: MaskLike | None = None,
    bias: Bias | Tensor | None = None,
    normalizer: Normalizer = Softmax(),  # noqa: B008
    scale: float | Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    stats: StatsLike | None = None,
    query_offset: int | Tensor | None = None,
    sinks: int = 1,
) -> Tensor | tuple[Tensor, Stats]:
    """Attention, softmax(scores) @ value, and what its distribution looked like (Vaswani et al. 2017, eq. 1).

    Args:
        query: (…, H, L, E).
        key: (…, Hkv, S, E).
        value: (…, Hkv, S, Ev). H is a multiple of Hkv.
        score: what is relevant; `ScaledDot()` by default.
        mask: what is visible: a `Mask`, a boolean tensor (True = visible), a function (b, h, i, j) -> bool, or a float
            tensor that is added to the scores and hides where it is <= finfo.min / 2.
        bias: added to the scores: a float tensor that broadcasts to (…, H, L, S), `ALiBi` or `RelativeTable`.
        normalizer: how scores become weights: `Softmax(temperature, sink)`, `Entmax(alpha)`, `Sparsemax()`, `TopK(k)`,
            `Sigmoid(bias)`, `Hard()`, or a `Threshold` of your own.
        scale: multiplies the product inside of the score; None is the score's own (1/sqrt(E) for `ScaledDot`).
        dropout_p: probability that a weight is dropped.
        seed: the same seed drops the same weights; one is drawn by default.
        stats: None, or what to compute in the same pass: True for all of `CHEAP`, or names.
        query_offset: position of the first query, or of each, (L,); by default the last query stands at the last key.
        sinks: how many of the first keys `sink_mass` counts.

    Returns:
        (…, H, L, Ev) in the inputs' dtype; with `stats`, also a `Stats`. An empty row (nothing visible) gives zeros.

    Raises:
        SoftlookupError: one line saying what was expected and what was got.
    """
    arguments: dict[str, Any] = {
        "score": score,
        "mask": mask,
        "bias": bias,
        "normalizer": normalizer,
        "scale": scale,
        "dropout_p": dropout_p,
        "seed": seed,
        "query_offset": query_offset,
        "sinks": sinks,
    }
    if torch.compiler.is_compiling():
        traced = compiled.attend(query, key, value, stats, arguments)
        return _attend(query, key, value, stats, arguments) if traced is None else traced
    if (follow := follower.get()) is not None:
        return follow(query, key, value, stats, arguments)
    names = chosen(stats)
    again = repeated.attend(query, key, value, names, arguments)
    value, values = value_and_stats(query, key, value, names, **arguments) if again is None else again
    return value if stats is None or stats is False else (value, Stats(values))


@torch.compiler.disable(reason="a score, bias or mask of one's own is Python, which runs between the parts of a compiled graph")
def _attend(query: Tensor, key: Tensor, value: Tensor, stats: StatsLike | None, arguments: dict[str, Any]) -> Any:
    value, values = value_and_stats(query, key, value, chosen(stats), **arguments)
    return value if stats is None or stats is False else (value, Stats(values))


@eager
def lookup(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score = ScaledDot(),  # noqa: B008
    mask: MaskLike | None = None,
    bias: Bias | Tensor | None = None,
    normalizer: Normalizer = Softmax(),  # noqa: B008
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
    if not isinstance(normalizer, Softmax):
        raise UnsupportedError(f"normalizer: expected a Softmax, whose parts merge, got {normalizer!r}, whose parts do not")
    problem, shift, shapes = canonical(
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
    summary = finish(run(problem), problem, shift, shapes, normalizer)
    assert isinstance(summary, Summary)
    return summary


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


@eager
def received(
    query: Tensor,
    key: Tensor,
    *,
    score: Score = ScaledDot(),  # noqa: B008
    mask: MaskLike | None = None,
    bias: Bias | Tensor | None = None,
    normalizer: Normalizer = Softmax(),  # noqa: B008
    scale: float | Tensor | None = None,
    query_offset: int | Tensor | None = None,
) -> Tensor:
    """(…, H, S): the weight that each key received, summed over queries (sinks not counted). Arguments as in `attend`.

    What KV-cache eviction ranks keys by ("heavy hitters", Zhang et al. 2023). Differentiable; memory O(n).
    """
    problem, _, shapes = canonical(
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
    return shapes.restore(column_sums(problem))


@eager
def divergence(
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    *,
    mask: MaskLike | None | tuple[MaskLike | None, MaskLike | None] = None,
    score: Score | tuple[Score, Score] = ScaledDot(),  # noqa: B008
    bias: Bias | Tensor | None = None,
    normalizer: Normalizer = Softmax(),  # noqa: B008
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
        problem, _, shapes = canonical(
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
        if not isinstance(normalizer, Softmax):
            raise UnsupportedError(f"divergence: expected a Softmax, got {normalizer!r}, whose weights may be 0")
        if problem.hard:
            raise SoftlookupError("divergence: expected temperature > 0, got 0")
        problems.append(problem)
    a, b = problems
    if a.query.shape[:3] != b.query.shape[:3] or a.key.shape[2] != b.key.shape[2] or a.value.dtype != b.value.dtype:
        got = ", ".join(f"query {tuple(q.shape)} key {tuple(k.shape)} {q.dtype}" for q, k in (first, second))
        raise SoftlookupError(f"divergence: expected the same dtype, batch, heads, queries and keys, got {got}")
    if a.group != b.group:
        a, b = (_ungrouped(x) for x in (a, b))
    if plan(a)[0] is reference:
        return shapes.restore(reference.divergence(a, b))
    return shapes.restore(_divergence.divergence(a, b))


def _ungrouped(problem: Problem) -> Problem:
    """The same problem with a key head for every query head."""
    key, value = (x.repeat_interleave(problem.group, 1) for x in (problem.key, problem.value))
    return replace(problem, form=replace(problem.form, key=key), value=value)


@eager
def explain(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Plan:
    """Which engine `attend` would use for these arguments, and why each other one is not used."""
    arguments = arguments | {"names": chosen(arguments.pop("stats", None))}
    return plan(canonical(query, key, value, **arguments)[0])[1]


@eager
def scores_of(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
    """Final scores (…, H, L, S), -inf where hidden: the whole matrix, for small slices. Arguments as in `attend`."""
    problem, shift, shapes = canonical(query, key, value, **arguments)
    s, visible = reference.scores(problem, reference.whole(problem))
    if shift is not None:
        s = s + shift.to(s.dtype)[..., None]
    return shapes.restore(s.masked_fill(~visible, float("-inf")), 1)


@eager
def weights_of(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
    """Attention weights (…, H, L, S), after a sink if there is one: the whole matrix, for small slices."""
    problem, shift, shapes = canonical(query, key, value, **arguments)
    p = shapes.restore(reference.distribution(problem, reference.whole(problem))[0], 1)
    normalizer = arguments.get("normalizer", Softmax())
    if not isinstance(normalizer, Softmax) or normalizer.sink is None:
        return p
    weight = finish(run(problem), problem, shift, shapes, normalizer).stats("sink_weight")
    assert isinstance(weight, Tensor)
    return p * (1 - weight).unsqueeze(-1)
