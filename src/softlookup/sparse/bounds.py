"""Blocks of keys chosen by what they could weigh, and what is certain about those that were not.

Of the keys of a block only the least, the largest and the mean of each dimension are looked at (`boxes.py`). Blocks are chosen
for whole blocks of queries, best first. What the others could weigh, over that and what was read, bounds the share of a query's
weight that is missed: a theorem for any queries and keys, though an empty one where keys within a block differ much.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import operator
from ..errors import SoftlookupError, at_least_one
from ..masks import Causal, Mask, describe
from ..problem import flatten
from ..running import StatsLike, autocast, without_autocast
from ..summary import Stats, chosen
from .blocks import KEYS, ROWS, Blocks
from .boxes import Bounds, Boxes


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
    keys: int | None = None,
    boxes: Boxes | None = None,
    stats: StatsLike = (),
) -> Found:
    """Scaled dot-product attention to the blocks that `top_blocks` chooses, and how much it may have missed.

    query: (…, H, L, E); key: (…, Hkv, S, E); value: (…, Hkv, S, Ev). Arguments are those of `top_blocks`. Gradients are those
    of attention to these blocks.
    """
    query, key, value = autocast(query, key, value)
    blocks, left = _chosen(query, key, k, tolerance, causal, scale, by, rows, keys, boxes)
    mask = Causal() & blocks if causal else blocks
    found, read = operator.attend(query, key, value, mask=mask, scale=scale, stats=("logsumexp", *chosen(stats)))
    return Found(found, _share(left, read.logsumexp.detach()), mask, read)


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
    keys: int | None = None,
    boxes: Boxes | None = None,
) -> Blocks:
    """The blocks of keys that could matter most to each block of queries, as a mask for scaled dot-product attention.

    Args:
        query: (…, H, L, E).
        key: (…, Hkv, S, E).
        k: how many blocks of keys for each block of queries; or
        tolerance: as many as make it certain that no query misses more than this share of its weight.
        causal: keys after a query do not count; blocks that its own block meets are always seen (combine with `sl.Causal()`),
            and counted. L and S must be equal.
        scale: of the scores, 1/sqrt(E) by default.
        by: what makes a block the better, the bound of its scores ("upper") or the score of its mean ("mean"), each beside the
            best of a query, for the query to which it matters most.
        rows: per block of queries, 192 by default.
        keys: per block of keys, 96 by default.
        boxes: those of the keys, where they have been made before; their blocks are the blocks then.
    """
    query, key = autocast(query, key)
    return _chosen(query, key, k, tolerance, causal, scale, by, rows, keys, boxes)[0]


@torch.no_grad()
def _chosen(
    query: Tensor,
    key: Tensor,
    k: int | None,
    tolerance: float | None,
    causal: bool,
    scale: float | None,
    by: str,
    rows: int,
    keys: int | None,
    boxes: Boxes | None,
) -> tuple[Blocks, Tensor]:
    """The blocks to read, and (B, H, P, R) the log of what the others may weigh for each query."""
    if (k is None) == (tolerance is None):
        raise SoftlookupError("top_blocks: expected k or tolerance, and not both")
    sizes = {"rows": rows, "keys": keys, "k": k}
    at_least_one("top_blocks", **{name: size for name, size in sizes.items() if size is not None})
    if tolerance is not None and not (isinstance(tolerance, int | float) and 0 < tolerance < 1):
        raise SoftlookupError(f"top_blocks: expected a tolerance between 0 and 1, got {tolerance!r}")
    if by not in ("upper", "mean"):
        raise SoftlookupError(f"top_blocks: expected by 'upper' or 'mean', got {by!r}")
    q, _, _, shapes = flatten(query, key, None)
    boxes = _boxes(key, keys, boxes)
    with without_autocast(q.device.type):
        bounds = Bounds.of(q, boxes, shapes, causal, scale, rows)
        found = [_of_panel(bounds, some, panel, k, tolerance, by) for some, panel in bounds.panels(q)]
    live, left = zip(*found, strict=True)
    return Blocks(torch.cat(live, 2), rows, boxes.keys), torch.cat(left, 2)


def _boxes(key: Tensor, keys: int | None, boxes: Boxes | None) -> Boxes:
    """Those of the keys: the ones that were made before, or new ones."""
    if boxes is None:
        return Boxes(key, KEYS if keys is None else keys)
    if not isinstance(boxes, Boxes):
        raise SoftlookupError(f"boxes: expected Boxes of the keys, got {describe(boxes)}")
    boxes.check(key)
    if keys not in (None, boxes.keys):
        raise SoftlookupError(f"keys: expected {boxes.keys} per block, as the boxes have, got {keys}")
    return boxes


def _of_panel(
    bounds: Bounds, some: slice, panel: Tensor, k: int | None, tolerance: float | None, by: str
) -> tuple[Tensor, Tensor]:
    """For some blocks of queries which of keys to read (B, H, P, N), and the log of what the others may weigh (B, H, P, R)."""
    always, never, real = bounds.always[some], bounds.never[some], bounds.real(some)
    lower, upper = (x.masked_fill_((always | never)[:, None], -math.inf) for x in (bounds.lower(panel), bounds.upper(panel)))
    best = lower.amax(-1, keepdim=True)
    worth = (upper if by == "upper" else lower) - best
    worth = worth.masked_fill_(~real[..., None], -math.inf).amax(-2).masked_fill_(always, math.inf)
    order = worth.masked_fill_(never, -math.inf).argsort(-1, descending=True)
    if tolerance is None:
        number = torch.full_like(order[..., :1], k)  # type: ignore[arg-type]
    else:
        at = order[..., None, :].expand_as(upper)
        least, most = ((x - best).exp_().nan_to_num_(0, math.inf).gather(-1, at) for x in (lower, upper))
        after = most.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        more = (after > tolerance / (1 - tolerance) * least.cumsum(-1)[..., :-1]) & real[..., None]
        number = more.any(-2).sum(-1, keepdim=True) + 1
    first = torch.arange(bounds.blocks, device=order.device) < torch.maximum(number, always.sum(-1, keepdim=True))
    live = torch.zeros_like(first).scatter_(-1, order, first) & ~never
    return live, upper.masked_fill_(live[..., None, :], -math.inf).logsumexp(-1)


@torch.no_grad()
def missed(
    query: Tensor,
    key: Tensor,
    blocks: Blocks,
    logsumexp: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    boxes: Boxes | None = None,
) -> Tensor:
    """(…, H, L) an upper bound on the share of a query's weight that lies outside of the blocks; 1 says nothing. logsumexp:
    (…, H, L), of the scaled dot-product scores of the visible keys in them."""
    if not isinstance(blocks, Blocks):
        raise SoftlookupError(f"missed: expected Blocks, without masks combined with them, got {describe(blocks)}")
    query, key = autocast(query, key)
    q, _, _, shapes = flatten(query, key, None)
    blocks.check(q.shape[0], q.shape[1], q.shape[2], key.shape[-2])
    if tuple(logsumexp.shape) != (want := tuple(shapes.restore(q[..., 0]).shape)):
        raise SoftlookupError(f"logsumexp: expected shape {want}, got {tuple(logsumexp.shape)}")
    live, left = blocks.live.to(q.device).expand(*q.shape[:2], -1, -1), []
    with without_autocast(q.device.type):
        bounds = Bounds.of(q, _boxes(key, blocks.keys, boxes), shapes, causal, scale, blocks.rows)
        for some, panel in bounds.panels(q):
            known = live[:, :, some] | bounds.never[some]
            left.append(bounds.upper(panel).masked_fill_(known[..., None, :], -math.inf).logsumexp(-1))
    return _share(torch.cat(left, 2), logsumexp)


def _share(left: Tensor, logsumexp: Tensor) -> Tensor:
    """(…, H, L) the most that what is left (B, H, P, R), a logarithm, can be of all, beside what was read (…, H, L)."""
    left = left.flatten(2)[..., : logsumexp.shape[-1]].reshape(logsumexp.shape)
    share = torch.sigmoid(left - logsumexp) * (1 + 4 * torch.finfo(left.dtype).eps)
    return torch.where(left == -math.inf, 0, share.clamp(max=1)).nan_to_num(1)  # bounds that overflow say nothing
