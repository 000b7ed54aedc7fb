"""One way in: whatever the user said becomes one validated problem in canonical form,

    s_ij = ( form(query_i, key_j) + bias_h(i, j) ) / temperature        over the keys that the mask leaves visible,

with four-dimensional tensors. Engines see nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor

from .biases import Bias, DenseBias
from .errors import SoftlookupError, whole
from .masks import Dense, Everything, Mask, MaskFunction, NotHidden, describe, hidden
from .normalizers import Normalizer, Softmax, Threshold
from .scores import AdditiveForm, Form, Pairwise, Product, Score
from .tile import Place

MOST_ELEMENTS = 2**31


@dataclass(frozen=True)
class Dropout:
    """Weights are dropped with probability p and the rest divided by 1 - p; which ones is a hash of seed and place."""

    p: float
    seed: int


@dataclass(frozen=True, eq=False)
class Problem:
    """A lookup in canonical form.

    form: queries (B, H, L, E), keys (B, Hkv, S, E) and how they score; value: (B, Hkv, S, Ev);
    mask, biases: what is visible and what is added, by absolute position; place: where queries and keys stand;
    temperature: a float, or a tensor broadcastable to (B, H, L, 1); rule: how scores become weights, and its tensors,
    broadcastable to (B, H, L, 1); None is softmax; first_key: position of the first real key, an int or (B,);
    sinks: how many keys from there on count as sinks; needs: the optional Summary fields to compute.
    """

    form: Form
    value: Tensor
    mask: Mask
    biases: tuple[Bias, ...]
    place: Place
    temperature: float | Tensor = 1.0
    rule: Threshold | None = None
    parameters: tuple[Tensor, ...] = ()
    dropout: Dropout | None = None
    first_key: int | Tensor = 0
    sinks: int = 1
    needs: frozenset[str] = frozenset()

    @property
    def query(self) -> Tensor:
        return self.form.query

    @property
    def key(self) -> Tensor:
        return self.form.key

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def hard(self) -> bool:
        """Temperature 0: p is shared by the keys of highest score."""
        return not isinstance(self.temperature, Tensor) and self.temperature == 0

    @property
    def accumulate(self) -> torch.dtype:
        """The dtype of scores and statistics: float64 for float64 inputs, else float32."""
        return torch.float64 if self.value.dtype == torch.float64 else torch.float32

    def tensors(self) -> list[Tensor]:
        """Every tensor a gradient can reach, in a fixed order: query, key, value, temperature, rule's, form's, biases'."""
        extra = [*([self.temperature] if isinstance(self.temperature, Tensor) else []), *self.parameters]
        match self.form:
            case Product(key_bias=key_bias):
                extra += [] if key_bias is None else [key_bias]
            case AdditiveForm(weight=weight):
                extra.append(weight)
            case Pairwise(score=score):
                extra += score.tensors()
        return [self.query, self.key, self.value, *extra, *(bias.tensor for bias in self.biases)]

    def with_tensors(self, tensors: list[Tensor]) -> Problem:
        """The same problem over other tensors, in the order of `tensors()`; a Pairwise score keeps its own."""
        rest = iter(tensors)
        query, key, value = next(rest), next(rest), next(rest)
        temperature = next(rest) if isinstance(self.temperature, Tensor) else self.temperature
        parameters = tuple(next(rest) for _ in self.parameters)
        form: Form
        match self.form:
            case Product(key_bias=key_bias):
                form = replace(self.form, query=query, key=key, key_bias=None if key_bias is None else next(rest))
            case AdditiveForm():
                form = replace(self.form, query=query, key=key, weight=next(rest))
            case Pairwise(score=score):
                form = replace(self.form, query=query, key=key)
                for _ in score.tensors():
                    next(rest)
        biases = tuple(bias.with_tensor(next(rest)) for bias in self.biases)
        return replace(self, form=form, value=value, temperature=temperature, parameters=parameters, biases=biases)


@dataclass(frozen=True)
class Shapes:
    """How the user's tensors looked: leading dimensions, and whether there was a head dimension."""

    lead: tuple[int, ...]
    heads: int
    headless: bool

    @property
    def canonical(self) -> bool:
        """True where the user's shapes are the engines'."""
        return len(self.lead) == 1 and not self.headless

    def restore(self, tensor: Tensor, trailing: int = 0) -> Tensor:
        """(B, H, L, …) back to (…, H, L, …) with `trailing` dimensions after L."""
        rest = tensor.shape[2:]
        return tensor.reshape(*self.lead, *(() if self.headless else (tensor.shape[1],)), *rest)


