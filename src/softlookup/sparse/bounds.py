"""Blocks of keys chosen by what they could weigh, and what is certain about those that were not.

Of the keys of a block only the least, the largest and the mean of each dimension are looked at. No key of it scores more than

    upper = scale sum_d max(q_d low_d, q_d high_d)                                       (Tang et al. 2024, Quest, eq. 2)

so that its n keys weigh at most n exp(upper) before normalization, and at least n exp(scale q . mean) by Jensen's inequality.
Blocks are chosen for whole blocks of queries, best first. What the others could weigh, over that and what was read, bounds the
share of a query's weight that is missed: a theorem for any queries and keys, though an empty one where keys within a block
differ much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import operator
from ..errors import SoftlookupError, at_least_one
from ..masks import Causal, Mask
from ..problem import flatten
from ..summary import Stats
from .blocks import KEYS, ROWS, Blocks

AT_ONCE = 2**22
"""Pairs of a query and a block of keys whose bounds are in memory at a time."""


class Found(NamedTuple):
    """value (…, H, L, Ev); missed (…, H, L), the share of each query's weight that it cannot be worse than; the mask; and the
    statistics that were asked for, those of the keys that were read."""

    value: Tensor
    missed: Tensor
    mask: Mask
    stats: Stats


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    k: int | None = None,
    tolerance: float | None = None,
    causal: bool = False,
    scale: float | None = None,
    by: str = "upper",
    rows: int = ROWS,
    keys: int = KEYS,
    stats: tuple[str, ...] = (),
) -> Found:
    """Scaled dot-product attention to the blocks that `top_blocks` chooses, and how much it may have missed.

    query: (…, H, L, E); key: (…, Hkv, S, E); value: (…, Hkv, S, Ev). Arguments are those of `top_blocks`. Gradients are those
    of attention to these blocks.
    """
    blocks = top_blocks(query, key, k=k, tolerance=tolerance, causal=causal, scale=scale, by=by, rows=rows, keys=keys)
    mask = Causal() & blocks if causal else blocks
    found, read = operator.attend(query, key, value, mask=mask, scale=scale, stats=("logsumexp", *stats))
    return Found(found, missed(query, key, blocks, read.logsumexp.detach(), causal=causal, scale=scale), mask, read)


@torch.no_grad()
def top_blocks(
    query: Tensor,
    key: Tensor,
    *,
    k: int | None = None,
    tolerance: float | None = None,
    causal: bool = False,
    scale: float | None = None,
    by: str = "upper",
    rows: int = ROWS,
    keys: int = KEYS,
) -> Blocks:
    """The blocks of keys that could matter most to each block of queries, as a mask for scaled dot-product attention.

    Args:
        query: (…, H, L, E). key: (…, Hkv, S, E).
        k: how many blocks of keys for each block of queries; or
        tolerance: as many as make it certain that no query misses more than this share of its weight.
        causal: keys after a query do not count; blocks that its own block meets are always seen (combine with `sl.Causal()`),
            and counted. L and S must be equal.
        scale: of the scores, 1/sqrt(E) by default.
        by: what makes a block the better, the bound of its scores ("upper") or the score of its mean ("mean"), each beside all
            blocks of a query, for the query to which it matters most.
        rows, keys: per block.
    """
    if (k is None) == (tolerance is None):
        raise SoftlookupError("top_blocks: expected k or tolerance, and not both")
    at_least_one("top_blocks", rows=rows, keys=keys, **({} if k is None else {"k": k}))
    if k is None and not 0 < tolerance < 1:  # type: ignore[operator]
        raise SoftlookupError(f"top_blocks: expected a tolerance between 0 and 1, got {tolerance}")
    if by not in ("upper", "mean"):
        raise SoftlookupError(f"top_blocks: expected by 'upper' or 'mean', got {by!r}")
    q, keys_of, _, _ = flatten(query, key, None)
    boxes = _Boxes.of(q, keys_of, causal, scale, rows, keys)
    live = torch.zeros(*q.shape[:2], -(-q.shape[2] // rows), boxes.count, dtype=torch.bool, device=q.device)
    for some, lower, upper in boxes.bounds(q):
        always, never = boxes.always[some], boxes.never[some]
        outside = (always | never)[:, None]
        whole = torch.where(outside, -math.inf, lower).logsumexp(-1, keepdim=True)
        worth = (upper if by == "upper" else lower) - whole
        worth = torch.where(boxes.real(some)[:, :, None], worth, -math.inf).amax(-2)
        order = worth.masked_fill(always, math.inf).masked_fill(never, -math.inf).argsort(-1, descending=True)
        if k is not None:
            number = torch.full_like(order[..., :1], k)
        else:
            assert tolerance is not None
            number = _enough(order, outside, lower, upper, boxes.real(some), tolerance)
        first = torch.arange(boxes.count, device=q.device) < number
        live[:, :, some] = torch.zeros_like(first).scatter_(-1, order, first) & ~never | always
    return Blocks(live, rows, keys)


def _enough(order: Tensor, outside: Tensor, lower: Tensor, upper: Tensor, real: Tensor, tolerance: float) -> Tensor:
    """(B, H, P, 1) how many of the blocks, in this order (B, H, P, N), bound what each query misses by the tolerance. lower and
    upper (B, H, P, R, N) count where not outside: blocks that are always read come first, those that never are come last."""
    at = order[..., None, :].expand_as(lower)
    low, high = (torch.where(outside, -math.inf, x).gather(-1, at) for x in (lower, upper))
    read = low.logcumsumexp(-1)
    left = high.flip(-1).logcumsumexp(-1).flip(-1)  # of each block and those after it
    left = torch.cat([left[..., 1:], torch.full_like(left[..., :1], -math.inf)], -1)
    fine = (left - read <= math.log(tolerance) - math.log1p(-tolerance)) | (left == -math.inf)
    return (~(fine | ~real[..., None]).all(-2)).sum(-1, keepdim=True) + 1


@torch.no_grad()
def missed(
    query: Tensor, key: Tensor, blocks: Blocks, logsumexp: Tensor, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """(…, H, L) an upper bound on the share of a query's weight that lies outside of the blocks; 1 says nothing. logsumexp:
    (…, H, L), of the scaled dot-product scores of the visible keys in them."""
    q, keys_of, _, shapes = flatten(query, key, None)
    boxes = _Boxes.of(q, keys_of, causal, scale, blocks.rows, blocks.keys)
    read = logsumexp.reshape(q.shape[:3]).to(boxes.high.dtype)
    read = torch.nn.functional.pad(read, (0, -read.shape[-1] % blocks.rows)).unflatten(-1, (-1, blocks.rows))
    live = blocks.live.expand(*q.shape[:2], -1, -1)
    out = torch.zeros_like(read)
    for some, _, upper in boxes.bounds(q):
        left = upper.masked_fill((live[:, :, some] | boxes.never[some])[:, :, :, None], -math.inf).logsumexp(-1)
        share = torch.sigmoid(left - read[:, :, some]) * (1 + 4 * torch.finfo(out.dtype).eps)
        out[:, :, some] = torch.where(left == -math.inf, 0, share.clamp(max=1))
    return shapes.restore(out.flatten(2)[..., : q.shape[2]], 0)


@dataclass(frozen=True, eq=False)
class _Boxes:
    """What is known of blocks of keys: least, largest and mean of each dimension (B, Hkv, N, E), and how many keys they have
    (N,); of blocks of queries (P) which of them they always read and which never."""

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
    def of(cls, query: Tensor, key: Tensor, causal: bool, scale: float | None, rows: int, keys: int) -> _Boxes:
        length, total = query.shape[2], key.shape[2]
        if query.shape[-1] != key.shape[-1]:
            got = f"{query.shape[-1]} and {key.shape[-1]}"
            raise SoftlookupError(f"query, key: expected the same width, got {got}")
        if causal and length != total:
            raise SoftlookupError(f"causal: expected as many keys as queries, {length}, got {total}")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if not 0 < scale < math.inf:
            raise SoftlookupError(f"scale: expected a finite number > 0, got {scale}")
        if not (bool(query.isfinite().all()) and bool(key.isfinite().all())):
            raise SoftlookupError("query, key: expected finite numbers, as blocks are chosen by them, got some that are not")
        key = key if key.dtype == torch.float64 else key.float()
        fill = -total % keys
        size = torch.full((-(-total // keys),), keys, device=key.device)
        size[-1] -= fill

        def boxed(with_what: float) -> Tensor:
            return torch.nn.functional.pad(key, (0, 0, 0, fill), value=with_what).unflatten(2, (-1, keys))

        first = torch.arange(len(size), device=key.device) * keys
        start = torch.arange(-(-length // rows), device=key.device)[:, None] * rows
        never = (first >= start + rows) if causal else torch.zeros(len(start), len(size), dtype=torch.bool, device=key.device)
        always = ~never & (first + keys > start) if causal else never
        return cls(
            boxed(math.inf).amin(3),
            boxed(-math.inf).amax(3),
            boxed(0.0).sum(3) / size[:, None],
            size,
            key.norm(dim=-1).amax(-1, keepdim=True),
            always,
            never,
            scale,
            rows,
            length,
        )

    @property
    def count(self) -> int:
        return len(self.size)

    def real(self, some: slice) -> Tensor:
        """(P, R) which rows of these blocks of queries there are."""
        rows = torch.arange(self.rows, device=self.size.device)
        return torch.arange(len(self.always), device=rows.device)[some, None] * self.rows + rows < self.length

    def bounds(self, query: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """For some blocks of queries (B, H, L, E) after the other: bounds of the log of what each block of keys weighs,
        (B, H, P, R, N), wide enough for what rounding does to scores."""
        batch, heads, length, width = query.shape
        group = heads // self.high.shape[1]
        together = max(1, AT_ONCE // (batch * heads * self.rows * self.count))
        count, sizes = -(-length // self.rows), self.size.log()
        low, high, mean = (x.mT.repeat_interleave(group, 1) for x in (self.low, self.high, self.mean))
        for start in range(0, count, together):
            some = slice(start, min(start + together, count))
            q = query[:, :, start * self.rows : some.stop * self.rows].to(high.dtype) * self.scale
            slack = torch.finfo(q.dtype).eps * (16 + 2 * width * q.norm(dim=-1) * self.longest.repeat_interleave(group, 1))
            upper = q.clamp(min=0) @ high + q.clamp(max=0) @ low + (sizes + slack[..., None])
            lower = q @ mean + (sizes - slack[..., None])
            fill = -q.shape[2] % self.rows
            padded = (torch.nn.functional.pad(x, (0, 0, 0, fill)).unflatten(2, (-1, self.rows)) for x in (lower, upper))
            yield some, *padded
