"""rxnmapper's ALBERT reads reactions: does an atom of the product look at the atom that it comes from?"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from softlookup.inspection.loading import Loaded, load

from ..run import Given
from .looking import looked

LAYER, HEAD, GROUPS = 10, 5, 5


@cache
def loaded() -> Loaded:
    return load("rxnmapper")


def measure(given: Given) -> dict[str, Any]:
    """Each seed reads four reactions of its own."""
    reactions = json.loads(Path(__file__).with_name("reactions.json").read_text(encoding="utf-8"))
    right, pairs = [], []
    for each in reactions[given.seed % GROUPS :: GROUPS]:
        ids = loaded().tokenizer(each["reaction"]).input_ids
        words = loaded().tokenizer.convert_ids_to_tokens(ids)
        strongest = looked(loaded().model, given, input_ids=torch.tensor([ids]))[LAYER].rows("argmax")[0, HEAD].long().tolist()
        atoms = [place for place, word in enumerate(words) if is_atom(word)]
        first = sum(place < words.index(">>") for place in atoms)  # of the product
        for product, origin in zip(atoms[first:], each["origin"], strict=True):
            places = [atoms[number] for number in origin]
            right.append(strongest[product] in places)
            pairs.append([strongest[product] if right[-1] else places[0], strongest[product]])
    return {"origin": sum(right) / len(right), "pairs": pairs}


def is_atom(word: str) -> bool:
    return word[0].isalpha() or (word[0] == "[" and word not in ("[CLS]", "[SEP]"))
