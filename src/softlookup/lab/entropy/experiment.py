"""How the entropy of attention grows with the number n of keys: Gaussian logits, bounded ones, two remedies, a real model."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import softlookup as sl

from ..figure import THEORY, WITH, WITHOUT, halves
from ..run import Given
from . import model

ROWS, KEYS, RANGE, ABOVE = 256, 16384, 6.0, 5.0
WIDE, SPARSE = (1.0, 1.25, 1.5, 1.75, 2.0), (0.5, 0.75, 1.0, 1.25)
"""Deviations σ of Gaussian logits, for the entropy and for 1 / Σp²."""
LENGTHS = (256, 1024, 4096, 16384, 65536)
FIXED, SSMAX = sl.ScaledDot(), sl.ScaledDot(ssmax=0.3)


def seen(keys: Tensor, score: sl.Score, factors: tuple[float, ...] = (1.0,), temperature: float = 1.0) -> sl.Stats:
    """Of logits factor · key (before SSMax, if the score has it), keys (rows, n): statistics (rows, factors)."""
    query = keys.new_tensor(factors).expand(len(keys), -1)[..., None]
    names = ("entropy", "effective_keys", "max_weight")
    k = keys[..., None]
    return sl.attend(query, k, k, score=score, normalizer=sl.Softmax(temperature), stats=names)[1]


def one_above(n: int, rest: float, best: float) -> Tensor:
    """(1, n)."""
    keys = torch.full((1, n), rest, dtype=torch.float64)
    keys[0, 0] = best
    return keys


def slope(x: Any, y: Any) -> float:
    return float(np.polyfit(x, y, 1)[0])


def gaussian(score: sl.Score) -> dict[str, Any]:
    """Logits of several deviations, the last beyond the freezing."""
    factors = (*SPARSE, *WIDE, 2 * math.sqrt(2 * math.log(KEYS)))
    stats = seen(torch.randn(ROWS, KEYS, dtype=torch.float64), score, factors)
    entropy, logs = stats.entropy.mean(0).tolist(), stats.effective_keys.log().mean(0).tolist()
    narrow = len(SPARSE)
    return {
        "gaussian": slope(np.square(WIDE), entropy[narrow:-1]),
        "effective": slope(np.square(SPARSE), logs[:narrow]),
        "frozen": entropy[-1],
    }


def bounded(score: sl.Score) -> dict[str, Any]:
    """Logits in a range, uniform and in the worst case, by length."""
    entropies, shares = [], []
    for n in LENGTHS:
        stats = seen((torch.rand(ROWS // 4, n, dtype=torch.float64) - 0.5) * RANGE, score)
        worst = seen(one_above(n, -RANGE / 2, RANGE / 2), score)
        entropies.append(float(stats.entropy.mean()))
        largest = max(float(stats.max_weight.max()), float(worst.max_weight))
        shares.append(largest * (1 + (n - 1) * math.exp(-RANGE)))
    return {"growth": slope(np.log(LENGTHS), entropies), "bound": max(shares), "entropies": entropies}


def remedies(remedy: bool) -> dict[str, Any]:
    """The weight of one key above all others, as n grows: under SSMax, and at a temperature that keeps the entropy."""
    from scipy.optimize import brentq

    keys = [one_above(n, 0.0, ABOVE) for n in LENGTHS]
    first, last = keys[0], keys[-1]
    weights = [float(seen(some, SSMAX if remedy else FIXED).max_weight) for some in keys]
    before = seen(first, FIXED)

    def excess(temperature: float) -> float:
        return float(seen(last, FIXED, temperature=temperature).entropy - before.entropy)

    kept = seen(last, FIXED, temperature=brentq(excess, 0.2, 1.0) if remedy else 1.0)
    return {"ssmax": weights[-1], "adaptive": float(kept.max_weight / before.max_weight), "weights": weights}


def measure(given: Given) -> dict[str, Any]:
    torch.manual_seed(given.seed)
    found = gaussian(SSMAX if given.control else FIXED) | bounded(SSMAX if given.control else FIXED)
    found |= remedies(not given.control)
    passage = f"passage {given.seed}, {model.TOKENS} tokens{', SSMax' if given.control else ''}"
    # A quick run reads the records too: the model may not be installed.
    by_length = given.records.get(f"SmolLM2, {passage}", partial(model.growth, given.seed, given.control))
    laws = given.records.get(f"SmolLM2's logits, {passage}", partial(model.laws, given.seed, given.control))
    found |= {f"model_{name}": number for name, number in laws.items()}
    return found | {"model": slope(*zip(*by_length, strict=True)), "by_length": by_length}


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    left, right = halves(axes)
    n, fine = np.array(LENGTHS), np.geomspace(LENGTHS[0], LENGTHS[-1], 100)
    left.plot(n, np.mean([each["entropies"] - np.log(n) for each in found]) + np.log(n), color=THEORY, lw=0.9, label="slope 1")
    for some, colour, label in ((found, WITH, "fixed"), (control, WITHOUT, "× log n")):
        left.plot(n, np.mean([each["entropies"] for each in some], 0), "o", color=colour, ms=4, label=f"uniform, {label}")
        x, y = np.mean([each["by_length"] for each in some], 0).T
        left.plot(np.exp(x), y, "s-", color=colour, ms=4, lw=0.8, mfc="none", label=f"SmolLM2, {label}")
    for logit in (np.full_like(fine, ABOVE), 0.3 * ABOVE * np.log(fine)):
        right.plot(fine, 1 / (1 + (fine - 1) * np.exp(-logit)), color=THEORY, lw=0.9)
    right.plot(n, found[0]["weights"], "o", color=WITH, ms=4, label="SSMax, logits × 0.3 log n")
    right.plot(n, control[0]["weights"], "o", color=WITHOUT, ms=4, mfc="none", label="fixed logits")
    left.set(xscale="log", xlabel="keys n", ylabel="mean entropy (nats)", ylim=(0, 17))
    right.set(xscale="log", xlabel="keys n", ylabel="weight of a key 5 above all others", ylim=(0, 1.05))
    left.legend(frameon=False, fontsize=8, loc="upper left")
    right.legend(frameon=False, fontsize=8, loc="center right")
