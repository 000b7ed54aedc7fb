"""Adds to reactions.json what rxnmapper's own code maps, from the same weights. Needs its dependencies (RDKit, rxn-utils).

For each atom of the product the number of the reactants' atom that the package assigns to it: its layer 10, head 5, both
directions together, only equal elements, neighbours preferred (Schwaller et al. 2021).
"""

import json
from pathlib import Path
from typing import Any

import rxnmapper.core as core
import torch
from rxnmapper.tokenization_smiles import BasicSmilesTokenizer

from softlookup.lab.domains.chemistry import loaded

REACTIONS = Path(__file__).with_name("reactions.json")


class Tokenizer:
    """What the package asks of a tokenizer, by the one that softlookup made of the same vocabulary: the package's own is of an
    older transformers."""

    cls_token, sep_token = "[CLS]", "[SEP]"
    all_special_tokens = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"]
    basic_tokenizer = BasicSmilesTokenizer()

    def batch_encode_plus(self, reactions: list[str], **_: Any) -> Any:
        return loaded().tokenizer(reactions, padding=True, return_tensors="pt")


class Weights(torch.nn.Module):
    """The model, which gives its weights as the package reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.config = loaded().model.config

    def forward(self, **batch: Any) -> tuple[None, None, Any]:
        model: Any = loaded().model
        model.set_attn_implementation("eager")
        return None, None, model(**batch, output_attentions=True).attentions


if __name__ == "__main__":
    setattr(core.RXNMapper, "_load_model_and_tokenizer", lambda self: (Weights().eval(), Tokenizer()))  # noqa: B010
    mapper, reactions = core.RXNMapper(), json.loads(REACTIONS.read_text(encoding="utf-8"))
    for each in reactions:
        (found,) = mapper.get_attention_guided_atom_maps([each["reaction"]], canonicalize_rxns=False, detailed_output=True)
        each["mapped"] = [int(atom) for atom in found["pxr_mapping_vector"]]
    rows = ",\n".join(map(json.dumps, reactions))
    REACTIONS.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