def flatten(query: Tensor, key: Tensor, value: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Shapes]:
    """Check shapes, dtypes and devices; give four-dimensional (B, H, L, E), (B, Hkv, S, E'), (B, Hkv, S, Ev)."""
    named = {"query": query, "key": key} | ({} if value is None else {"value": value})
    for name, t in named.items():
        if not isinstance(t, Tensor):
            raise SoftlookupError(f"{name}: expected a torch tensor, got {describe(t)}")
        if not t.is_floating_point() or t.dtype.itemsize < 2:
            raise SoftlookupError(f"{name}: expected float64, float32, bfloat16 or float16, got {describe(t)}")
        if t.ndim < 2:
            raise SoftlookupError(f"{name}: expected at least 2 dimensions (…, length, width), got {describe(t)}")
        if t.shape[-2] == 0 or t.shape[-1] == 0 or t.numel() == 0:
            raise SoftlookupError(f"{name}: expected every dimension to be at least 1, got shape {tuple(t.shape)}")
        if t.numel() >= MOST_ELEMENTS:
            raise SoftlookupError(f"{name}: expected fewer than 2^31 elements, got {t.numel()} in {tuple(t.shape)}")
        if t.dtype != query.dtype:
            raise SoftlookupError(f"{name}: expected the query's dtype {query.dtype}, got {t.dtype}")
        if t.device != query.device:
            raise SoftlookupError(f"{name}: expected the query's device {query.device}, got {t.device}")
    if value is not None and key.shape[-2] != value.shape[-2]:
        raise SoftlookupError(f"value: expected as many rows as there are keys, {key.shape[-2]}, got {value.shape[-2]}")
    headless = query.ndim == 2
    if headless and max(t.ndim for t in named.values()) > 2:
        raise SoftlookupError(f"query: expected as many dimensions as the key's {key.ndim}, got 2")
    four = [t if t.ndim > 2 else t[None] for t in named.values()]
    heads, kv_heads = four[0].shape[-3], four[1].shape[-3]
    if value is not None and four[2].shape[-3] != kv_heads:
        raise SoftlookupError(f"value: expected the key's {kv_heads} heads, got {four[2].shape[-3]}")
    if heads % kv_heads:
        raise SoftlookupError(f"key: expected a number of heads that divides the query's {heads}, got {kv_heads}")
    leads = [t.shape[:-3] for t in four]
    try:
        lead = leads[0] if all(x == leads[0] for x in leads) else torch.broadcast_shapes(*leads)
    except RuntimeError:
        got = ", ".join(str(tuple(t.shape)) for t in named.values())
        raise SoftlookupError(f"query, key, value: expected leading dimensions that broadcast, got {got}") from None
    batch = math.prod(lead)
    widest = max(batch * math.prod(t.shape[-3:]) for t in four)
    if value is not None:
        widest = max(widest, batch * heads * query.shape[-2] * value.shape[-1])
    if widest >= MOST_ELEMENTS:
        got = ", ".join(str(tuple(t.shape)) for t in named.values())
        raise SoftlookupError(f"query, key, value: expected fewer than 2^31 elements together, got {widest} of {got}")
    flat = [t if t.shape[:-3] == (batch,) else t.expand(*lead, *t.shape[-3:]).reshape(batch, *t.shape[-3:]) for t in four]
    return flat[0], flat[1], (flat[2] if value is not None else None), Shapes(tuple(lead), heads, headless)


def same_length(query: Tensor, **others: Tensor) -> None:
    """Raise unless there are as many of the others as queries, (…, L, width), so that each has its own place."""
    for name, x in others.items():
        if x.shape[-2] != query.shape[-2]:
            raise SoftlookupError(f"causal: expected as many {name} as queries, {query.shape[-2]}, got {x.shape[-2]}")


def place_of(queries: int, keys: int, query_offset: int | Tensor | None, key_offset: int, total: int | None) -> Place:
    """The place of L queries and S keys in the whole; queries are right-aligned with the whole's keys by default."""
    total_keys = keys + key_offset if total is None else int(total)
    if key_offset < 0 or key_offset + keys > total_keys:
        raise SoftlookupError(
            f"key_offset: expected 0 <= key_offset and key_offset + {keys} keys <= total_keys {total_keys}, got {key_offset}"
        )
    if isinstance(query_offset, Tensor) and query_offset.ndim:
        if tuple(query_offset.shape) != (queries,) or query_offset.is_floating_point():
            raise SoftlookupError(f"query_offset: expected an int or int ({queries},), got {describe(query_offset)}")
        return Place(query_offset.long(), key_offset, total_keys)
    return Place(total_keys - queries if query_offset is None else whole("query_offset", query_offset), key_offset, total_keys)


