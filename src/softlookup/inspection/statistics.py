"""How each statistic is named, explained and drawn, for the terminal and the report alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import SoftlookupError
from ..geometry.meanings import MEANINGS

Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class Statistic:
    """``domain``: the range of the colour scale; None takes the range of the heads. ``log`` suits what spans
    decades."""

    name: str
    label: str
    help: str
    domain: tuple[float, float] | None = None
    scale: Scale = "linear"


STATISTICS: dict[str, Statistic] = {
    item.name: item
    for item in (
        Statistic("entropy_ratio", "entropy ratio", "Entropy / log(visible): 0 reads one key, 1 averages all.", (0, 1)),
        Statistic("entropy", "entropy", "Entropy of the weights in nats; e^H is the number of keys in play."),
        Statistic("effective_keys", "effective keys", "1/Σp²: how many keys share the weight.", None, "log"),
        Statistic("sink_mass", "first-token weight", "Weight on the first token, where idle heads park it.", (0, 1)),
        Statistic("distance", "distance", "Mean distance in tokens between a query and what it reads.", None, "log"),
        Statistic("max_weight", "largest weight", "Mean weight of the strongest key.", (0, 1)),
        Statistic("max_logit", "largest logit", "The largest logit over all queries; above 50 it is worth a look."),
        Statistic("logit_var", "logit variance", "Over visible keys; 1/√d_k is meant to keep it near 1.", None, "log"),
        Statistic("bandwidth", "bandwidth", "Width of its kernel, over how far its keys lie from their mean.", None, "log"),
        Statistic("prior_spread", "prior spread", "Of its prior over keys, in nats: 0 is a true kernel smoother."),
        Statistic("jacobian_trace", "Σp(1−p)", "Trace of the softmax Jacobian: near 0 logits get no gradient.", (0, 1)),
        Statistic("collision", "collision", "Σp²: the chance that two draws from the weights agree.", (0, 1)),
        Statistic("logit_mean", "mean logit", "Mean logit over visible keys, each counted once."),
        Statistic("expected_logit", "expected logit", "Mean logit under the weights."),
        Statistic("expected_logit_var", "expected logit variance", "Under the weights: how fast temperature acts."),
        Statistic("logsumexp", "log-normalizer", "Log of the softmax denominator (free energy)."),
        Statistic("sink_weight", "sink-logit weight", "Weight on the sink logit, if there is one.", (0, 1)),
        Statistic("visible", "visible keys", "Number of keys that the mask lets a query see."),
    )
}  # fmt: skip


_DOMAINS = {"copying": (-1.0, 1.0), "rank": None, "entropy_rank": None, "output_rank": None}

MEASURES: dict[str, Statistic] = {
    name: Statistic(name, meaning.title, meaning.sentence, _DOMAINS.get(name, (0.0, 1.0))) for name, meaning in MEANINGS.items()
}
"""Of the weights."""


def statistic(name: str, available: list[str], option: str = "stat") -> Statistic:
    """The entry for ``name``, which must be among ``available``; a statistic without an entry of its own is drawn
    plainly. ``option``: what an error calls the name."""
    if name not in available:
        raise SoftlookupError(f"{option}: expected one of {', '.join(available)}, got {name!r}")
    return STATISTICS.get(name) or MEASURES.get(name) or Statistic(name, name.replace("_", " "), "")
