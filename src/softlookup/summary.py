"""What a lookup leaves behind: a summary that merges, and the statistics read from it.

A `Summary` describes the attention distribution p of each query over *some* keys by normalized moments. Over disjoint
key sets they merge as mixtures do: with part k's share w_k = exp(lse_k - lse), expectations average with w, variances
add the spread between the parts, the entropy obeys the chain rule H = sum w_k H_k + H(w), and Chan et al. (1983) merge
what is counted per key. All of it is differentiable torch, so merged statistics have gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, reduce
from typing import Any, overload

import torch
from torch import Tensor

from .errors import SoftlookupError, UnsupportedError

CHEAP = (
    "logsumexp",
    "max_logit",
    "max_weight",
    "argmax",
    "expected_logit",
    "expected_logit_var",
    "entropy",
    "entropy_ratio",
    "logit_mean",
    "logit_var",
    "collision",
    "effective_keys",
    "jacobian_trace",
    "visible",
    "sink_mass",
    "sink_weight",
    "distance",
)
"""Every statistic that comes from the same pass as the output: what `stats=True` means."""

ALL = (*CHEAP, "support", "total_weight", "threshold", "received")

# The optional field of a Summary that each statistic is read from; the others come from fields that are always there.
_NEEDS = {
    "argmax": "argmax",
    "expected_logit": "excess",
    "expected_logit_var": "expected_logit_var",
    "entropy": "entropy",
    "entropy_ratio": "entropy",
    "logit_mean": "logit_mean",
    "logit_var": "logit_var",
    "collision": "collision",
    "effective_keys": "collision",
    "jacobian_trace": "collision",
    "sink_mass": "sink_mass",
    "distance": "distance",
}

DERIVED = ("logsumexp", "max_weight", "expected_logit", "entropy_ratio", "effective_keys", "jacobian_trace")
"""Statistics that follow from the fields of a Summary; an engine may have computed them already (`Summary.derived`)."""

# A variance merges by the spread between the parts' means, so it keeps the mean too.
_MERGES_BY = {"expected_logit_var": "excess", "logit_var": "logit_mean"}


def chosen(stats: bool | str | Iterable[str] | None) -> tuple[str, ...]:
    """The names that a `stats=` argument asks for, in the order of the table in the docs; unknown ones raise."""
    if stats is None or stats is False:
        return ()
    if stats is True:
        return CHEAP
    names = {stats} if isinstance(stats, str) else set(stats)
    unknown = sorted(names - set(ALL))
    if unknown:
        raise SoftlookupError(f"stats: expected names among {', '.join(ALL)}, got {', '.join(map(repr, unknown))}")
    return tuple(name for name in ALL if name in names)


def across(stats: bool | str | Iterable[str] | None) -> tuple[str, ...]:
    """`chosen`, where one sequence reads another: their positions have no distance, so True leaves it out."""
    names = chosen(stats)
    if stats is True:
        return tuple(name for name in names if name != "distance")
    if "distance" in names:
        raise UnsupportedError("distance: expected one sequence, as two share no positions, got two")
    return names


def needed(names: Iterable[str]) -> frozenset[str]:
    """The Summary fields that an engine must compute for these statistics."""
    own = {_NEEDS[name] for name in names if name in _NEEDS}
    return frozenset(own | {_MERGES_BY[field] for field in own if field in _MERGES_BY})


def source(name: str) -> str:
    """The Summary field that tells whether this statistic is there."""
    return _NEEDS.get(name, "log_z")


class Stats:
    """Statistics of the attention distribution, one attribute per name that was asked for, each of shape (…, H, L).

    float32 for half and single precision inputs, float64 for float64; `argmax` and `visible` are int64. `received` is
    per key, (…, H, S). Entropy is in nats.
    """

    names: tuple[str, ...]

    def __init__(self, values: dict[str, Tensor]):
        self.names = tuple(values)
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Tensor:
        if name in ALL:
            got = ", ".join(self.names) or "none"
            raise AttributeError(f"{name} was not requested: expected stats=(…, {name!r}), got stats=({got})")
        raise AttributeError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, name: str) -> Tensor:
        return getattr(self, name)

    def __repr__(self) -> str:
        return f"Stats({', '.join(f'{name} {tuple(self[name].shape)}' for name in self.names)})"


@dataclass(frozen=True, eq=False, repr=False)
class Summary:
    """The distribution of each query over a set of keys, by moments that merge (shapes (…, H, L), fields None if not kept).

    average: (…, H, L, Ev), E_p[v], before any sink; max_logit; log_z = logsumexp - max_logit and excess = E_p[s] -
    max_logit, kept relative to the maximum so that large logits lose no digits; visible: number of visible keys;
    argmax: position of the best key; entropy; expected_logit_var; collision = sum p^2; logit_mean, logit_var: over
    visible keys, each counted once; sink_mass: p on the first keys; distance: E_p|i - j|.
    sink: logit of the extra option, broadcastable to (…, H, L); applied when the summary is read, never inside it.
    hard: temperature 0, where p is shared by the keys of highest score. dtype: of `value`.
    derived: statistics that follow from the fields above, where whatever made those computed them too.
    """

    average: Tensor
    max_logit: Tensor
    log_z: Tensor
    visible: Tensor
    argmax: Tensor | None = None
    excess: Tensor | None = None
    entropy: Tensor | None = None
    expected_logit_var: Tensor | None = None
    collision: Tensor | None = None
    logit_mean: Tensor | None = None
    logit_var: Tensor | None = None
    sink_mass: Tensor | None = None
    distance: Tensor | None = None
    sink: Tensor | None = None
    hard: bool = False
    dtype: torch.dtype = torch.float32
    derived: dict[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        kept = ", ".join(x.name for x in fields(self) if isinstance(getattr(self, x.name), Tensor))
        return f"Summary(value {tuple(self.average.shape)}; {kept})"

    @property
    def value(self) -> Tensor:
        """(…, H, L, Ev) what the lookup returns: E_p[v], times 1 - sink_weight where there is a sink."""
        value = self.average
        if self.sink is not None:
            value = value * torch.sigmoid(self._margin()).unsqueeze(-1)
        return value.to(self.dtype)

    @property
    def logsumexp(self) -> Tensor:
        """(…, H, L) log-normalizer of the scores, -inf for an empty row (in hard retrieval its limit, the maximum)."""
        return self.max_logit if self.hard else self.max_logit + self.log_z

    @cached_property
    def _some(self) -> Tensor:
        """(…, H, L) where anything is visible."""
        return self.visible > 0

    def _margin(self) -> Tensor:
        """lse - sink, finite also for an empty row or a sink of -inf."""
        assert self.sink is not None
        low = torch.finfo(self.log_z.dtype).min / 4
        return self.logsumexp.clamp(min=2 * low) - self.sink.clamp(min=3 * low)

    @overload
    def stats(self, name: str, /) -> Tensor: ...

    @overload
    def stats(self) -> Stats: ...

    @overload
    def stats(self, name: str, other: str, /, *more: str) -> Stats: ...

    def stats(self, *names: str) -> Tensor | Stats:
        """The statistics of these names (all that were kept if none is given): a tensor for one name, else `Stats`."""
        if len(names) == 1:
            chosen(names)
            return self._read(names[0])
        wanted = chosen(names) if names else tuple(n for n in CHEAP if getattr(self, source(n)) is not None)
        return Stats({name: self._read(name) for name in wanted})

    def _read(self, name: str) -> Tensor:
        if name == "received":
            raise SoftlookupError("received: expected softlookup.received(query, key), got a summary, which is per query")
        if getattr(self, source(name)) is None:
            raise SoftlookupError(f"{name}: expected to be asked for when the summary was made, stats=(…, {name!r})")
        if name in self.derived:
            return self.derived[name]
        some = self._some
        match name:
            case "max_weight":
                return torch.where(some, torch.exp(-self.log_z.detach()), 0)
            case "expected_logit":
                assert self.excess is not None
                return torch.where(some, self.max_logit, 0) + self.excess
            case "entropy_ratio":
                assert self.entropy is not None
                count = self.visible.clamp(min=2).to(self.log_z.dtype)
                return torch.where(self.visible > 1, self.entropy / count.log(), 0)
            case "effective_keys":
                assert self.collision is not None
                return torch.where(some, 1 / torch.where(some, self.collision, 1), 0)
            case "jacobian_trace":
                assert self.collision is not None
                return torch.where(some, 1 - self.collision, 0)
            case "support":
                return self.log_z.detach().exp().round().long() * some if self.hard else self.visible
            case "total_weight":
                return torch.where(some, 1 - self._read("sink_weight"), 0)
            case "threshold":
                return self.logsumexp
            case "sink_weight":
                if self.sink is None:
                    return torch.zeros_like(self.log_z)
                return torch.sigmoid(-self._margin())
        return getattr(self, name)


def merge_two(a: Summary, b: Summary) -> Summary:
    """The summary over the union of two disjoint key sets."""
    m = torch.maximum(a.max_logit, b.max_logit)
    some_a, some_b = a.visible > 0, b.visible > 0
    drop_a, drop_b = (_drop(x, m) for x in (a, b))
    log_z = torch.where(some_a | some_b, torch.logaddexp(a.log_z + drop_a, b.log_z + drop_b), 0)
    # log of each side's share of the mixture; an empty side has share exactly 0.
    log_a, log_b = a.log_z + drop_a - log_z, b.log_z + drop_b - log_z
    w_a, w_b = torch.where(some_a, log_a.exp(), 0), torch.where(some_b, log_b.exp(), 0)

    def pair(name: str) -> tuple[Tensor, Tensor] | None:
        x, y = getattr(a, name), getattr(b, name)
        return None if x is None or y is None else (x, y)

    merged: dict[str, Any] = dict.fromkeys(_OPTIONAL)
    for name in ("sink_mass", "distance"):
        if (sides := pair(name)) is not None:
            merged[name] = w_a * sides[0] + w_b * sides[1]
    if (sides := pair("excess")) is not None:
        low = torch.finfo(log_z.dtype).min / 4
        e_a, e_b = (x + drop.clamp(min=low) for x, drop in zip(sides, (drop_a, drop_b), strict=True))
        merged["excess"] = w_a * e_a + w_b * e_b
        if (variances := pair("expected_logit_var")) is not None:
            spread = torch.where(some_a & some_b & (w_a * w_b > 0), e_a - e_b, 0).square()
            merged["expected_logit_var"] = w_a * variances[0] + w_b * variances[1] + w_a * w_b * spread
    if (sides := pair("entropy")) is not None:
        inside = w_a * sides[0] + w_b * sides[1]
        merged["entropy"] = inside - w_a * torch.where(w_a > 0, log_a, 0) - w_b * torch.where(w_b > 0, log_b, 0)
    if (sides := pair("collision")) is not None:
        merged["collision"] = w_a.square() * sides[0] + w_b.square() * sides[1]
    if (sides := pair("logit_mean")) is not None:
        count_a, count_b = a.visible.to(log_z.dtype), b.visible.to(log_z.dtype)
        share = count_b / (count_a + count_b).clamp(min=1)
        delta = torch.where(some_a & some_b, sides[1] - sides[0], 0)
        merged["logit_mean"] = torch.where(some_a, sides[0] + delta * share, sides[1])
        if (variances := pair("logit_var")) is not None:
            within = variances[0] * (1 - share) + variances[1] * share
            merged["logit_var"] = within + delta.square() * share * (1 - share)
    if (sides := pair("argmax")) is not None:
        # The lowest position on ties; an empty side has none (-1).
        first = some_a & ((sides[0] < sides[1]) | ~some_b)
        take_a = (a.max_logit > b.max_logit) | ((a.max_logit == b.max_logit) & first) | a.max_logit.isnan()
        merged["argmax"] = torch.where(take_a, *sides)
    average = w_a.unsqueeze(-1) * a.average + w_b.unsqueeze(-1) * b.average
    return replace(a, average=average, max_logit=m, log_z=log_z, visible=a.visible + b.visible, derived={}, **merged)


_OPTIONAL = "argmax excess entropy expected_logit_var collision logit_mean logit_var sink_mass distance".split()


def _drop(side: Summary, m: Tensor) -> Tensor:
    """max_logit - m <= 0, by which a side's weights shrink; very negative (never -inf - -inf) for an empty side."""
    low = torch.finfo(m.dtype).min / 2
    gap = torch.where(side.visible > 0, side.max_logit - torch.where(m.isneginf(), 0, m), low)
    if side.hard:
        gap = torch.where(gap == 0, gap, low)
    return gap.detach()


