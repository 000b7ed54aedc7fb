"""σReparam: weights whose spectral norm is a learned number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from ..errors import SoftlookupError


class _Times(nn.Module):
    """A learned factor."""

    def __init__(self, gamma: Tensor):
        super().__init__()
        self.gamma = nn.Parameter(gamma)

    def forward(self, weight: Tensor) -> Tensor:
        return self.gamma * weight


def sigma_reparam_(model: nn.Module, gamma: float | None = None) -> nn.Module:
    """Every Linear layer's weight becomes gamma W / |W|_2, gamma learned and the spectral norm from one step of power iteration
    at a time (Zhai et al. 2023, "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", eq. 4). Logits,
    and with them the fall of entropy, are then bounded by the gammas.

    gamma: where it begins; by default at the norm that the weight has, so that the model computes what it did (the paper
    begins at 1). The parameters change: call it before the optimizer is made. Layers that have another parametrization of the
    weight, and those that share theirs with another module (tied embeddings), are left alone; so are the queries and keys of
    nn.MultiheadAttention, which are no Linear layers. Under gradient checkpointing what is computed again has had one more step
    of the iteration.

    Returns: the model itself.
    """
    shared: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            shared[id(parameter)] = shared.get(id(parameter), 0) + 1
    linears = [
        x
        for x in model.modules()
        if isinstance(x, nn.Linear) and not parametrize.is_parametrized(x, "weight") and shared[id(x.weight)] == 1
    ]
    if not linears:
        raise SoftlookupError(f"sigma_reparam_: expected Linear layers, found none in {type(model).__name__}")
    for linear in linears:
        norm = torch.linalg.matrix_norm(linear.weight.detach().float(), 2).to(linear.weight)
        u, _, vh = torch.linalg.svd(linear.weight.detach().float(), full_matrices=False)
        parametrizations.spectral_norm(linear, "weight", n_power_iterations=1)
        parametrized: Any = linear.parametrizations
        iteration = parametrized.weight[0]  # begins with the right vectors, not near them
        iteration._u.copy_(u[:, 0]), iteration._v.copy_(vh[0])
        begin = norm if gamma is None else torch.full_like(norm, gamma)
        parametrize.register_parametrization(linear, "weight", _Times(begin))
    return model
