"""rxnmapper's ALBERT reads reactions: does an atom of the product look at the atom that it comes from?"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

import softlookup as sl
from softlookup.inspection.loading import Loaded, load
from softlookup.watching import Call

from ..run import Given
from .looking import shuffled

LAYER, HEAD, GROUPS = 10, 5, 5


@cache
def loaded() -> Loaded:
    return load("rxnmapper")


def measure(given: Given) -> dict[str, Any]:
    """Each seed reads four reactions of its own."""
    reactions = json.loads(Path(__file__).with_name("reactions.json").read_text(encoding="utf-8"))
    right, mapped, pairs = [], [], []
    for each in reactions[given.seed % GROUPS :: GROUPS]:
        ids = loaded().tokenizer(each["reaction"]).input_ids
        words = loaded().tokenizer.convert_ids_to_tokens(ids)
        atoms = [place for place, word in enumerate(words) if is_atom(word)]
        first = sum(place < words.index(">>") for place in atoms)  # of the product
        strongest, among = looked_at(given, ids, atoms[:first])
        for product, origin, atom in zip(atoms[first:], each["origin"], each["mapped"], strict=True):
            places = [atoms[number] for number in origin]
            right.append(strongest[product] in places)
            mapped.append(among[product] in (places if atom in origin else [atoms[atom]]))
            pairs.append([strongest[product] if right[-1] else places[0], strongest[product]])
    return {"origin": sum(right) / len(right), "mapped": sum(mapped) / len(mapped), "pairs": pairs}


def looked_at(given: Given, ids: list[int], atoms: list[int]) -> list[list[int]]:
    """The strongest key of each token's query in the head, and the strongest among atoms."""
    visible = torch.zeros(len(ids), dtype=torch.bool)
    visible[atoms] = True
    found: list[list[int]] = []

    def probe(call: Call) -> None:
        if call.layer.endswith(f"#{LAYER + 1}"):  # ALBERT calls one module again for each layer
            for mask in (None, visible.expand(len(ids), -1)):
                _, stats = sl.attend(call.query, call.key, call.value, **call.arguments | {"mask": mask}, stats="argmax")
                found.append(stats.argmax[0, HEAD].tolist())

    with torch.no_grad(), shuffled(loaded().model, given), sl.watch(loaded().model, stats="argmax", probes=[probe]):
        loaded().model(input_ids=torch.tensor([ids]))
    return found


def is_atom(word: str) -> bool:
    return word[0].isalpha() or (word[0] == "[" and word not in ("[CLS]", "[SEP]"))
