"""Sparse normalizers: most keys get exactly no weight."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from ..errors import SoftlookupError
from .base import every_entry
from .threshold import Threshold


class Entmax(Threshold):
    """p_ij = [(alpha - 1)(s_ij - rho_i)]_+ ^ (1 / (alpha - 1)), summing to 1 (Peters, Niculae & Martins 2019, eq. 12).

    The maximizer of p . s + (1 - sum p^alpha) / (alpha (alpha - 1)), which adds Tsallis' entropy. alpha = 1 is softmax; the
    larger alpha, the sparser; 2 is `Sparsemax`. Keys that score below rho, the `threshold`, have no weight: at the least those
    that score 1 / (alpha - 1) less than the best.

    alpha: a number >= 1, or a tensor >= 1 of shape () or (H,), which gets a gradient (Correia, Niculae & Martins 2019).

    Scores are counted from rho for alpha of 1.5 and 2, else from where a key would have weight 1, which is 1 / (alpha - 1)
    above it, so that weights and their derivatives keep their digits while alpha goes to 1 and rho to minus infinity.
    """

    def __init__(self, alpha: float | Tensor = 1.5, temperature: float | Tensor = 1.0):
        super().__init__(temperature)
        self.alpha = alpha

    def check(self, batch: int, heads: int, queries: int) -> None:
        super().check(batch, heads, queries)
        alpha = self.alpha
        if isinstance(alpha, Tensor):
            if alpha.dtype == torch.bool or alpha.is_complex():
                raise SoftlookupError(f"alpha: expected a tensor of real numbers >= 1, got one of {alpha.dtype}")
            every_entry("alpha", alpha, alpha >= 1, ">= 1")
        elif not isinstance(alpha, Real) or isinstance(alpha, bool) or not 1 <= alpha < math.inf:
            raise SoftlookupError(f"alpha: expected a finite number >= 1, got {alpha!r}")

    def parameters(self) -> tuple[Tensor, ...]:
        return (self.alpha,) if isinstance(self.alpha, Tensor) else ()

    def weight(self, x: Tensor, *alpha: Tensor) -> Tensor:
        a = self._curve(alpha)
        if not isinstance(a, Tensor):
            match a:
                case 0:
                    return x.exp()
                case 0.5:
                    return (x / 2).clamp(min=0).square()
                case 1:
                    return x.clamp(min=0)
        u = a * x
        some = u > -1
        return torch.where(some, x * log1p_ratio(torch.where(some, u, 0)), -math.inf).exp()

    def reach(self, w: Tensor, *alpha: Tensor) -> Tensor:
        a = self._curve(alpha)
        if not isinstance(a, Tensor):
            match a:
                case 0:
                    return w.log()
                case 0.5 | 1:
                    return w**a / a
        else:
            a = a.clamp(min=1e-30)  # with which the quotient is log w
        return torch.expm1(a * w.log()) / a

    def slope(self, x: Tensor, w: Tensor, *alpha: Tensor) -> Tensor:
        """w^(2 - alpha), 0 where w is."""
        a = self._curve(alpha)
        if not isinstance(a, Tensor):
            match a:
                case 0:
                    return w
                case 0.5:
                    return w.sqrt() if not w.requires_grad else torch.where(w > 0, w, 1).sqrt() * (w > 0)
                case 1:
                    return (w > 0).to(w.dtype)
        some = w > 0
        return torch.where(some, torch.where(some, w, 1) ** (1 - a), 0)

    def edge(self, *alpha: Tensor) -> float | Tensor:
        a = self._curve(alpha)
        if not isinstance(a, Tensor):
            return 0 if a in (0, 0.5, 1) else -1 / a
        return torch.where(a == 0, 0, -1 / torch.where(a == 0, 1, a))

    def _curve(self, alpha: tuple[Tensor, ...]) -> float | Tensor:
        """alpha - 1."""
        if alpha:
            return alpha[0] - 1
        assert not isinstance(self.alpha, Tensor)
        return float(self.alpha) - 1


def log1p_ratio(u: Tensor) -> Tensor:
    """log(1 + u) / u. By its series near 0, where the derivative of the quotient would lose its digits."""
    near = u.abs() < 0.05
    small, series = torch.where(near, u, 0), torch.zeros_like(u)
    for k in range(12, -1, -1):
        series = (-1) ** k / (k + 1) + small * series
    other = torch.where(near, 1, u)
    return torch.where(near, series, other.log1p() / other)


class Sparsemax(Entmax):
    """p = the point of the simplex nearest to the scores, [s_ij - rho_i]_+ (Martins & Astudillo 2016): `Entmax(2)`."""

    def __init__(self, temperature: float | Tensor = 1.0):
        super().__init__(2.0, temperature)
