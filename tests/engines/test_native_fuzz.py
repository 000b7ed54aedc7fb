"""The native engine against the float64 oracle on lookups that hypothesis makes up, within what rounding in float32 allows.

`SOFTLOOKUP_FUZZ=5000 pytest tests/engines/test_native_fuzz.py` tries 5000 of them, others than in the normal run. A failure
prints its `Spec`; `check(Spec(...))` runs it again.

**The rule.** Scores are products, so one is off by no more than e_ij = u (4 + sqrt(width)) times the sum of its terms'
magnitudes (u = 2^-24; rounding errors of a sum of n terms add up like sqrt(n), Higham & Mary 2019), and slightly more by
what is added to it. With e the largest of a row, weights are off by a factor of exp(2 e). Terms of a sum over keys or queries
may be alike, and then errors add up one by one: it is off by g = u (8 + min(n, 8 sqrt(n))) of its terms' magnitudes, and a
quotient of two by 2 g. `Allowed` says what that makes of each statistic and each gradient, entry by entry, from the oracle's
own weights: nothing is measured against the largest entry of a tensor, nor against another engine.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import softlookup as sl
from softlookup.engines import library, reference
from softlookup.engines.dropout import kept
from softlookup.masks import Dense
from softlookup.problem import Problem
from softlookup.scores import SoftCap
from softlookup.summary import CHEAP

pytestmark = pytest.mark.skipif(library.load()[0] is None, reason=f"no native engine: {library.load()[1]}")

MORE = int(os.environ.get("SOFTLOOKUP_FUZZ", 0))
DIFFERENTIABLE = [name for name in CHEAP if name not in ("max_logit", "max_weight", "argmax", "visible")]
FIELDS = "average log_z excess entropy expected_logit_var collision logit_mean logit_var sink_mass distance".split()
U = 2.0**-24
SMALLEST, TINY = 2.0**-149, 2.0**-126
"""Between denormal numbers lies SMALLEST, whatever their size; the other numbers are at least TINY."""
SSMAX = 0.3
Tree = tuple
"""A mask as data: ("causal",), ("window", 5), ("and", tree, tree), …; () is no mask at all."""


@dataclass(frozen=True)
class Spec:
    """All that a lookup is made from; the defaults are the plainest one."""

    batch: int = 1
    kv_heads: int = 1
    group: int = 1
    queries: int = 3
    keys: int = 3
    width: int = 4
    value_width: int = 4
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    size: tuple[float, float, float] = (1.0, 1.0, 1.0)
    whole: bool = False
    score: str = "scaled"
    scale: float | None = None
    mask: Tree = ()
    bias: str = ""
    temperature: float = 1.0
    temperatures: str = ""
    sink: str = ""
    sinks: int = 1
    dropout: float = 0.0
    query_offset: int | None = None
    cuts: tuple[int, ...] = ()
    spoil: str = ""
    garbage: float = math.nan
    names: tuple[str, ...] = CHEAP
    received: bool = False
    loss: str = "all"
    threads: int = 2
    seed: int = 0

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group


# ---- a lookup from its spec ------------------------------------------------------------------------------------------


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers in another order in memory."""
    match layout:
        case "transposed":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        case "packed":
            return torch.cat([x * math.nan, x, x * math.nan], -1)[..., x.shape[-1] : 2 * x.shape[-1]]
        case "stepped":
            room = torch.full((2 * x.shape[0], 3 * x.shape[1], 2 * x.shape[2], x.shape[3]), math.nan, dtype=x.dtype)
            view = room[1::2, ::3, 1::2]
            view.copy_(x)
            return view
        case "columns":
            return x.mT.contiguous().mT
        case "expanded":
            return x[:1].expand(x.shape)
    return x


def inputs(spec: Spec) -> list[Tensor]:
    """Query, key and value."""
    make = torch.Generator().manual_seed(spec.seed)
    tensors = []
    for heads, length, width, size in zip(
        (spec.heads, spec.kv_heads, spec.kv_heads),
        (spec.queries, spec.keys, spec.keys),
        (spec.width, spec.width, spec.value_width),
        spec.size,
        strict=True,
    ):
        x = torch.randn(spec.batch, heads, length, width, generator=make, dtype=torch.float64)
        x = x.clamp(-2, 2).round() if spec.whole else x
        tensors.append(laid_out((x * size).to(spec.dtype), spec.layout))
    return tensors


