"""What is known of blocks of keys without reading them: of each dimension the least, the largest and the mean.

No key of a block scores more than

    upper = scale sum_d max(q_d low_d, q_d high_d)                                       (Tang et al. 2024, Quest, eq. 2)

so that its n keys weigh at most n exp(upper) before normalization, and at least n exp(scale q . mean) by Jensen's inequality.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import SoftlookupError, at_least_one
from ..masks import describe
from ..problem import Shapes, four_dimensional
from ..running import autocast
from ..scores import ScaledDot, same_width, single
from .blocks import KEYS

AT_ONCE = 2**19
"""Pairs of a query and a block of keys whose bounds are looked at together: near the processor they stay."""


class Boxes:
    """Of N blocks of keys the least, the largest and the mean of each dimension, (…, Hkv, N, E), and the length of the longest
    key, (…, Hkv, 1, 1): what `attend`, `top_blocks` and `missed` ask of keys, to be made once where keys are asked again.

    key: (…, Hkv, S, E), as attention reads it: under autocast, made there. keys: per block.
    """

    @torch.no_grad()
    def __init__(self, key: Tensor, keys: int = KEYS):
        at_least_one("Boxes", keys=keys)
        if not isinstance(key, Tensor) or not key.is_floating_point() or key.ndim < 2 or not key.numel():
            raise SoftlookupError(f"Boxes: expected keys (…, S, E), got {describe(key)}")
        (key,) = autocast(key)
        self.shape, self.dtype, self.device, self.keys = tuple(key.shape), key.dtype, key.device, keys
        parts = [part for part in _cut(single(key), keys) if part.numel()]
        known = (torch.cat([of(part, -2) for part in parts], -2) for of in (torch.amin, torch.amax, torch.mean))
        self.low, self.high, self.mean = known
        self.longest = single(key).norm(dim=-1, keepdim=True).amax(-2, keepdim=True)

    def extended(self, key: Tensor) -> Boxes:
        """Those of more keys: key (…, Hkv, S', E), all of them, begins with those that these are of, which are not read again
        but for a block that was not full."""
        if not isinstance(key, Tensor) or key.ndim < 2:
            raise SoftlookupError(f"Boxes: expected keys (…, S, E), got {describe(key)}")
        *lead, length, width = self.shape
        if (*key.shape[:-2], key.shape[-1]) != (*lead, width) or key.shape[-2] < length:
            want = f"the {length} keys so far and those after them"
            raise SoftlookupError(f"Boxes: expected {want}, {self.shape} or longer, got shape {tuple(key.shape)}")
        if key.shape[-2] == length:
            return self
        known = length // self.keys
        made = Boxes(key[..., known * self.keys :, :], self.keys)
        made.shape, made.longest = tuple(key.shape), torch.maximum(self.longest, made.longest)
        for name in ("low", "high", "mean"):
            setattr(made, name, torch.cat([getattr(self, name)[..., :known, :], getattr(made, name)], -2))
        return made

    def check(self, key: Tensor) -> None:
        """Raise unless these are of keys such as these."""
        if (self.shape, self.dtype, self.device) != (want := (tuple(key.shape), key.dtype, key.device)):
            got = f"{self.shape} in {self.dtype} on {self.device}"
            raise SoftlookupError(f"boxes: expected those of the keys, {want[0]} in {want[1]} on {want[2]}, got those of {got}")


def _cut(key: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Keys (…, S, E) in whole blocks (…, n, keys, E) and those that are left, (…, 1, S - n keys, E)."""
    whole = key.shape[-2] // keys * keys
    return key[..., :whole, :].unflatten(-2, (-1, keys)), key[..., whole:, :].unsqueeze(-3)


@dataclass(frozen=True, eq=False)
class Bounds:
    """What boxes say about queries: least, largest and mean of each dimension of N blocks of keys (B or 1, H, E, N), how many
    keys they have (N,), and the length of the longest (B or 1, H, 1, 1); of P blocks of queries (P, N) which blocks of keys
    they always read, as causal they meet their own, and which they never do."""

    low: Tensor
    high: Tensor
    mean: Tensor
    size: Tensor
    longest: Tensor
    always: Tensor
    never: Tensor
    scale: float
    rows: int
    length: int

    @classmethod
    def of(cls, query: Tensor, boxes: Boxes, shapes: Shapes, causal: bool, scale: float | None, rows: int) -> Bounds:
        (_, heads, length, width), total, keys = query.shape, boxes.shape[-2], boxes.keys
        same_width(ScaledDot(), query, boxes.low)
        if causal and length != total:
            raise SoftlookupError(f"causal: expected as many keys as queries, {length}, got {total}")
        scale = width**-0.5 if scale is None else scale
        if not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise SoftlookupError(f"scale: expected a finite number > 0, got {scale!r}")
        if not all(math.isfinite(end) for x in (query, boxes.low, boxes.high) for end in x.aminmax()):
            raise SoftlookupError("query, key: expected finite numbers, as blocks are chosen by them, got some that are not")
        rows = min(rows, length)
        first = torch.arange(0, total, keys, device=query.device)
        start = torch.arange(0, length, rows, device=query.device)[:, None]
        never = (first >= start + rows) & causal
        always = ~never & (first + keys > start) & causal
        known = (four_dimensional("boxes", x, shapes) for x in (boxes.low, boxes.high, boxes.mean, boxes.longest))
        low, high, mean, longest = (x.mT.repeat_interleave(heads // x.shape[1], 1) for x in known)
        size = (total - first).clamp(max=keys)
        return cls(low, high, mean, size, longest, always, never, float(scale), rows, length)

    @property
    def blocks(self) -> int:
        """How many of keys."""
        return len(self.size)

    def panels(self, query: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Some blocks of queries (B, H, L, E) after the other: which, and their queries times the scale, (B, H, P R, E)."""
        together = max(1, AT_ONCE // (query.shape[0] * query.shape[1] * self.rows * self.blocks))
        for start in range(0, len(self.always), together):
            some = slice(start, min(start + together, len(self.always)))
            q = query[:, :, start * self.rows : some.stop * self.rows].to(self.low.dtype) * self.scale
            yield some, pad(q, (0, 0, 0, -q.shape[2] % self.rows))

    def upper(self, q: Tensor) -> Tensor:
        """(B, H, P, R, N) a bound from above of the log of what each block weighs, for queries of a panel."""
        return self._in_blocks(q.clamp(min=0) @ self.high + q.clamp(max=0) @ self.low + self.size.log() + self._rounding(q))

    def lower(self, q: Tensor) -> Tensor:
        """… from below."""
        return self._in_blocks(q @ self.mean + self.size.log() - self._rounding(q))

    def real(self, some: slice) -> Tensor:
        """(P, R) which rows of these blocks of queries there are."""
        rows = torch.arange(self.rows, device=self.size.device)
        return torch.arange(len(self.always), device=rows.device)[some, None] * self.rows + rows < self.length

    def _rounding(self, q: Tensor) -> Tensor:
        """What it may do to a query's scores and bounds."""
        return torch.finfo(q.dtype).eps * (16 + self.blocks + 2 * q.shape[-1] * q.norm(dim=-1, keepdim=True) * self.longest)

    def _in_blocks(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.rows))
