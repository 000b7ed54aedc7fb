"""Numbers for the page, small: 16 bits are finer than a pixel or a percent can show."""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor

MISSING = 65535


def packed(values: Tensor) -> dict[str, Any]:
    """Floats of any shape as base64 of little-endian 16-bit steps between their extremes; ``MISSING`` stands for NaN
    and ±inf."""
    values = values.detach().double().flatten()
    known = torch.isfinite(values)
    low = float(values[known].min()) if bool(known.any()) else 0.0
    high = float(values[known].max()) if bool(known.any()) else 0.0
    steps = (values - low) / max(high - low, 1e-30) * (MISSING - 1)
    steps = torch.where(known, steps.round(), torch.full_like(steps, MISSING))
    return {"low": low, "high": high, "data": _base64(steps, "<u2")}


def packed_keys(keys: Tensor, total: int) -> dict[str, Any]:
    """Key indices (−1: none) as base64; 16 bits while they suffice."""
    width = 2 if total < MISSING else 4
    none = 2 ** (8 * width) - 1
    return {"width": width, "data": _base64(torch.where(keys < 0, none, keys), f"<u{width}")}


def rounded(value: float, digits: int = 4) -> float | None:
    """Significant digits that a reader can use; None for NaN and infinities, which JSON does not know."""
    return float(f"{value:.{digits}g}") if abs(value) < float("inf") else None


def _base64(values: Tensor, dtype: str) -> str:
    return base64.b64encode(values.numpy().astype(dtype).tobytes()).decode("ascii")
