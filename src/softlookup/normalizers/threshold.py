"""Normalizers that compare each score with a threshold of its query: a family, and how to add to it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..errors import SoftlookupError
from .base import Normalizer


class Threshold(Normalizer):
    """w_ij = weight(s_ij / temperature - rho_i), where rho_i, the query's threshold, makes the weights of its keys sum to 1.

    Softmax is one (weight = exp, rho = logsumexp). A normalizer of your own is a subclass with two methods, each of tensors of
    any shape:

        class Cauchy(Threshold):                             # weights fall off as a power of the distance from the best score
            def weight(self, x):                             # >= 0, differentiable, growing with x
                return torch.where(x < 0, 1 / (1 - x.clamp(max=0)), 1 + x)
            def reach(self, w):                              # the x that has this weight, for w > 0
                return torch.where(w < 1, 1 - 1 / w, w - 1)

    It then runs with every score and mask, in O(n) memory, with exact gradients and with statistics. Tensors that `weight`
    depends on are to be listed by `parameters` and are given to every method.
    """

    sums_to_one: ClassVar[bool] = True
    """Where not, weights are weight(s - `level`): nothing is searched for, and they sum to what they do."""

    def __init__(self, temperature: float | Tensor = 1.0):
        self.temperature = temperature

    def parameters(self) -> tuple[Tensor, ...]:
        """Tensors () or (H,) that `weight` depends on; they get a gradient."""
        return ()

    def weight(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Of scores above (below: negative) the threshold. parameters: as listed, broadcastable to x."""
        raise SoftlookupError(f"{type(self).__name__}: expected a Threshold with weight(), got none")

    def reach(self, w: Tensor, *parameters: Tensor) -> Tensor:
        """The inverse of `weight`: how far above the threshold a score of weight w > 0 lies."""
        raise SoftlookupError(f"{type(self).__name__}: expected a Threshold with reach(), got none")

    def slope(self, x: Tensor, w: Tensor, *parameters: Tensor) -> Tensor:
        """The derivative of `weight` at x, where it is w; by autograd unless a subclass knows it."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.weight(leaf, *(p.detach() for p in parameters)).sum(), leaf)
        return slope

    def cut(self, s: Tensor) -> Tensor | None:
        """(…, 1) the score below which keys get no weight, whatever `weight` says, of scores (…, S), -inf where hidden."""
        return None

    def edge(self, *parameters: Tensor) -> float | Tensor:
        """How far above the threshold that is searched for the one lies which `threshold` reports."""
        return 0

    def level(self, visible: Tensor) -> Tensor:
        """The threshold of queries that see so many keys, where weights need not sum to 1."""
        return torch.zeros_like(visible)

    def check(self, batch: int, heads: int, queries: int) -> None:
        super().check(batch, heads, queries)
        if not isinstance(self.temperature, Tensor) and self.temperature == 0:
            raise SoftlookupError("temperature: expected > 0 (at 0 all of them are Softmax(0)), got 0")
        for parameter in self.parameters():
            if not isinstance(parameter, Tensor) or tuple(parameter.shape) not in {(), (heads,)}:
                got = tuple(parameter.shape) if isinstance(parameter, Tensor) else type(parameter).__name__
                raise SoftlookupError(f"{type(self).__name__}: expected tensors of shape () or ({heads},), got {got}")

    def parameters_per_row(self) -> tuple[Tensor, ...]:
        """`parameters`, each broadcastable to (B, H, L, 1)."""
        return tuple(p[:, None, None] if p.ndim else p.reshape(1, 1, 1, 1) for p in self.parameters())
