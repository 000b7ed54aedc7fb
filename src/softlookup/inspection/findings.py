"""What is worth saying about a head, and the theory that each sentence rests on.

One pure function per kind: a head's numbers in, a ``Finding`` or None out. All thresholds stand in ``THRESHOLDS``
(those of weights in ``weight_judges``), each with the reason for its value; ``docs/findings.md`` quotes them. Ratios are
judged on queries that see at least ``heads.FEW`` keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from . import weight_judges
from .heads import FEW, Head

THRESHOLDS: dict[str, float] = {
    # e^H ≤ n^0.1 : on average at most two of 2,048 visible keys are in play.
    "collapsed": 0.10,
    # An untrained head with unit logit variance has H/log n = 1 − 1/(2 log n): 0.93 at 2,048 keys. This is flatter
    # still.
    "near_uniform": 0.95,
    # Σp(1−p) is the trace of the softmax Jacobian, 1 − Σp². As Σp² ≤ max p, the largest weight is above 0.95.
    "saturated": 0.05,
    # Gemma 2 caps logits at ±50; fp16 scores lose the second decimal here.
    "logit_blow_up": 50.0,
    # QK-clip (Kimi K2) rescales the projections of a head whose logits pass 100.
    "logit_blow_up_severe": 100.0,
    # The usual definition of an attention sink: mean weight on the first token.
    "sink": 0.30,
    # Markov: a mean distance of 16 puts at least 90 % of the weight within 160 tokens, so a window would do.
    "local": 16.0,
    # … and never more than a sixteenth of the visible keys, or every head of a short text would be local (uniform
    # weights reach n/2).
    "local_share": 1 / 16,
    # The strongest key is the previous token for most queries; chance is 1/visible.
    "previous_token": 0.50,
    # Gaussian logits: H ≈ log n − σ²/2 holds while σ² < 2 log n; beyond, the softmax condenses on a few extreme keys.
    "logit_variance_high_per_log_visible": 2.0,
    # σ² = 0.05 costs 0.025 nats: n·e^(−σ²) leaves 95 % of the keys effective, so the head hardly tells keys apart.
    "logit_variance_low": 0.05,
}

JUDGED_ON = (
    f"Findings count only queries that see at least {FEW} keys (the largest logit: all of them) and leave the first "
    "token out of distances."
)
"""Why a finding's value may differ from the same statistic elsewhere."""

Tone = Literal["warning", "pattern"]


