"""QK-norm for models that were built without it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UnsupportedError
from ..integrations.projections import NORMS, parts, separate


class _HeadNorm(nn.RMSNorm):
    """RMSNorm of each head's part of a projection: (…, H k) -> (…, H k)."""

    def forward(self, x: Tensor) -> Tensor:
        width = self.normalized_shape[0]
        return F.rms_norm(x.unflatten(-1, (-1, width)), self.normalized_shape, self.weight, self.eps).flatten(-2)


def qk_norm_(model: nn.Module) -> nn.Module:
    """Normalize queries and keys per head, with a learned gain of their width, before any rotation, so that logits stay bounded
    by the gains (Henry et al. 2020, "Query-Key Normalization for Transformers"; in this form Dehghani et al. 2023, Qwen3).

    The new modules are `q_norm` and `k_norm` of each attention layer: call it before the optimizer is made, and again before a
    state that has them is loaded. It changes what the model computes: use it from the start of a run.

    Returns: the model itself.

    Raises:
        UnsupportedError: where a layer's queries and keys come out of one fused projection, or are normalized already.
    """
    found = parts(model)
    for part in found:
        where = part.path or "the model itself"
        if separate(part.module) is None:
            raise UnsupportedError(
                f"qk_norm_: expected separate projections of queries and keys, got {where} ({type(part.module).__name__}); "
                "qk_clip_ takes fused ones too"
            )
        if part.normalized:
            raise UnsupportedError(f"qk_norm_: expected queries and keys without a norm, got one in {where}")
    for part in found:
        for linear, names in zip(separate(part.module) or (), NORMS, strict=False):
            norm = _HeadNorm(part.query.shape[1]).to(linear.weight)
            setattr(part.module, names[0], norm)
            linear.register_forward_hook(_Through(norm))
    return model


class _Through:
    """A forward hook that passes the output through a module, which is registered elsewhere."""

    def __init__(self, norm: nn.Module):
        self._norm = norm

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return self._norm(output)
