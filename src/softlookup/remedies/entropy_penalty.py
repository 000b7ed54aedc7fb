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
    below = []
    for layer in seen.layers.values():
        if layer.count:
            ratio = layer.graph("entropy_ratio").float()
            counted = layer.counted.to(ratio.device)
            mean = torch.where(counted, ratio, 0.0).sum((0, 2)) / counted.sum((0, 2)).clamp(min=1)
            below.append((floor - mean).clamp(min=0).square()[counted.any(2).any(0)].sum())
    if not below:
        raise SoftlookupError("entropy_penalty: expected a forward pass since seen was cleared, got none")
    penalty = torch.stack(below).sum()
    if torch.is_grad_enabled() and not penalty.requires_grad:
        raise SoftlookupError(
            "entropy_penalty: expected statistics with a gradient, got none: reentrant checkpointing and nn.MultiheadAttention "
            "with need_weights=True leave none"
        )
    return penalty