def canonical_mask(mask: Mask | Tensor | Callable | None, shapes: Shapes) -> tuple[Mask, DenseBias | None]:
    """What a `mask=` argument hides, and what it adds to the scores (a float tensor does both)."""
    if mask is None:
        return Everything(), None
    if isinstance(mask, Mask):
        several = len(shapes.lead) > 1
        return (mask.spread(lambda x: four_dimensional("mask", x, shapes)) if several else mask), None
    if isinstance(mask, Tensor):
        if mask.dtype == torch.bool:
            return Dense(four_dimensional("mask", mask, shapes)), None
        if mask.is_floating_point():
            return canonical_bias("mask", mask, shapes)
    elif callable(mask) and not isinstance(mask, type):
        return MaskFunction(mask), None
    raise SoftlookupError(
        "mask: expected a Mask, a boolean tensor (True = visible), a float tensor (added) or a function (b, h, i, j), "
        f"got {describe(mask)}"
    )


def canonical_bias(what: str, bias: Tensor, shapes: Shapes) -> tuple[Mask, DenseBias]:
    """A float tensor as a bias, with the mask of the entries that mean "hidden" (<= finfo.min/2)."""
    bias = four_dimensional(what, bias, shapes)
    hides = bool(hidden(bias.detach().amin()))
    return (NotHidden(bias.detach()) if hides else Everything()), DenseBias(bias)


def four_dimensional(what: str, tensor: Tensor, shapes: Shapes) -> Tensor:
    """A tensor broadcastable to (…, H, L, S) as one broadcastable to (B, H, L, S)."""
    if shapes.headless and tensor.ndim > 2:
        raise SoftlookupError(f"{what}: expected at most 2 dimensions (L, S) as query and key have 2, got {describe(tensor)}")
    if tensor.ndim <= (4 if len(shapes.lead) <= 1 else 3):
        return tensor[(None,) * (4 - tensor.ndim)]
    try:
        return tensor.expand(*shapes.lead, *tensor.shape[-3:]).reshape(-1, *tensor.shape[-3:])
    except RuntimeError:
        raise SoftlookupError(
            f"{what}: expected a shape that broadcasts to {(*shapes.lead, shapes.heads)} + (L, S), got {tuple(tensor.shape)}"
        ) from None


