"""Queries, keys and values of a real language model reading real text, for benchmarks that compare ways to attend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from softlookup.inspection.loading import load
from softlookup.inspection.text import read_text

Head = tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def of_smollm2(tokens: int) -> list[Head]:
    """Of each layer of SmolLM2-135M reading so many tokens of Python's documentation: queries (1, 9, L, 64), keys and values
    (1, 3, L, 64), as its attention gets them, positions in."""
    loaded = load("smollm2")
    model = loaded.model.eval()
    plain, found = ALL_ATTENTION_FUNCTIONS["sdpa"], list[Head]()

    def kept(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any) -> Any:
        found.append((query, key, value))
        return plain(module, query, key, value, mask, **more)

    ALL_ATTENTION_FUNCTIONS.register("kept", kept)
    model.config._attn_implementation = "kept"
    ids = loaded.tokenizer(read_text(None)[0], return_tensors="pt", truncation=True, max_length=tokens)["input_ids"]
    if ids.shape[1] < tokens:
        raise SystemExit(f"expected a text of {tokens} tokens, got {ids.shape[1]}")
    model(ids)
    return found