@dataclass(frozen=True)
class Finding:
    """One sentence about one head, with the number that earned it and the threshold that it passed."""

    kind: str
    layer: int
    head: int
    value: float
    threshold: float
    meaning: str
    advice: str
    path: str = ""
    causal: bool = False

    @property
    def label(self) -> str:
        """``layer.head``"""
        return f"{self.layer}.{self.head}"

    def __str__(self) -> str:
        kind = KINDS[self.kind]
        sign = ">" if kind.above else "<"
        return (
            f"{self.label} {kind.singular}: {kind.quantity} {self.value:.3g} ({sign} {self.threshold:.3g}). "
            f"{self.meaning} {self.advice}"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Kind:
    """How findings of one kind are told: ``tag`` where there is little room. ``warning``: something to act on;
    ``pattern``: what it is for. ``meaning`` and ``advice`` are true of every attention; ``if_causal``: both, where
    no query sees what comes after it (a decoder, which has a cache and copies from the past)."""

    name: str
    tag: str
    singular: str
    plural: str
    quantity: str
    above: bool
    tone: Tone
    meaning: str
    advice: str
    judge: Callable[[Head], tuple[float, float] | None]
    if_causal: tuple[str, str] | None = None

    @property
    def of_weights(self) -> bool:
        """Whether it is read from weights, without a text."""
        return self.judge.__module__ == weight_judges.__name__

    def words(self, causal: bool) -> tuple[str, str]:
        """Meaning and advice for one head, or for several (``causal`` if all of them are)."""
        return self.if_causal if causal and self.if_causal else (self.meaning, self.advice)

    def of(self, head: Head) -> Finding | None:
        found = self.judge(head)
        if found is None:
            return None
        return Finding(self.name, head.layer, head.head, *found, *self.words(head.causal), head.path, head.causal)


@dataclass(frozen=True)
class Group:
    """All findings of one kind, the most extreme first."""

    kind: Kind
    findings: tuple[Finding, ...]

    @property
    def title(self) -> str:
        count = len(self.findings)
        return f"1 {self.kind.singular}" if count == 1 else f"{count} {self.kind.plural}"

    @property
    def words(self) -> tuple[str, str]:
        """Meaning and advice that are true of all of them."""
        return self.kind.words(all(finding.causal for finding in self.findings))

    @property
    def criterion(self) -> str:
        """``mean weight on the first token > 0.3``; thresholds that depend on the head give the range."""
        limits = sorted({finding.threshold for finding in self.findings})
        span = f"{limits[0]:.3g}" if f"{limits[0]:.3g}" == f"{limits[-1]:.3g}" else f"{limits[0]:.3g}–{limits[-1]:.3g}"
        return f"{self.kind.quantity} {'>' if self.kind.above else '<'} {span}"


# The judges. Each returns (value, threshold) when the head is worth naming.


def collapsed(head: Head) -> tuple[float, float] | None:
    """H / log(visible) near 0: the lookup has become a pointer."""
    return _below(head, "entropy_ratio", THRESHOLDS["collapsed"])


def near_uniform(head: Head) -> tuple[float, float] | None:
    """H / log(visible) near 1: the lookup has become an average."""
    return _above(head, "entropy_ratio", THRESHOLDS["near_uniform"])


def saturated(head: Head) -> tuple[float, float] | None:
    """Σp(1−p) near 0: the softmax passes no gradient to the logits."""
    return _below(head, "jacobian_trace", THRESHOLDS["saturated"])


def logit_blow_up(head: Head) -> tuple[float, float] | None:
    """The largest logit over all queries, short rows included: one is enough for its rounding to show."""
    value = head.means.get("max_logit", 0.0)
    severe = THRESHOLDS["logit_blow_up_severe"]
    if value > severe:
        return value, severe
    return (value, THRESHOLDS["logit_blow_up"]) if value > THRESHOLDS["logit_blow_up"] else None


def logit_variance_high(head: Head) -> tuple[float, float] | None:
    """Var(s) over visible keys above 2 log n, where Gaussian logits condense."""
    if head.wide is None:
        return None
    return _above(head, "logit_var", THRESHOLDS["logit_variance_high_per_log_visible"] * head.wide["log_visible"])


def logit_variance_low(head: Head) -> tuple[float, float] | None:
    """Var(s) over visible keys near 0: the head cannot tell keys apart."""
    return _below(head, "logit_var", THRESHOLDS["logit_variance_low"])


def sink(head: Head) -> tuple[float, float] | None:
    """Mean weight on the first token (and the sink logit, where a model has one)."""
    return _above(head, "parked", THRESHOLDS["sink"])


def previous_token(head: Head) -> tuple[float, float] | None:
    """Share of queries whose strongest key is the token before them."""
    return _above(head, "previous_token", THRESHOLDS["previous_token"])


def local(head: Head) -> tuple[float, float] | None:
    """Mean distance of the weight that is not parked on the first token. A head that parks nearly all of it is no
    local head."""
    if head.wide is None or head.wide["parked"] > 0.9:
        return None
    return _below(head, "reach", min(THRESHOLDS["local"], THRESHOLDS["local_share"] * head.wide["visible"]))


def _below(head: Head, stat: str, threshold: float) -> tuple[float, float] | None:
    value = None if head.wide is None else head.wide.get(stat)
    return (value, threshold) if value is not None and value < threshold else None


def _above(head: Head, stat: str, threshold: float) -> tuple[float, float] | None:
    value = None if head.wide is None else head.wide.get(stat)
    return (value, threshold) if value is not None and value > threshold else None


# Warnings first: what can lose a training run before what is merely flat, then what the heads are for.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "logit_blow_up",
            "logit blow-up",
            "head with a logit blow-up",
            "heads with a logit blow-up",
            "largest logit",
            True,
            "warning",
            "Kept in half precision, logits this large are rounded too coarsely: at 50, weights are off by up to 2 % in "
            "float16 and 13 % in bfloat16.",
            "Rescale W_Q and W_K (QK-clip), normalize queries and keys (QK-norm) or cap the logits.",
            logit_blow_up,
        ),
        Kind(
            "saturated",
            "saturated",
            "saturated head",
            "saturated heads",
            "mean Σp(1−p)",
            False,
            "warning",
            "Nearly all weight sits on one key, so hardly any gradient reaches the queries and keys.",
            "In training, lower the learning rate or the logits' scale; in a finished model it is a pure pointer.",
            saturated,
        ),
        Kind(
            "collapsed",
            "collapsed",
            "collapsed head",
            "collapsed heads",
            "mean entropy / log(visible)",
            False,
            "warning",
            "Of all the keys that it could read, the head reads one or two.",
            "Harmless in a sink or previous-token head; elsewhere watch whether it still falls during training.",
            collapsed,
        ),
        Kind(
            "logit_variance_high",
            "high logit variance",
            "head with a logit variance far above 1",
            "heads with a logit variance far above 1",
            "mean logit variance",
            True,
            "warning",
            "The 1/√d_k scale is meant to keep this near 1; beyond 2·log(visible) a few keys take all the weight.",
            "In training, watch whether it grows; QK-norm or weight decay on W_Q and W_K holds it.",
            logit_variance_high,
        ),
        Kind(
            "logit_variance_low",
            "low logit variance",
            "head with a logit variance far below 1",
            "heads with a logit variance far below 1",
            "mean logit variance",
            False,
            "warning",
            "Its keys all score the same, so the head cannot tell them apart.",
            "Check the initialization and the scale; a head that stays here can be pruned.",
            logit_variance_low,
        ),
        Kind(
            "near_uniform",
            "near-uniform",
            "near-uniform head",
            "near-uniform heads",
            "mean entropy / log(visible)",
            True,
            "warning",
            "The head averages everything that it can see, flatter than an untrained head would.",
            "Useful as a summary of the text, otherwise a candidate for pruning.",
            near_uniform,
        ),
        Kind(
            "rank_starved",
            "rank-starved",
            "rank-starved head",
            "rank-starved heads",
            "effective rank of W_Q W_K^T",
            False,
            "warning",
            "A few directions decide all scores: the rest of the head's width is paid for and hardly used.",
            "In training, see whether it still falls; in a finished model its queries and keys may be made narrower.",
            weight_judges.rank_starved,
        ),
        Kind(
            "duplicate",
            "duplicate",
            "head that repeats another",
            "heads that repeat another",
            "cosine of W_Q W_K^T with a head of the same layer",
            True,
            "warning",
            "Two heads of a layer ask the same question.",
            "One of them may be pruned or merged.",
            weight_judges.duplicate,
        ),
        Kind(
            "previous_token",
            "previous token",
            "previous-token head",
            "previous-token heads",
            "share of queries whose strongest key is the token before",
            True,
            "pattern",
            "It hands each token its predecessor.",
            "Keep it when pruning: heads that read by position are among those that encoders need most.",
            previous_token,
            (
                "It hands each token its predecessor, the first half of an induction circuit.",
                "Keep it when pruning: copying and in-context repetition rest on it.",
            ),
        ),
        Kind(
            "local",
            "local",
            "local head",
            "local heads",
            "mean distance in tokens, the first token aside",
            False,
            "pattern",
            "The first token aside, it reads the near neighbourhood only.",
            "A sliding window that keeps the first token comes close, at less cost.",
            local,
            (
                "The first token aside, it reads the near neighbourhood only.",
                "A sliding window that keeps the first token comes close, with a smaller cache.",
            ),
        ),
        Kind(
            "sink",
            "sink",
            "sink head",
            "sink heads",
            "mean weight on the first token",
            True,
            "pattern",
            "Much of its weight goes to the first token, in many encoders a [CLS] token.",
            "It may rest there or gather a summary; keep that token when inputs are shortened.",
            sink,
            (
                "With nothing to look up it parks its weight on the first token.",
                "Never evict the first tokens from the cache, and expect a few huge activations to quantize around.",
            ),
        ),
        Kind(
            "symmetric",
            "symmetric",
            "symmetric head",
            "symmetric heads",
            "symmetric share of W_Q W_K^T",
            True,
            "pattern",
            "It matches like with like: a pair scores the same in both orders, before positions and masks have their say.",
            "It groups what is similar; heads that ask for something else than they are have about half.",
            weight_judges.symmetric,
        ),
        Kind(
            "copying",
            "copying",
            "copying head",
            "copying heads",
            "copying of W_V W_O",
            True,
            "pattern",
            "What it reads it writes again in the same direction.",
            "Keep it when pruning: it passes on what it finds.",
            weight_judges.copying,
            (
                "What it reads it writes again in the same direction.",
                "Behind a head that finds earlier copies of a token, this is induction: keep it when pruning.",
            ),
        ),
    )
}