def merge_all(parts: Sequence[Summary]) -> Summary:
    """Merge by halves, so that rounding grows with the logarithm of the number of parts."""
    if len(parts) <= 2:
        return reduce(merge_two, parts)
    half = len(parts) // 2
    return merge_two(merge_all(parts[:half]), merge_all(parts[half:]))


def map_tensors(summary: Summary, function: Callable[[Tensor, int], Tensor]) -> Summary:
    """The summary with `function(tensor, trailing)` applied to each row tensor; trailing is 1 for `average`, else 0."""
    derived = {name: function(x, 0) for name, x in summary.derived.items()}
    return replace(summary, **mapped(summary, function), derived=derived)


def mapped(thing: Any, function: Callable[[Tensor, int], Tensor]) -> dict[str, Any]:
    """Every field of a dataclass that is a tensor, with the function applied as `map_tensors` has it."""
    changed: dict[str, Any] = {}
    for each in fields(thing):
        value = getattr(thing, each.name)
        if isinstance(value, Tensor) and each.name != "sink":
            changed[each.name] = function(value, int(each.name == "average"))
    return changed


def pick_rows(summary: Summary, rows: Tensor) -> Summary:
    """Those of some queries, by index."""
    return map_tensors(summary, lambda x, trailing: x.index_select(-1 - trailing, rows))


def join_rows(parts: Sequence[Summary]) -> Summary:
    """One summary of the queries of all, which were asked the same."""
    return _together(parts, lambda tensors, dim: torch.cat(tensors, dim))


def put_rows(into: Summary, rows: Tensor, what: Summary) -> Summary:
    """`into`, but for the queries at index `rows` what `what` says of them."""
    return _together([into, what], lambda tensors, dim: tensors[0].index_copy(dim, rows, tensors[1]))


def _together(parts: Sequence[Summary], function: Callable[[list[Tensor], int], Tensor]) -> Summary:
    """A summary of the results of `function(tensors, dimension of queries)` on each field that all parts have."""
    changed: dict[str, Any] = {"derived": {}}
    for each in fields(Summary):
        tensors = [getattr(part, each.name) for part in parts]
        if all(isinstance(x, Tensor) for x in tensors) and each.name != "sink":
            changed[each.name] = function(tensors, -2 if each.name == "average" else -1)
    return replace(parts[0], **changed)
