"""f(sqrt(u)) / sqrt(u), smooth through u = 0: near 0 by its series, as the derivative of a quotient loses all digits there."""

from __future__ import annotations

from collections.abc import Callable
from math import comb, factorial

import torch
from torch import Tensor
from torch.autograd import forward_ad

NEAR = 0.03
"""Up to here 11 terms leave less than 1e-17, and beyond, the quotient's derivative has lost two digits."""
_SIN = [(-1) ** k / factorial(2 * k + 1) for k in range(11)]
_ARCSIN = [comb(2 * k, k) / 4**k / (2 * k + 1) for k in range(11)]


def sinc(u: Tensor) -> Tensor:
    """sin(sqrt(u)) / sqrt(u), u >= 0."""
    return _over_root(torch.sin, u, _SIN)


def sinhc(u: Tensor) -> Tensor:
    """sinh(sqrt(u)) / sqrt(u), u >= 0."""
    return _over_root(torch.sinh, u, [abs(a) for a in _SIN])


def arcsinc(u: Tensor) -> Tensor:
    """arcsin(sqrt(u)) / sqrt(u), 0 <= u < 1."""
    return _over_root(torch.asin, u, _ARCSIN)


def arsinhc(u: Tensor) -> Tensor:
    """arsinh(sqrt(u)) / sqrt(u), u >= 0."""
    return _over_root(torch.asinh, u, [(-1) ** k * a for k, a in enumerate(_ARCSIN)])


def _over_root(f: Callable[[Tensor], Tensor], u: Tensor, coefficients: list[float]) -> Tensor:
    if not torch.is_grad_enabled() and forward_ad.unpack_dual(u).tangent is None:  # the quotient itself keeps its digits
        root = u.clamp(min=torch.finfo(u.dtype).tiny).sqrt()
        return f(root) / root
    near = u < NEAR
    small, root = torch.where(near, u, 0), torch.where(near, 1, u).sqrt()
    series = torch.full_like(u, coefficients[-1])
    for a in reversed(coefficients[:-1]):
        series = a + small * series
    return torch.where(near, series, f(root) / root)