def mask_of(spec: Spec, tree: Tree):
    """The mask of a tree, in which numbers are parameters or seeds."""
    b, h, n, s = spec.batch, spec.heads, spec.queries, spec.keys
    make = torch.Generator().manual_seed(tree[1] if len(tree) > 1 and isinstance(tree[1], int) else 0)
    match tree:
        case ():
            return None
        case ("and", x, y):
            return mask_of(spec, x) & mask_of(spec, y)
        case ("or", x, y):
            return mask_of(spec, x) | mask_of(spec, y)
        case ("not", x):
            return ~mask_of(spec, x)
        case ("causal",):
            return sl.Causal()
        case ("window", width):
            return sl.Window(width)
        case ("dilated", rate):
            return sl.Dilated(rate)
        case ("prefix", length):
            return sl.Prefix(length)
        case ("lengths", _):
            return sl.Lengths(torch.randint(0, s + 1, (b,), generator=make))
        case ("padding", _):
            first, last = (torch.randint(0, s + 1, (b, 1), generator=make) for _ in range(2))
            return sl.Padding((torch.arange(s) >= torch.minimum(first, last)) & (torch.arange(s) < torch.maximum(first, last)))
        case ("documents", _):
            ids = torch.randint(0, 5, (b, s), generator=make).sort(-1).values
            apart = spec.query_offset is not None or n > s
            return sl.Documents(ids, torch.randint(0, 5, (b, n), generator=make).sort(-1).values if apart else None)
        case ("function", k):
            return sl.MaskFunction(lambda bb, hh, i, j: ((i + 3 * j + k * hh + bb) % 5 != 0) & (i + k >= j))
        case ("dense", k):
            shape = ((n, s), (b, h, n, s), (b, 1, 1, s), (1, h, n, 1), (1, 1, n, s))[k % 5]
            return Dense((torch.rand(shape, generator=make) > 0.4)[(None,) * (4 - len(shape))])
    raise AssertionError(tree)


def dense_bias(spec: Spec, make: torch.Generator) -> Tensor:
    b, h, n, s = spec.batch, spec.heads, spec.queries, spec.keys
    shape = ((n, s), (b, h, n, s), (b, 1, 1, s), (1, h, n, 1), (h, 1, 1))[spec.seed % 5]
    x = torch.randn(shape, generator=make) * 2
    return x.mT.contiguous().mT if spec.seed % 2 else x


def bandwidth(spec: Spec) -> float:
    """One at which distances are neither all alike nor beyond any float."""
    return max(*spec.size[:2], 1e-3) * math.sqrt(spec.width)


def arguments(spec: Spec, dtype: torch.dtype) -> tuple[dict, dict[str, Tensor]]:
    """What `attend` is given, and the learned tensors among it; float64 for the oracle."""
    make = torch.Generator().manual_seed(spec.seed + 1)
    learned: dict[str, Tensor] = {}
    scores = {
        "scaled": sl.ScaledDot,
        "dot": sl.Dot,
        "soft cap": lambda: sl.ScaledDot(softcap=3.0),
        "wide soft cap": lambda: sl.ScaledDot(softcap=40.0),
        "ssmax": lambda: sl.ScaledDot(ssmax=SSMAX),
        "gaussian": lambda: sl.Gaussian(bandwidth(spec)),
    }
    said: dict = {"score": scores[spec.score](), "mask": mask_of(spec, spec.mask)}
    for kind in spec.bias.split(" + "):
        dense = dense_bias(spec, make)
        hide = torch.rand(dense.shape, generator=make) < 0.3
        match kind:
            case "alibi":
                learned["bias"] = torch.rand(spec.heads, generator=make).to(dtype)
                said["bias"] = sl.ALiBi(learned["bias"])
            case "table" | "one-sided table":
                learned["bias"] = torch.randn(8, spec.heads, generator=make).to(dtype)
                said["bias"] = sl.RelativeTable(learned["bias"], bidirectional=kind == "table", max_distance=40)
            case "dense" | "dense that hides":
                learned["bias"] = dense.masked_fill(hide & (kind != "dense"), -math.inf).to(dtype)
                said["bias"] = learned["bias"]
            case "float mask":
                said["mask"] = dense.masked_fill(hide, torch.finfo(torch.float32).min)
    sink: Tensor | float | None = None
    if spec.sink == "learned":
        sink = learned["sink"] = torch.randn(spec.heads, generator=make).to(dtype)
    elif spec.sink:
        sink = float(spec.sink)
    temperature: Tensor | float = spec.temperature
    if spec.temperatures:
        shape = {"all": (), "heads": (spec.heads,), "rows": (spec.batch, 1, spec.queries)}[spec.temperatures]
        temperature = learned["temperature"] = (spec.temperature * (torch.rand(shape, generator=make) + 0.5)).to(dtype)
    said["normalizer"] = sl.Softmax(temperature=temperature, sink=sink)
    said |= {"scale": spec.scale, "query_offset": spec.query_offset, "sinks": spec.sinks}
    if spec.dropout:
        said |= {"dropout_p": spec.dropout, "seed": spec.seed}
    for t in learned.values():
        t.requires_grad_()
    return said, learned


