"""What the four models have in common: one watched pass, and its control."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import softlookup as sl
from softlookup.watching import LayerSeen

from ..run import Given

PROJECTION = re.compile(r"(q_proj|k_proj|query|key)\.weight$")


def looked(model: nn.Module, given: Given, **batch: Any) -> list[LayerSeen]:
    """What each attention layer did in one pass, all statistics by query; in the control with shuffled projections."""
    with torch.no_grad(), shuffled(model, given), sl.watch(model, keep="rows") as seen:
        model(**batch)
    return list(seen.layers.values())


@contextmanager
def shuffled(model: nn.Module, given: Given) -> Iterator[None]:
    """In the control, the entries of every matrix of queries and keys in another order until the end of the block."""
    chosen = torch.Generator().manual_seed(given.seed)
    matrices = [x for name, x in model.named_parameters() if given.control and PROJECTION.search(name)]
    before = [x.detach().clone() for x in matrices]
    with torch.no_grad():
        for x in matrices:
            x.copy_(x.flatten()[torch.randperm(x.numel(), generator=chosen)].view_as(x))
        try:
            yield
        finally:
            for x, old in zip(matrices, before, strict=True):
                x.copy_(old)
