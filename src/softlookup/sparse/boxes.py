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

from ..errors import SoftlookupError
from ..problem import same_length
from ..scores import ScaledDot, same_width, single

AT_ONCE = 2**19
"""Pairs of a query and a block of keys whose bounds are looked at together: near the processor they stay."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """Least, largest and mean of each dimension of N blocks of keys (B, H, E, N), how many keys they have (N,), and the length
    of the longest (B, H, 1, 1); of P blocks of queries (P, N) which blocks of keys they always read, as causal they meet their
    own, and which they never do."""

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
    def of(cls, query: Tensor, key: Tensor, causal: bool, scale: float | None, rows: int, keys: int) -> Boxes:
        (_, heads, length, width), total = query.shape, key.shape[2]
        same_width(ScaledDot(), query, key)
        if causal:
            same_length(query, keys=key)
        scale = width**-0.5 if scale is None else scale
        if not 0 < scale < math.inf:
            raise SoftlookupError(f"scale: expected a finite number > 0, got {scale}")
        if not all(math.isfinite(end) for x in (query, key) for end in x.aminmax()):
            raise SoftlookupError("query, key: expected finite numbers, as blocks are chosen by them, got some that are not")
        key, whole = single(key), total // keys
        parts = [key[:, :, : whole * keys].unflatten(2, (whole, keys)), key[:, :, whole * keys :].unsqueeze(2)]
        parts = [part for part in parts if part.shape[2] and part.shape[3]]
        size = torch.cat([torch.full((part.shape[2],), part.shape[3], device=key.device) for part in parts])
        first = torch.arange(len(size), device=key.device) * keys
        start = torch.arange(-(-length // rows), device=key.device)[:, None] * rows
        never = (first >= start + rows) if causal else torch.zeros(len(start), len(size), dtype=torch.bool, device=key.device)
        always = ~never & (first + keys > start) if causal else never
        known = (torch.cat([of(part, 3) for part in parts], 2) for of in (torch.amin, torch.amax, torch.mean))
        low, high, mean = (x.mT.repeat_interleave(heads // x.shape[1], 1) for x in known)
        longest = key.norm(dim=-1).amax(-1).repeat_interleave(heads // key.shape[1], 1)[..., None, None]
        return cls(low, high, mean, size, longest, always, never, scale, rows, length)

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
