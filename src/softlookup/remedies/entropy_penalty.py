"""A term of the loss that keeps attention from collapsing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..watching import Seen


def entropy_penalty(seen: Seen, floor: float = 0.1) -> Tensor:
    """How far the mean entropy ratio of each head lies below `floor`, squared and summed over heads and layers; its gradient
    flattens heads that collapse and leaves all others alone. Add it, times a weight, to the loss.

    The entropy ratio is H / log(visible keys), from 0 to 1. Rewarding entropy against collapse: Zhai et al. 2023, "Stabilizing
    Transformer Training by Preventing Attention Entropy Collapse", which bounds it from below by σReparam; the hinge is ours.

    seen: of a watch with keep="graph", after the forward pass that the loss is of.
    """
    if not 0 < floor <= 1:
        raise SoftlookupError(f"entropy_penalty: expected a floor above 0 and up to 1, got {floor}")
    below = [
        (floor - layer.graph("entropy_ratio").float().mean((0, 2))).clamp(min=0).square().sum()
        for layer in seen.layers.values()
        if layer.count
    ]
    if not below:
        raise SoftlookupError("entropy_penalty: expected a forward pass since seen was cleared, got none")
    return torch.stack(below).sum()
