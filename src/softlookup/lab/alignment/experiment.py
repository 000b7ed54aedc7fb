"""Where a model that says the sounds of a spelling looks, and how softly."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr

from softlookup.training import g2p
from softlookup.training.batches import padded
from softlookup.training.command import found as folder_of
from softlookup.training.runs import load

from ..figure import THEORY, WITH, WITHOUT, halves
from ..run import Given

PARTS, QUICK = 8, 24
"""Into so many parts the test words are dealt; a seed has one."""
BINS = 8
"""Of the way through a word, in the figure."""

dictionary = cache(g2p.read)


@cache
def ambiguity() -> dict[str, float]:
    """H(phone | letter) in nats, from training words of as many letters as phones, which are paired one by one."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for pair in dictionary().train:
        for phones in pair.references:
            if len(phones) == len(pair.source):
                for letter, phone in zip(pair.source, phones, strict=True):
                    counts[letter][phone] += 1
    return {letter: _entropy(each) for letter, each in counts.items()}


def _entropy(counts: Counter[str]) -> float:
    total = counts.total()
    return -sum(n / total * math.log(n / total) for n in counts.values())


class Look(NamedTuple):
    """At a word: for each phone (T,) the place of the strongest letter, and the entropy of the weights."""

    letters: tuple[str, ...]
    places: np.ndarray
    entropy: np.ndarray

    @property
    def order(self) -> float:
        """Spearman's correlation of steps and places, 0 for one place throughout."""
        return 0.0 if np.ptp(self.places) == 0 else float(spearmanr(np.arange(len(self.places)), self.places).statistic)


def looks(given: Given) -> list[Look]:
    run = load(folder_of("g2p"))
    record, model = run.record, run.models[0]
    if given.control:
        torch.manual_seed(given.seed)
        model = record.config.build(record.source, record.target).eval()
    words = [(pair.source, pair.references[0]) for pair in dictionary().test[given.seed :: QUICK if given.quick else PARTS]]
    words = [(letters, phones) for letters, phones in words if len(letters) > 1 and len(phones) > 2]
    batch = padded([(record.source.numbers(letters), record.target.numbers(phones)) for letters, phones in words])
    with torch.no_grad():
        _, seen = model(batch.source, batch.lengths, batch.given, stats=("argmax", "entropy"))
    places, entropies = seen.argmax[:, 0].numpy(), seen.entropy[:, 0].numpy()
    return [
        Look(letters, at[: len(phones)], entropy[: len(phones)])  # the end of the word is no phone
        for (letters, phones), at, entropy in zip(words, places, entropies, strict=True)
    ]


def measure(given: Given) -> dict[str, Any]:
    found = looks(given)
    one_by_one = [each for each in found if len(each.letters) == len(each.places)]
    letters = np.concatenate([each.letters for each in one_by_one])
    entropy = np.concatenate([each.entropy for each in one_by_one])
    done = np.concatenate([np.linspace(0, 1, len(each.places)) for each in found])
    reached = np.concatenate([each.places / (len(each.letters) - 1) for each in found])
    bins = np.round(done * BINS)
    return {
        "forward": float(np.mean(np.concatenate([np.diff(each.places) >= 0 for each in found]))),
        "order": float(np.mean([each.order for each in found])),
        "ambiguity": float(spearmanr([ambiguity()[letter] for letter in letters], entropy).statistic),
        "ambiguities": ambiguity(),
        "entropies": {str(letter): float(entropy[letters == letter].mean()) for letter in np.unique(letters)},
        "path": [float(reached[bins == k].mean()) for k in range(BINS + 1)],
    }


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    left, right = halves(axes)
    steps = np.linspace(0, 1, BINS + 1)
    left.plot([0, 1], [0, 1], color=THEORY, lw=0.9, label="in order")
    for results, colour, label in ((found, WITH, "trained"), (control, WITHOUT, "before training")):
        for n, each in enumerate(results):
            left.plot(steps, each["path"], "o-", color=colour, ms=3, lw=0.8, alpha=0.6, label=None if n else label)
        for letter, ambiguous in results[0]["ambiguities"].items():
            some = [each["entropies"][letter] for each in results if letter in each["entropies"]]
            right.annotate(letter, (ambiguous, np.mean(some)), color=colour, ha="center", va="center")
    left.set(xlabel="share of phones said", ylabel="place of the strongest letter, mean")
    left.legend(frameon=False, fontsize=8)
    right.set(xlabel="H(phone | letter), nats", ylabel="entropy of attention at this letter, nats")
    right.set(xlim=(-0.1, 2), ylim=(0, 2.2))