def build(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    *,
    score: Score,
    mask: Mask | Tensor | Callable | None = None,
    bias: Bias | Tensor | None = None,
    normalizer: Normalizer | None = None,
    scale: float | Tensor | None = None,
    dropout: Dropout | None = None,
    place: Callable[[int, int], Place],
    visible_counts: Callable[[Problem], Tensor],
    needs: frozenset[str] = frozenset(),
    sinks: int = 1,
) -> tuple[Problem, Tensor | None, Shapes]:
    """Validate everything once and lower the score: (problem, per-query shift of the logits or None, the user's shapes)."""
    query, key, value, shapes = flatten(query, key, value)
    (batch, heads, length, _), keys = query.shape, key.shape[-2]
    if not isinstance(score, Score):
        raise SoftlookupError(f"score: expected a Score, such as ScaledDot(), got {describe(score)}")
    normalizer = Softmax() if normalizer is None else normalizer
    if not isinstance(normalizer, Normalizer):
        raise SoftlookupError(f"normalizer: expected a Normalizer, such as Softmax(), got {describe(normalizer)}")
    normalizer.check(batch, heads, length)
    rule = normalizer if isinstance(normalizer, Threshold) else None
    for name, tensor in (("mask", mask), ("bias", bias)):
        if isinstance(tensor, Tensor) and tensor.device != query.device:
            raise SoftlookupError(f"{name}: expected the query's device {query.device}, got {tensor.device}")
    where = place(length, keys)
    seen, mask_bias = canonical_mask(mask, shapes)
    biases: list[Bias] = [] if mask_bias is None else [mask_bias]
    if isinstance(bias, Bias):
        biases.append(bias)
    elif isinstance(bias, Tensor) and bias.is_floating_point():
        hides, dense = canonical_bias("bias", bias, shapes)
        seen = seen if isinstance(hides, Everything) else seen & hides
        biases.append(dense)
    elif bias is not None:
        raise SoftlookupError(f"bias: expected a float tensor, ALiBi or RelativeTable, got {describe(bias)}")
    seen.check(batch, heads, length, where.total_keys)
    seen.check_positions(*where.ends(length))
    for each in biases:
        each.check(batch, heads, length, where.total_keys)
    if not isinstance(sinks, int) or sinks < 1:
        raise SoftlookupError(f"sinks: expected a number of keys of at least 1, got {sinks}")
    if "distance" in needs and not isinstance(where.queries, Tensor) and where.queries < 0:
        raise SoftlookupError(
            f"distance: expected self-attention, got {length} queries and {where.total_keys} keys (no common positions): "
            "name the other statistics, or say where they stand by query_offset and total_keys"
        )

    bad_query = bad_key = None
    clean_query, clean_key = query, key
    if not score.hands_on() or isinstance(scale, Tensor):
        (clean_query, bad_query), (clean_key, bad_key) = scrub(query), scrub(key)
    form = score.lower(clean_query, clean_key)
    check_form(form, score, batch, heads, length, keys)
    form, shift = settle(form, scale, score, heads)
    if value is None:
        value = form.key.new_zeros((batch, form.key.shape[1], keys, 1), dtype=query.dtype)
    if form.key.shape[1] != value.shape[1]:
        value = value.repeat_interleave(form.key.shape[1] // value.shape[1], 1)
    problem = Problem(
        form=form,
        value=value,
        mask=seen,
        biases=tuple(biases),
        place=where,
        temperature=normalizer.per_row(),
        rule=rule,
        parameters=() if rule is None else rule.parameters_per_row(),
        dropout=dropout,
        first_key=seen.first_key(),
        sinks=sinks,
        needs=needs,
    )
    if isinstance(form, Product) and form.ssmax is not None:
        counts = visible_counts(problem).clamp(min=1).to(problem.accumulate)
        kappa = per_head(form.ssmax, "ssmax", heads, counts)
        problem = replace(problem, form=replace(form, query=form.query * (kappa * counts.log())[..., None], ssmax=None))
    if bad_query is not None or bad_key is not None:
        problem = replace(problem, form=soil(problem.form, bad_query, bad_key))
    return problem, shift, shapes


def check_form(form: Form, score: Score, batch: int, heads: int, length: int, keys: int) -> None:
    """Raise unless what a score was lowered to has the shapes that engines count on."""
    query, key = tuple(form.query.shape), tuple(form.key.shape)
    good = query[:3] == (batch, heads, length) and (key[0], key[2]) == (batch, keys) and heads % key[1] == 0
    name = type(score).__name__
    if not good or (isinstance(form, Product) and query[3] != key[3]):
        want = f"query ({batch}, {heads}, {length}, E) and key ({batch}, Hkv, {keys}, E)"
        raise SoftlookupError(f"{name}.lower: expected {want}, got {query} and {key}")
    bias = form.key_bias if isinstance(form, Product) else None
    if bias is not None and tuple(bias.shape) != (batch, heads, keys):
        raise SoftlookupError(f"{name}.lower: expected key_bias of shape {(batch, heads, keys)}, got {tuple(bias.shape)}")


def scrub(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Non-finite rows replaced by 0, and where they were (None if nowhere, which a graph cannot know).

    A row whose squares overflow is one too.

    Lowering and its gradient must not mix a bad row into others (0 * NaN is NaN); the rows are marked again afterwards.
    """
    norms = row_norms(x.detach())
    if not torch.compiler.is_compiling() and math.isfinite(norms.max()):
        return x, None
    bad = ~norms.isfinite()
    return x.masked_fill(bad, 0), bad


def row_norms(x: Tensor) -> Tensor:
    """(…, 1) norm of each row, in at least float32."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32 if x.dtype.itemsize < 4 else None)


def soil(form: Form, bad_query: Tensor | None, bad_key: Tensor | None) -> Form:
    """Mark the bad rows of a lowered form with NaN again, without a gradient of their own."""
    query, key = form.query, form.key
    if bad_query is not None:
        query = query.masked_fill(bad_query, math.nan)
    if bad_key is not None:
        key = key.masked_fill(bad_key.repeat_interleave(key.shape[1] // bad_key.shape[1], 1), math.nan)
    return replace(form, query=query, key=key)


def settle(form: Form, scale: float | Tensor | None, score: Score, heads: int) -> tuple[Form, Tensor | None]:
    """Fold what is per head or per query into the query, so that engines see a float scale; split off the shift."""
    if scale is not None and not (score.takes_scale and isinstance(form, Product)):
        raise SoftlookupError(f"scale: expected None, as {type(score).__name__} has no product to scale, got {scale}")
    if not isinstance(form, Product):
        return form, None
    scale = form.scale if scale is None else scale
    shift = form.shift
    if isinstance(scale, Tensor):
        query = form.query * per_head(scale, "scale", heads, form.query)[..., None]
        return replace(form, query=query, scale=1.0, shift=None), shift
    if not isinstance(scale, Real) or not math.isfinite(scale):
        raise SoftlookupError(f"scale: expected a finite number, got {scale!r}")
    if shift is None and scale is form.scale:
        return form, None
    return replace(form, scale=float(scale), shift=None), shift


def per_head(x: float | Tensor, what: str, heads: int, like: Tensor) -> Tensor:
    """A number or a tensor () or (H,) as (1 or H, 1), in at least float32."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    x = torch.as_tensor(x, device=like.device).to(dtype)
    if tuple(x.shape) not in {(), (heads,)}:
        raise SoftlookupError(f"{what}: expected a number or a tensor of shape ({heads},), got {tuple(x.shape)}")
    return x.reshape(-1, 1)
