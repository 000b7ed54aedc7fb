"""SmolLM2's logits: how entropy grows along the rows of its heads, and what bound, Gaussian law and temperature say of them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

import softlookup as sl
from softlookup.watching import Call

TOKENS, SHORT, LATE = 2048, 64, 1024
TEMPERATURES, HALVINGS = (0.05, 20.0), 12
"""Between which that of equal entropy is sought, to 0.1 %."""


def growth(passage: int, ssmax: bool) -> list[list[float]]:
    """On a passage: [log n, mean entropy over heads and queries] of queries that see n keys, by octave of n."""
    from ...remedies import ssmax_

    model, batch = reading(passage)
    if ssmax:
        model = ssmax_(model, SHORT)
    with torch.no_grad(), sl.watch(model, keep="rows", stats=("entropy",)) as watched:
        model(**batch)
    entropy = torch.stack([layer.rows("entropy") for layer in watched.layers.values()]).double().flatten(0, -2).mean(0)
    octaves = (torch.arange(low, 2 * low) for low in (SHORT * 2**i for i in range(int(math.log2(TOKENS / SHORT)))))
    return [[float((at + 1.0).log().mean()), float(entropy[at].mean())] for at in octaves]


def laws(passage: int, control: bool) -> dict[str, float]:
    """On a passage: the largest weight by its bound, what entropy lacks of log n − σ²/2, and what an adaptive temperature
    does to the largest weight, over all heads."""
    model, batch = reading(passage)
    bounds, lacks, early, late = [], [], [], []

    def probe(call: Call) -> None:
        rows = Rows(call, sl.ScaledDot(ssmax=1 / math.log(SHORT)) if control else sl.ScaledDot())
        bounds.append(rows.by_bound().max())
        lacks.append(rows.lack())
        first, last = rows.adapted(not control)
        early.append(first)
        late.append(last)

    with torch.no_grad(), sl.watch(model, stats=("entropy",), probes=[probe]):
        model(**batch)
    lack = torch.cat(lacks)
    return {
        "bound": float(torch.stack(bounds).max()),
        "lack": float(lack.mean()),
        "adaptive": float(torch.cat(late).mean() / torch.cat(early).mean()),
    }


class Rows:
    """Those rows of a layer's heads that see more than SHORT keys, under the model's scores and under one of ours."""

    def __init__(self, call: Call, score: sl.Score):
        self.look = partial(self._look, call)
        self.n = torch.arange(SHORT, TOKENS, dtype=torch.float64) + 1  # keys that each query sees
        self.plain, self.ours = self.look(SHORT, sl.ScaledDot()), self.look(SHORT, score)
        lowest = -self.look(SHORT, sl.ScaledDot(), sign=-1).max_logit.double()
        self.range = self.plain.max_logit.double() - lowest

    @staticmethod
    def _look(call: Call, first: int, score: sl.Score, temperature: float | Tensor = 1.0, sign: int = 1) -> sl.Stats:
        """Statistics (1, H, queries from the first on)."""
        query, names = sign * call.query[:, :, first:], ("entropy", "logit_var", "max_weight", "max_logit")
        ours = {"score": score, "normalizer": sl.Softmax(temperature), "query_offset": first, "mask": sl.Causal()}
        return sl.attend(query, call.key, call.value, **call.arguments | ours, stats=names)[1]

    def by_bound(self) -> Tensor:
        """(1, H, R) the largest weight by e^δ / (e^δ + n − 1), δ the range of the row's own logits."""
        return self.ours.max_weight.double() * (1 + (self.n - 1) * torch.exp(-self.range))

    def lack(self) -> Tensor:
        """Of rows with σ < √(2 log n), σ that of their own logits: log n − σ²/2 − H."""
        variance, log = self.plain.logit_var.double(), self.n.log()
        return (log - variance / 2 - self.ours.entropy.double())[variance < 2 * log]

    def adapted(self, remedy: bool) -> tuple[Tensor, Tensor]:
        """(H,) mean largest weights of the rows before 2 · SHORT, and of those from LATE on; with the remedy these at the
        temperature, one for each head, at which their mean entropy is that of the former."""
        short = slice(0, SHORT)
        entropy, weight = (getattr(self.plain, name)[0, :, short].double().mean(-1) for name in ("entropy", "max_weight"))
        low, high = (torch.full_like(entropy, math.log(end)) for end in TEMPERATURES)
        for _ in range(HALVINGS if remedy else 0):
            middle = (low + high) / 2
            above = self.look(LATE, sl.ScaledDot(), middle.exp()).entropy[0].double().mean(-1) > entropy
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        temperature = ((low + high) / 2).exp() if remedy else 1.0
        return weight, self.look(LATE, sl.ScaledDot(), temperature).max_weight[0].double().mean(-1)


def reading(passage: int) -> tuple[Any, dict[str, Tensor]]:
    """The model, and a passage of the Python reference."""
    from ...inspection.loading import load
    from ...inspection.text import read, read_text

    loaded, (content, _) = load("smollm2"), read_text(None)
    return loaded.model, read(loaded.tokenizer, content[passage * 8 * TOKENS :], TOKENS).batch