def find(heads: Iterable[Head]) -> list[Finding]:
    """All findings, ordered by kind (``KINDS``) and within a kind from the most extreme value."""
    heads = list(heads)
    found: list[Finding] = []
    for kind in KINDS.values():
        of_kind = [finding for head in heads if (finding := kind.of(head)) is not None]
        found += sorted(of_kind, key=lambda finding: -finding.value if kind.above else finding.value)
    return found


def grouped(findings: Iterable[Finding]) -> list[Group]:
    """Findings by kind, in the order of ``KINDS``."""
    findings = list(findings)
    groups = (Group(kind, tuple(f for f in findings if f.kind == kind.name)) for kind in KINDS.values())
    return [group for group in groups if group.findings]


def named_heads(findings: Iterable[Finding], limit: int) -> list[tuple[int, int]]:
    """Up to ``limit`` heads worth a closer look: the most extreme of each kind in turn, so that no kind crowds out
    the others."""
    queues = [list(group.findings) for group in grouped(findings)]
    chosen: list[tuple[int, int]] = []
    while len(chosen) < limit and any(queues):
        for queue in queues:
            while queue:
                finding = queue.pop(0)
                if (finding.layer, finding.head) not in chosen:
                    chosen.append((finding.layer, finding.head))
                    break
            if len(chosen) == limit:
                break
    return chosen
