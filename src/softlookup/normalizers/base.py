"""What all normalizers share: a temperature."""

from __future__ import annotations

import math
from numbers import Real

from torch import Tensor

from ..errors import SoftlookupError


def every_entry(name: str, x: Tensor, good: Tensor | bool = True, want: str = "") -> None:
    """Raise `SoftlookupError` unless all are finite and good."""
    good = good & x.isfinite()
    if not bool(good.all()):
        want = f"{want} and finite" if want else "finite"
        raise SoftlookupError(f"{name}: expected every entry of the tensor {want}, got {float(x.detach()[~good][0])}")


class Normalizer:
    """How scores become weights.

    temperature: a number >= 0, or a tensor > 0 of shape (), (H,) or broadcastable (B, H, L), which gets a gradient. It divides
    the final score, biases included.
    """

    temperature: float | Tensor = 1.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={x!r}' for name, x in vars(self).items())})"

    def check(self, batch: int, heads: int, queries: int) -> None:
        """Raise `SoftlookupError` if it cannot be used for (B, H, L) rows."""
        t = self.temperature
        if isinstance(t, Tensor):
            fits = t.ndim == 0 or tuple(t.shape) == (heads,)
            if t.ndim == 3:
                fits = all(got in (1, want) for got, want in zip(t.shape, (batch, heads, queries), strict=True))
            if not fits:
                raise SoftlookupError(
                    f"temperature: expected shape (), ({heads},) or one that broadcasts to {(batch, heads, queries)}, "
                    f"got {tuple(t.shape)}"
                )
            every_entry("temperature", t, t > 0, "> 0")
        elif not isinstance(t, Real) or not 0 <= t < math.inf:
            raise SoftlookupError(f"temperature: expected a finite number >= 0, got {t!r}")

    def per_row(self) -> float | Tensor:
        """The temperature as a float, or as a tensor broadcastable to (B, H, L, 1)."""
        t = self.temperature
        if not isinstance(t, Tensor):
            return float(t)
        return t[:, None, None] if t.ndim == 1 else t[..., None] if t.ndim == 3 else t.reshape(1, 1, 1, 1)