def spoiled(spec: Spec, tensors: list[Tensor], visible: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs with what is not finite put into them, and what the oracle is given: the same, but without what is hidden."""
    given, clean = [laid_out(t.clone(), spec.layout) for t in tensors], [t.clone() for t in tensors]
    make = torch.Generator().manual_seed(spec.seed + 2)
    if spec.layout == "expanded" and spec.spoil:  # one entry of the batch stands for all
        given = [t.clone() for t in given]
    if spec.spoil == "hidden":
        unseen = ~visible.unflatten(1, (spec.kv_heads, spec.group)).any(2).any(2)
        some = unseen & (torch.rand(unseen.shape, generator=make) < 0.7)
        signs = torch.where(torch.rand(spec.width, generator=make) < 0.5, -1.0, 1.0)
        given[1][some] = (spec.garbage * signs).to(spec.dtype)
        given[2][some] = spec.garbage
    elif spec.spoil:
        which = ("query", "key", "value").index(spec.spoil)
        for x in (given[which], clean[which]):
            make.manual_seed(spec.seed + 2)
            rows = torch.rand(x.shape[:3], generator=make) < 2 / x.shape[2]
            x[..., spec.seed % x.shape[-1]][rows] = spec.garbage
    return given, clean


# ---- what rounding allows --------------------------------------------------------------------------------------------


def finite(x: Tensor) -> Tensor:
    """Magnitudes, with 0 for what is not finite: rows that see it are left out anyhow."""
    return torch.where(x.isfinite(), x.abs(), 0)


class Allowed:
    """How far from the oracle a lookup in float32 may be, entry by entry; infinite for rows that are not finite."""

    def __init__(self, spec: Spec, problem: Problem, shift: Tensor | None):
        self.spec, self.problem, self.tile = spec, problem, reference.whole(problem)
        self.added = torch.zeros(()) if shift is None else shift.abs().unsqueeze(-1)
        s, self.visible = reference.scores(problem, self.tile)
        self.n = self.visible.sum(-1, keepdim=True).clamp(min=1)
        self.m = s.masked_fill(~self.visible, -math.inf).amax(-1, keepdim=True)
        self.m = self.m.masked_fill(self.m == -math.inf, 0)
        self.s, self.t = s, torch.where(self.visible, s - self.m, 0)
        weights = torch.where(self.visible, self.t.exp(), 0)
        self.p = torch.where(self.visible, weights / weights.sum(-1, keepdim=True).clamp(min=1), 0)
        self.e, self.error_of_products, self.slope = self._scores()
        self.kept: Tensor | float = 1.0
        if problem.dropout is not None:
            keep = reference._unfold(kept(problem.dropout, self.tile), self.tile, self.p.shape)
            self.kept = keep / max(1 - problem.dropout.p, U)
        self.longest = max(spec.queries * spec.group, spec.keys, spec.width, spec.value_width)
        self.sum = U * (8 + min(self.longest, 8 * math.sqrt(self.longest)))
        # Weights below e^-43 count for nothing where the streaming engine takes over.
        self.least = 2 * math.exp(-43 if spec.spoil else -87)
        self.shift = torch.zeros_like(self.e)
        if shift is not None:
            self.shift = (self._dot() * (self.added + TINY) + self._squares()) / problem.temperature
        if spec.cuts:  # parts weigh against each other
            self.e, self.sum = self.e + self.shift, 2 * self.sum
        self.factor = torch.expm1(2 * self.e) + 2 * self.sum
        if spec.sink:
            self.factor = self.factor + torch.expm1(self.e + self.sum + self.shift)

    def _dot(self) -> float:
        return U * (4 + math.sqrt(self.spec.width))

    def _squares(self) -> float:
        """Of denormal squares, that are multiplied by a precision."""
        return 8 * SMALLEST * self.spec.width / bandwidth(self.spec) ** 2

    def _scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows' largest error of a score; errors of products before a soft cap; the soft cap's largest slopes."""
        form, tau = self.problem.form, self.problem.temperature
        query, key = (torch.where(t.isfinite(), t, 0) for t in (form.query, form.key.repeat_interleave(self.spec.group, 1)))
        x, size = form.scale * query @ key.mT, (abs(form.scale) * query.abs() + TINY) @ (key.abs() + TINY).mT
        if form.key_bias is not None:
            x, size = x + form.key_bias.unsqueeze(-2), size + form.key_bias.abs().unsqueeze(-2) + self._squares() / self._dot()
        error, slope = self._dot() * size + SMALLEST * (self.spec.width + 8), torch.ones_like(x)
        of_products = error
        if isinstance(form.pointwise, SoftCap):
            slope = form.pointwise.slope((x.abs() - error).clamp(min=0))
            error = slope * error + 4 * U * form.pointwise(x.clone()).abs() + 8 * SMALLEST * form.pointwise.cap
        for bias in self.problem.biases:
            error = error + 4 * U * reference._unfold(bias.block(self.tile), self.tile, x.shape).abs()
        error = error / tau + 2 * U * self.s.abs() + 8 * SMALLEST
        return torch.where(self.visible, error, 0).amax(-1, keepdim=True), of_products, slope

    def mean(self, x: Tensor) -> Tensor:
        """E_p[x]."""
        return (self.p * x).sum(-1, keepdim=True)

    def statistics(self, summary: sl.Summary) -> dict[str, Tensor]:
        """What each statistic and the value may be off by, (B, H, L) and (B, H, L, Ev)."""
        e, f, g, p, t, tile, n = self.e, self.factor, self.sum, self.p, self.t, self.tile, self.n
        mean = self.mean(t)
        spread, var = self.mean((t - mean).abs()), self.mean((t - mean).square())
        flat = torch.where(self.visible, self.s, 0).sum(-1, keepdim=True) / n
        off = torch.where(self.visible, self.s - flat, 0)
        flat_spread, flat_var = off.abs().sum(-1, keepdim=True) / n, off.square().sum(-1, keepdim=True) / n
        twice = torch.expm1(4 * e) + 3 * g
        collision, distance = p.square().sum(-1, keepdim=True), (tile.i - tile.j).abs().double()
        first = torch.as_tensor(self.problem.first_key).reshape(-1, 1, 1, 1)
        sinks = ((tile.j >= first) & (tile.j < first + self.problem.sinks)).double()
        least = self.least * n
        wanted = {
            "logsumexp": e + g + self.shift,
            "max_logit": e + self.shift,
            "max_weight": f * p.amax(-1, keepdim=True),
            "expected_logit": e + f * (1 + spread) + g * mean.abs() + self.shift,
            "expected_logit_var": 2 * e * spread + e * e + f * 2 * var + g * mean.square(),
            "entropy": f * spread + torch.expm1(2 * e).square() + g * (1 + mean.abs()),
            "logit_mean": e + g * flat_spread + self.shift,
            "logit_var": 2 * e * flat_spread + e * e + g * flat_var,
            "collision": twice * collision,
            "effective_keys": twice / collision.clamp(min=1e-300),
            "jacobian_trace": twice * collision + 2 * U,
            "sink_mass": f * self.mean(sinks) + least,
            "distance": f * self.mean(distance) + least * distance.amax(),
        }
        received = torch.where(self.visible, p * (f + g) + self.least, 0).nan_to_num(nan=math.inf)
        wanted["entropy_ratio"] = wanted["entropy"] / torch.log(n.clamp(min=2).double())
        value = finite(self.problem.value).repeat_interleave(self.spec.group, 1)
        weight = 1.0
        if summary.sink is not None:
            margin = torch.where(summary.visible > 0, summary._margin(), 0).unsqueeze(-1)
            weight = torch.where(summary.visible.unsqueeze(-1) > 0, torch.sigmoid(margin), 0)
            lse = self.e + g + self.shift + 4 * U * (margin.abs() + summary.sink.abs().unsqueeze(-1))
            wanted["sink_weight"] = torch.expm1(lse) * (1 - weight) + 2 * U
            f = f + torch.expm1(lse)
        else:
            wanted["sink_weight"] = torch.zeros_like(e)
        spread_out = 1 / max(1 - self.spec.dropout, U)
        of_value = weight * f * ((p * self.kept) @ value) + spread_out * least * value.amax(-2, keepdim=True) + 8 * SMALLEST * n
        half = torch.finfo(self.spec.dtype).eps if self.spec.dtype != torch.float32 else 0
        of_value = of_value + half * (summary.value.abs() + torch.finfo(torch.float16).smallest_normal)
        return {"value": of_value, "received": received.sum(-2)} | {
            name: x.squeeze(-1) + 8 * SMALLEST for name, x in wanted.items()
        }

    def gradients(
        self, summary: sl.Summary, up: dict[str, Tensor], learned: dict[str, Tensor], spoiled_rows: Tensor
    ) -> dict[str, Tensor]:
        """What each gradient may be off by; up: the gradients of the summary's fields."""
        spec, problem, p, t, f = self.spec, self.problem, self.p, self.t, self.factor
        up = {name: x.abs() if name == "average" else x.abs().unsqueeze(-1) for name, x in up.items()}
        if spec.sink:  # what it leaves to the value may vanish
            up["average"] = up["average"] + self.least / f
        query, key, value = (finite(x) for x in (problem.query, problem.key, problem.value))
        key, value = (x.repeat_interleave(spec.group, 1) for x in (key, value))
        mean, var = self.mean(t), self.mean((t - self.mean(t)).square())
        one = 1 + mean.abs() + (math.log(spec.keys) if spec.cuts else 0)  # a part's own mean is that far from its maximum
        far = t.abs() + one
        tile, none = self.tile, torch.zeros_like(p)
        inner = none + up["log_z"] + up["sink_weight"] + (up["excess"] + up["entropy"]) * far
        inner = inner + up["expected_logit_var"] * (2 * far.square() + var)
        inner = inner + 2 * up["collision"] * (p + p.square().sum(-1, keepdim=True))
        outer = (
            self.kept * (up["average"] @ value.mT)
            + up["distance"] * (tile.i - tile.j).abs()
            + up["sink_mass"]
            + up["received"].mT
        )
        largest = torch.where(self.visible, outer, 0).amax(-1, keepdim=True)  # a part's own mean may be that much
        inner = inner + outer + (largest if spec.cuts else self.mean(outer))
        flat = (up["logit_mean"] + 2 * up["logit_var"] * (far + (self.s - self.m).abs().amax(-1, keepdim=True))) / self.n
        heavy = p * torch.exp(2 * self.e) + self.least
        size = torch.where(self.visible, heavy * inner + flat, 0)
        weights = torch.where(self.visible, f * heavy + self.least, 0)
        final = (
            torch.where(self.visible, weights * inner + f * flat + SMALLEST * (spec.value_width + 8), 0) / problem.temperature
        )
        error = final
        if isinstance(problem.form.pointwise, SoftCap):
            error = final * self.slope
            steep = 8 * U + 2 * self.error_of_products / problem.form.pointwise.cap * self.slope
            error = error + torch.where(self.visible, size * steep, 0) / problem.temperature
        reached = spoiled_rows.unsqueeze(-1) & self.visible
        final, error, weights = (x.masked_fill(reached, math.inf) for x in (final, error, weights))
        query, key = query + TINY, key + TINY

        def of_keys(x: Tensor) -> Tensor:
            return x.unflatten(1, (spec.kv_heads, spec.group)).sum(2)

        scale = abs(problem.form.scale)
        out = {
            "query": scale * error @ key,
            "key": of_keys(scale * error.mT @ query),
            "value": of_keys((weights * self.kept).mT @ up["average"]),
        }
        precision = bandwidth(spec) ** -2
        shifts = up["log_z"] + up["excess"] + up["logit_mean"]  # the gradient of what is added to all logits of a row
        if spec.sink or spec.cuts:  # sums in which most cancels
            shifts = shifts + self.mean(inner) + (self.n * flat).amax(-1, keepdim=True)
        if spec.score == "gaussian":  # keys are also in their own bias, and queries in what is added
            out["query"] = precision * out["query"] + f * query * shifts / problem.temperature
            out["key"] = out["key"] + precision * of_keys(error.sum(-2).unsqueeze(-1) * key)
        if spec.score == "ssmax":
            out["query"] = out["query"] * SSMAX * self.n.log()
        of_all = math.inf if reached.any() else 0.0
        if "bias" in learned:
            bias = problem.biases[-1]
            grad = torch.zeros_like(bias.tensor)
            pairs = spec.batch * spec.queries * spec.keys
            sums = final + U * 8 * math.sqrt(pairs) * size / problem.temperature
            bias.pull(grad, sums.unflatten(1, (-1, spec.group)).flatten(0, 1), self.tile)
            out["bias"] = grad.abs().reshape(learned["bias"].shape) + of_all
        if "temperature" in learned:
            each = torch.where(self.visible, final * self.s.abs() + size * self.e / problem.temperature, 0)
            grad = each.sum(-1, keepdim=True) + f * shifts * self.added / problem.temperature**2
            grad = grad.sum_to_size(problem.temperature.shape)
            out["temperature"] = grad.reshape(learned["temperature"].shape) + of_all
        if "sink" in learned:
            reach = (up["average"] * ((p * self.kept) @ value)).sum(-1, keepdim=True)
            of_sink = (f + 4 * U) * (reach + up["sink_weight"])
            out["sink"] = of_sink.sum((0, 2)).squeeze(-1) + of_all
        least = 8 * SMALLEST * self.longest * (1 + precision)
        return {name: x + least for name, x in out.items()}


# ---- the law ---------------------------------------------------------------------------------------------------------


def outputs(spec: Spec, tensors: list[Tensor], said: dict, names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """Value and statistics, at once or merged from parts."""
    q, k, v = tensors
    if not spec.cuts:
        names = (*names, *["received"] * spec.received)
        if not names:
            return sl.attend(q, k, v, **said), {}
        y, stats = sl.attend(q, k, v, stats=names, **said)
        return y, {name: stats[name] for name in names}
    edges = (0, *spec.cuts, spec.keys)
    parts = [
        sl.lookup(q, k[:, :, a:b], v[:, :, a:b], key_offset=a, total_keys=spec.keys, stats=names, **said)
        for a, b in pairwise(edges)
    ]
    whole = sl.merge(*parts)
    return whole.value, {name: whole.stats(name) for name in names}


def near(name: str, got: Tensor, want: Tensor, allowed: Tensor) -> None:
    """Every entry within what is allowed to it; where that is not finite, anything goes."""
    allowed, want = allowed.detach().expand(want.shape), want.detach()
    assert not allowed.isnan().any(), name
    at = allowed.isfinite() & (want != got)
    excess = torch.where(at, (got.detach().double() - want).abs() / allowed, 0)
    bad = ~(excess <= 1)
    if bad.any():
        place = tuple(bad.nonzero()[0].tolist())
        more = f"{got[place].item():.9g} for {want[place].item():.9g}, allowed +- {allowed[place].item():.2g}"
        raise AssertionError(f"{name}: {int(bad.sum())} of {bad.numel()} entries, first at {place}: {more}")


def check(spec: Spec) -> None:
    """The law: the native engine equals the oracle, in value, statistics and gradients, within `Allowed`."""
    torch.set_num_threads(spec.threads)
    first = spec.keys - spec.queries if spec.query_offset is None else spec.query_offset
    names = tuple(name for name in spec.names if name != "distance" or first >= 0)
    plain = inputs(spec)
    said, learned = arguments(spec, torch.float32)
    oracle_said, oracle_learned = arguments(spec, torch.float64)
    with sl.engine("reference"), torch.no_grad():
        visible = sl.operator.scores_of(*(t.double() for t in plain), **oracle_said) > -math.inf
    given, clean = spoiled(spec, plain, visible)
    leaves = [t.detach().requires_grad_() for t in given]
    exact = [t.detach().double().requires_grad_() for t in clean]

    with sl.engine("reference"):
        summary = sl.lookup(*exact, stats=names, **oracle_said)
        want_y, want = summary.value, {name: summary.stats(name) for name in names}
        if spec.received and not spec.cuts:
            said_of_keys = {k: x for k, x in oracle_said.items() if k not in ("sinks", "dropout_p", "seed")}
            want["received"] = sl.received(*exact[:2], **said_of_keys)
    with torch.no_grad():
        problem, shift, _ = sl.running.canonical(*exact, names=names, **oracle_said)
        allowed = Allowed(spec, problem, shift)
        allowances = allowed.statistics(summary)
        bad_value = ~clean[2].isfinite().all(-1).repeat_interleave(spec.group, 1).unsqueeze(-2) & allowed.visible
        bad_scores = allowed.s.isnan().any(-1)
        spoiled_rows = bad_scores | bad_value.any(-1)

    sound = not spoiled_rows.any()
    assert not sound or all(x.isfinite().all() for x in allowances.values())

    def compare(y: Tensor, stats: dict[str, Tensor]) -> None:
        assert y.dtype == spec.dtype and torch.equal(y.isfinite().all(-1), ~spoiled_rows), "value: rows that are finite"
        near("value", y, want_y, allowances["value"].masked_fill(spoiled_rows.unsqueeze(-1), math.inf))
        for name, got in stats.items():
            if name == "visible":
                assert torch.equal(got, want[name]), name
            elif name == "argmax":
                at_best(got)
            elif name == "received":
                near(name, got, want[name], allowances[name])
            else:
                assert torch.equal(got.isfinite(), want[name].isfinite()), f"{name}: entries that are finite"
                near(name, got, want[name], allowances[name].masked_fill(bad_scores, math.inf))

    def at_best(got: Tensor) -> None:
        some = (want["visible"] if "visible" in want else summary.visible) > 0
        assert (got[~some] == -1).all(), "argmax of an empty row"
        some = some & ~bad_scores
        chosen = allowed.s.masked_fill(~allowed.visible, -math.inf).gather(-1, got.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        assert (chosen >= (allowed.m - 2 * allowed.e).squeeze(-1))[some].all(), "argmax: a visible key of the highest score"
        exact = spec.whole and spec.size[:2] == (1, 1) and spec.score == "dot" and spec.scale is None
        if exact and not spec.bias and spec.temperature == 1 and not spec.temperatures:
            assert torch.equal(got[some], want["argmax"][some]), "argmax: the first of equals"

    with sl.engine("native"):
        y, stats = outputs(spec, leaves, said, names)
        compare(y, stats)
        with torch.no_grad():
            compare(*outputs(spec, leaves, said, names))
    backward(spec, allowed, summary, (leaves, learned, y, stats), (exact, oracle_learned, want_y, want), spoiled_rows)


def backward(spec: Spec, allowed: Allowed, summary: sl.Summary, ours, exact, spoiled_rows: Tensor) -> None:
    """The same for the gradients of what `spec.loss` names; those that a row of NaN reaches are left out."""
    leaves, learned, y, stats = ours
    doubles, oracle_learned, want_y, want = exact
    make = torch.Generator().manual_seed(spec.seed + 3)
    names = (*DIFFERENTIABLE, "received")
    chosen = [n for n in names if n in stats and spec.loss in ("all", n) and stats[n].requires_grad]
    pairs = [(stats[n], want[n]) for n in chosen]
    if spec.loss in ("all", "value") or not pairs:
        pairs.append((y, want_y))
    weights = [torch.randn(a.shape, generator=make).to(a.dtype) for a, _ in pairs]
    exact_weights = [w.double() for w in weights]
    grads = torch.autograd.grad([a for a, _ in pairs], [*leaves, *learned.values()], weights, allow_unused=True)
    fields = {name: getattr(summary, name) for name in FIELDS}
    there = {name: x for name, x in fields.items() if x is not None and x.requires_grad}
    targets = [*there.values(), *doubles, *oracle_learned.values()]
    wants = torch.autograd.grad([b for _, b in pairs], targets, exact_weights, allow_unused=True, materialize_grads=True)
    up = {name: torch.zeros_like(summary.log_z if name != "average" else summary.average) for name in FIELDS}
    up |= dict(zip(there, wants, strict=False))
    of_names = dict(zip(chosen, exact_weights, strict=False))
    up["sink_weight"] = of_names.get("sink_weight", torch.zeros_like(summary.log_z))
    up["received"] = of_names.get("received", torch.zeros(spec.batch, spec.heads, spec.keys))
    with torch.no_grad():
        allowances = allowed.gradients(summary, up, learned, spoiled_rows)
    want_grads = dict(zip(["query", "key", "value", *learned], wants[len(there) :], strict=True))
    for (name, wanted), got in zip(want_grads.items(), grads, strict=True):
        got = torch.zeros_like(wanted) if got is None else got
        within = allowances[name]
        if spec.dtype != torch.float32 and name in ("query", "key", "value"):
            within = within + torch.finfo(spec.dtype).eps * (wanted.abs() + torch.finfo(spec.dtype).smallest_normal)
        if spoiled_rows.any():
            within = within.masked_fill(within.isnan(), math.inf)
        else:
            assert within.isfinite().all(), name
        near(f"gradient of the {name}", got, wanted, within)


# ---- made-up lookups -------------------------------------------------------------------------------------------------

LENGTHS = st.one_of(st.sampled_from([1, 15, 16, 17, 95, 96, 97, 191, 192, 193]), st.integers(1, 250))
MANY = st.sampled_from([255, 256, 257, 2047, 2048, 2049, 4200])
WIDTHS = st.one_of(st.sampled_from([1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]), st.integers(1, 130))
TREES = st.recursive(
    st.one_of(
        st.just(("causal",)),
        st.tuples(st.just("window"), st.sampled_from([1, 2, 5, 40, 96, 200])),
        st.tuples(st.just("dilated"), st.integers(1, 5)),
        st.tuples(st.just("prefix"), st.sampled_from([0, 1, 7, 95, 96, 97, 300])),
        st.tuples(st.sampled_from(["lengths", "padding", "documents", "function", "dense"]), st.integers(0, 9)),
    ),
    lambda trees: st.one_of(st.tuples(st.sampled_from(["and", "or"]), trees, trees), st.tuples(st.just("not"), trees)),
    max_leaves=3,
)
BIASES = (
    "alibi|table|one-sided table|dense|dense that hides|float mask|float mask + alibi|float mask + table|float mask + dense"
)
SIZES = st.sampled_from([0.0, 1e-40, 1e-20, 1e-3, 1.0, 30.0, 1e4])


@st.composite
def specs(draw) -> Spec:
    plain = draw(st.booleans())  # half of the lookups are of ordinary numbers
    batch, kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    n = draw(LENGTHS)
    s = draw(LENGTHS if n > 16 else st.one_of(LENGTHS, MANY))  # more than one chunk and one part of those for few queries
    dtype = draw(st.sampled_from([torch.float32] * 6 + [torch.bfloat16, torch.float16]))
    q_size, k_size = (1.0, 1.0) if plain or dtype != torch.float32 else (draw(SIZES), draw(SIZES))
    if q_size * k_size > 1e4:
        k_size = 1.0
    v_size = 1.0 if plain or dtype != torch.float32 else draw(SIZES)
    names = draw(st.one_of(st.just(CHEAP), st.just(()), st.sets(st.sampled_from(CHEAP), min_size=1).map(sorted).map(tuple)))
    spoil = "" if plain else draw(st.sampled_from(["", "", "hidden", "hidden", "query", "key", "value"]))
    garbage = st.sampled_from([math.nan, math.inf, -math.inf, *([1e30] if spoil == "hidden" else [])])
    parts = s > 1 and dtype == torch.float32
    cuts = draw(st.one_of(st.just([]), st.lists(st.integers(1, max(1, s - 1)), max_size=3, unique=True)))
    score = draw(st.sampled_from(["scaled", "dot", "soft cap", "wide soft cap", "ssmax", "gaussian"]))
    return Spec(
        batch=batch,
        kv_heads=kv_heads,
        group=group,
        queries=n,
        keys=s,
        width=draw(WIDTHS),
        value_width=draw(WIDTHS),
        dtype=dtype,
        layout=draw(st.sampled_from("contiguous transposed packed stepped columns expanded".split())),
        size=(q_size, k_size, v_size),
        whole=draw(st.integers(0, 4)) == 4,
        score=score,
        scale=None if score == "gaussian" else draw(st.sampled_from([None, None, None, 0.3, -0.2, 0.0])),
        mask=draw(st.one_of(st.just(()), TREES)),
        bias=draw(st.sampled_from([""] * 8 + BIASES.split("|"))),
        temperature=draw(st.sampled_from([1.0, 1.0, 0.3, 2.5])),
        temperatures=draw(st.sampled_from(["", "", "", "all", "heads", "rows"])),
        sink=draw(st.sampled_from(["", "", "0", "-3", "learned"])),
        sinks=draw(st.sampled_from([1, 1, 4, 100])),
        dropout=draw(st.sampled_from([0.0, 0.0, 0.0, 0.3, 1.0])),
        query_offset=draw(st.one_of(st.none(), st.none(), st.integers(-300, 300), st.just(10**6))),
        cuts=tuple(sorted(cuts)) if parts else (),
        spoil=spoil,
        garbage=draw(garbage),
        names=names,
        received=dtype == torch.float32 and draw(st.integers(0, 3)) == 3,
        loss=draw(st.sampled_from(["all", "all", "value", "received", *DIFFERENTIABLE])),
        threads=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**20)),
    )


@settings(
    max_examples=MORE or 200,
    derandomize=not MORE,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
@given(specs())
def test_the_native_engine_equals_the_oracle(spec):
    check(spec)


@pytest.mark.parametrize("bias", ["", "table"])
@pytest.mark.parametrize(("which", "share"), [(0, 3e-5), (1, 3e-5), (2, 1e-4)])
def test_the_law_sees_a_wrong_digit(which, share, bias, monkeypatch):
    """It holds for an ordinary lookup, and not for one with queries, keys or values off by that share of themselves."""
    spec = Spec(queries=97, keys=193, group=2, width=64, value_width=64, mask=("causal",), bias=bias)
    check(spec)

    def off(spec: Spec, tensors: list[Tensor], visible: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [x * (1 + share * (which == n)) for n, x in enumerate(tensors)], tensors

    monkeypatch.setattr("tests.engines.test_native_fuzz.spoiled", off)
    with pytest.raises(AssertionError, match="allowed"):
        check(spec)
