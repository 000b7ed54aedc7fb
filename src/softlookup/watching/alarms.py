"""Alarms: heads that leave the healthy range while a model trains, told once, the first of a kind with the remedy.

Each kind is a `Rule`: a number per head, a threshold at which the alarm is raised, another, further back, at which it is
cleared (hysteresis: a number that wavers about one threshold would ring at every step), and for how many observations in a row
the number has to be beyond the first. `RULES` has the defaults, each with the reason for its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import SoftlookupError
from .layer import LayerSeen
from .seen import Seen


@dataclass(frozen=True)
class Rule:
    """When an alarm of one kind is raised and cleared.

    quantity: what is judged, in words; of: the number of each head (H,), from what was seen of a layer; needs: the statistics
    that it reads. raised: the threshold, cleared: the one further back; above: whether beyond is above. patience:
    observations in a row beyond the threshold; warm_up: observations before the first that counts; growth: if not 0, judged
    is the number over what it was so many observations ago. meaning, remedy: one sentence each.
    """

    kind: str
    quantity: str
    of: Callable[[LayerSeen], Tensor]
    needs: tuple[str, ...]
    raised: float
    cleared: float
    above: bool
    patience: int
    meaning: str
    remedy: str
    warm_up: int = 0
    growth: int = 0

    def beyond(self, value: Tensor, threshold: float) -> Tensor:
        """Whether each value lies on the side of the threshold that the rule warns of."""
        return value > threshold if self.above else value < threshold


@dataclass(frozen=True)
class Alarm:
    """One head passed a threshold of one rule: beyond `raised`, or (cleared=True) back across the other.

    first: of its kind in this run; its line says what the kind means and what to do, which the others' leave out.
    """

    kind: str
    layer: str
    head: int
    step: int
    value: float
    threshold: float
    rule: Rule = field(repr=False)
    cleared: bool = False
    first: bool = True

    def __str__(self) -> str:
        where, number = f"step {self.step}: {self.layer} head {self.head}", f"{self.rule.quantity} {self.value:.3g}"
        if self.cleared:
            return f"{where}: {self.kind} is over: {number}"
        sign = ">" if self.rule.above else "<"
        what = f"{where}: {self.kind}: {number} ({sign} {self.threshold:.3g})"
        return f"{what}. {self.rule.meaning} {self.rule.remedy}" if self.first else what


def _mean(stat: str) -> Callable[[LayerSeen], Tensor]:
    return lambda layer: layer.mean(stat)


def _not_finite(layer: LayerSeen) -> Tensor:
    """(H,) how many statistics have a value that is no number, or infinite, among queries that see a key."""
    bad = torch.zeros(layer.heads)
    for stat in layer.stats:
        bad += ~(layer.mean(stat).isfinite() & layer.max(stat).isfinite())
    return torch.where(layer.counts > 0, bad, 0.0)


RULES: tuple[Rule, ...] = (
    Rule(
        "not finite",
        "statistics with NaN or infinity",
        _not_finite,
        (),
        raised=0.5,
        cleared=0.5,
        above=True,
        patience=1,
        meaning="Logits overflowed, or a weight is no number any more.",
        remedy="Go back to the last checkpoint, with a lower learning rate or QK-norm.",
    ),
    Rule(
        "logit level",
        "largest logit",
        lambda layer: layer.max("max_logit"),
        ("max_logit",),
        # QK-clip's threshold (Kimi K2): healthy runs stay far below, and half precision rounds visibly above.
        raised=100.0,
        cleared=50.0,
        above=True,
        patience=3,
        meaning="Softmax is about to become an argmax, and half precision rounds its logits coarsely.",
        remedy="Clip the projections (qk_clip_), normalize queries and keys (QK-norm) or cap the logits.",
    ),
    Rule(
        "logit growth",
        "largest logit, times what it was 50 observations ago or at first",
        lambda layer: layer.max("max_logit").clamp(min=20.0),  # below 20 nothing is at stake: growth from there
        ("max_logit",),
        raised=3.0,
        cleared=1.5,
        above=True,
        patience=3,
        growth=50,
        meaning="Healthy logits creep; these run away.",
        remedy="Lower the learning rate, or clip the projections (qk_clip_) or normalize queries and keys (QK-norm).",
    ),
    Rule(
        "entropy collapse",
        "mean entropy / log(visible)",
        _mean("entropy_ratio"),
        ("entropy_ratio",),
        # n^0.01: one key and a twelfth on average, of 2,048. Heads that read the previous token alone come close in health.
        raised=0.01,
        cleared=0.03,
        above=False,
        patience=10,
        meaning="Every query reads a single key; the head has stopped comparing.",
        remedy="Reward entropy (entropy_penalty), lower the learning rate, or bound the projections (σReparam).",
    ),
    Rule(
        "saturation",
        "mean Σp(1−p)",
        _mean("jacobian_trace"),
        ("jacobian_trace",),
        # The trace of the softmax Jacobian: a hundredth of what the flattest distribution passes on.
        raised=0.01,
        cleared=0.03,
        above=False,
        patience=10,
        meaning="Hardly any gradient passes the softmax, so queries and keys no longer learn.",
        remedy="Lower the logits: qk_clip_, QK-norm or a higher temperature.",
    ),
    Rule(
        "sink takeover",
        "mean weight on the first key",
        _mean("sink_mass"),
        ("sink_mass",),
        raised=0.97,
        cleared=0.9,
        above=True,
        patience=20,
        meaning="The head has stopped reading anything but the first key.",
        remedy="Give it another way to do nothing: a sink logit (Softmax(sink=…)), or a gate on its output.",
    ),
    Rule(
        "dead head",
        "mean logit variance",
        _mean("logit_var"),
        ("logit_var",),
        # Weights then differ by some 3 % of each other. (The entropy ratio would not do: the first row of a causal text has 0.)
        raised=0.001,
        cleared=0.01,
        above=False,
        patience=20,
        meaning="All keys score alike: the head averages, and its queries and keys get next to no gradient.",
        remedy="Scale the logits up (a lower temperature, SSMax), or prune it.",
        # Heads begin uniform where weights begin small, and need some steps to leave that.
        warm_up=200,
    ),
)


class Alarms:
    """Judges what was seen, observation by observation.

        alarms = Alarms()
        with sl.watch(model) as seen:
            for step, batch in enumerate(batches):
                ...
                for alarm in alarms(step, seen):
                    print(alarm)
                seen.clear()

    rules: by default all of `RULES` whose statistics are watched. thresholds: other values of `raised`, by kind; that for
    clearing moves with it. `active` holds the alarms that are raised and not cleared.
    """

    def __init__(self, rules: Iterable[Rule] = RULES, thresholds: Mapping[str, float] | None = None):
        self._rules, self._chosen = tuple(rules), rules is not RULES
        if not all(isinstance(rule, Rule) for rule in self._rules):
            raise SoftlookupError(f"alarms: expected rules as Rule(…), got {self._rules[0]!r}; thresholds go by that name")
        if len({rule.kind for rule in self._rules}) < len(self._rules):
            raise SoftlookupError("alarms: expected a kind of its own for each rule, got one twice")
        for kind, raised in (thresholds or {}).items():
            if isinstance(raised, bool) or not isinstance(raised, (int, float)):
                raise SoftlookupError(f"alarms: expected a number as the threshold of {kind}, got {raised!r}")
            if kind not in (rule.kind for rule in self._rules):
                known = ", ".join(rule.kind for rule in self._rules)
                raise SoftlookupError(f"alarms: expected thresholds of {known}, got {kind!r}")
            self._rules = tuple(_moved(rule, raised) if rule.kind == kind else rule for rule in self._rules)
        self._judges: dict[tuple[str, str], _Judge] = {}
        self.active: dict[tuple[str, str, int], Alarm] = {}
        self._told: set[str] = set()

    def __call__(self, step: int, seen: Seen) -> list[Alarm]:
        """What has changed since the last observation: alarms raised and cleared. step: a number of yours, told in them."""
        if not isinstance(seen, Seen):
            raise SoftlookupError(f"alarms: expected alarms(step, seen), got {type(seen).__name__} for seen")
        changes = []
        for rule in self._rules:
            missing = [stat for stat in rule.needs if stat not in seen.stats]
            if missing and self._chosen:
                want, got = ", ".join(missing), ", ".join(seen.stats)
                raise SoftlookupError(f"alarms: expected a watch of {want} for {rule.kind}, got {got}")
            if missing:
                continue
            for layer in seen.layers.values():
                if layer.count:
                    judge = self._judges.setdefault((rule.kind, layer.name), _Judge(rule, layer.heads))
                    changes += judge.observe(layer, step)
        return [self._noted(change) for change in changes]

    def _noted(self, change: Alarm) -> Alarm:
        """The change, in `active` or out of it, which knows whether it is the first of its kind."""
        place = change.kind, change.layer, change.head
        if change.cleared:
            del self.active[place]
            return change
        self.active[place] = change = replace(change, first=change.kind not in self._told)
        self._told.add(change.kind)
        return change


def _moved(rule: Rule, raised: float) -> Rule:
    """The rule with another threshold, that for clearing at the same ratio; where below is beyond, at most half way to 1."""
    cleared = rule.cleared * raised / rule.raised if rule.raised else rule.cleared
    return replace(rule, raised=raised, cleared=cleared if rule.above else max(raised, min(cleared, (1 + raised) / 2)))


class _Judge:
    """One rule in one layer: how long each head has been beyond, and whether its alarm is raised."""

    def __init__(self, rule: Rule, heads: int):
        self.rule, self.observations = rule, 0
        self.streak = torch.zeros(heads, dtype=torch.int64)
        self.raised = torch.zeros(heads, dtype=torch.bool)
        self.past: list[Tensor] = []

    def observe(self, layer: LayerSeen, step: int) -> list[Alarm]:
        rule, value = self.rule, self._value(layer)
        self.observations += 1
        if value is None or self.observations <= rule.warm_up:
            return []
        beyond = rule.beyond(value, rule.raised)
        self.streak = torch.where(beyond, self.streak + 1, 0)
        raise_ = ~self.raised & (self.streak >= rule.patience)
        clear = self.raised & ~value.isnan() & ~rule.beyond(value, rule.cleared)
        self.raised = (self.raised | raise_) & ~clear

        def told(head: int, cleared: bool) -> Alarm:
            threshold = rule.cleared if cleared else rule.raised
            return Alarm(rule.kind, layer.name, head, step, float(value[head]), threshold, rule, cleared)

        return [told(h, False) for h in raise_.nonzero().flatten().tolist()] + [
            told(h, True) for h in clear.nonzero().flatten().tolist()
        ]

    def _value(self, layer: LayerSeen) -> Tensor | None:
        value = self.rule.of(layer)
        if not self.rule.growth:
            return value
        self.past.append(value)
        if len(self.past) <= self.rule.growth:
            return value / self.past[0] if len(self.past) > 1 else None
        return value / self.past.pop(0)
