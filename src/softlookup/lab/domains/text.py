"""SmolLM2 reads Python's documentation: which heads rest on the first token, which read the token before."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from softlookup.inspection.findings import find
from softlookup.inspection.heads import summarize
from softlookup.inspection.loading import Loaded, load
from softlookup.inspection.text import read, read_text

from ..run import Given
from .looking import looked


@cache
def loaded() -> Loaded:
    return load("smollm2")


def measure(given: Given) -> dict[str, Any]:
    """Each seed reads a piece of its own."""
    length, model = 128 if given.quick else 512, loaded().model
    ids = read(loaded().tokenizer, read_text(None)[0], (given.seed + 1) * length).batch["input_ids"]
    layers = looked(model, given, input_ids=ids[:, -length:])
    places = torch.arange(length)
    summaries = [summarize(number, layer, layer.stats, places) for number, layer in enumerate(layers)]
    heads = [layer.head(number) for layer in summaries for number in range(layer.heads)]
    kinds = [finding.kind for finding in find(heads)]
    wide = [head.wide or {} for head in heads]
    return {
        "sinks": kinds.count("sink") / len(heads),
        "previous": kinds.count("previous_token"),
        "heads": [[round(head["parked"], 3), round(head["previous_token"], 3)] for head in wide],
    }
