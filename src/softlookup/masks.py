"""What is visible: masks as an algebra that tells the engine which blocks are empty, full or partial.

A mask answers three questions, each about absolute positions (see `tile.Place`):

* `visible(tile)`: the boolean block itself, True where visible, broadcastable to the block's shape;
* `extent(region)`: is anything of a block visible, is all of it? It may be unsure, never wrong;
* `span(i0, i1)`: bounds on the keys that queries at positions [i0, i1) can see.

No n x n tensor is built for a structured mask: only PARTIAL blocks are ever evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import blake2b

import torch
from torch import Tensor

from .errors import SoftlookupError, at_least_one
from .tile import Region, Tile


class Cover(Enum):
    """How much of a block a mask leaves visible."""

    EMPTY = 0
    PARTIAL = 1
    FULL = 2


Truth = bool | Tensor
Extent = tuple[Truth, Truth]
"""(some, every) of a block: some is False only where nothing of it is visible, every is True only where all is."""
Span = tuple[float, float]
EVERYWHERE: Span = (-math.inf, math.inf)


class Mask:
    """Base of all masks. Combine with `&` (both see it), `|` (either sees it), `~` (hidden becomes visible)."""

    def visible(self, tile: Tile) -> Tensor:
        """Boolean block, True where visible, broadcastable to (n, G, L', S')."""
        raise NotImplementedError

    def extent(self, region: Region) -> Extent:
        """Whether anything of a block is visible, and whether all is; (True, False) is always a safe answer.

        Of many blocks at once the region's rows and query positions are tensors (P, 1), its key positions (1, N): the answers
        are then of a shape that broadcasts to (P, N), on the CPU as these are."""
        return True, False

    def cover(self, region: Region) -> Cover:
        """EMPTY, FULL or PARTIAL, of one block."""
        some, every = self.extent(region)
        return Cover.EMPTY if not some else Cover.FULL if every else Cover.PARTIAL

    def span(self, i0: int, i1: int) -> Span:
        """Half-open bounds of the key positions visible from query positions [i0, i1)."""
        return EVERYWHERE

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        """Raise `SoftlookupError` if the mask does not fit B batch entries, H heads, L queries, S keys (of the whole)."""

    def check_positions(self, first: int, last: int) -> None:
        """Raise `SoftlookupError` if queries cannot stand where these do, from `first` to `last`."""

    def spread(self, over: Callable[[Tensor], Tensor]) -> Mask:
        """The same mask, its tensors of all pairs, (…, H, L, S) as the user has them, as `over` makes them (B, H, L, S)."""
        return self

    def first_key(self) -> int | Tensor:
        """Position of the first real key: 0, or (B,) where padding on the left hides the beginning."""
        return 0

    def differs_in_batch(self) -> bool:
        """True if `extent` may differ between batch entries, so that blocking them apart can pay."""
        return False

    def relative(self) -> bool:
        """True if what is visible depends on i - j alone, so that blocks along a diagonal are alike."""
        return False

    def key(self) -> Hashable:
        """Equal for masks that hide the same; None where telling would cost as much as looking."""
        return None

    def at_rows(self, rows: Tensor) -> Mask:
        """The same mask for the query rows `rows` (R,) only; what depends on positions alone stays as it is."""
        return self

    def at_heads(self, heads: Tensor) -> Mask | None:
        """The same mask for the query heads `heads` (K,) only; None where it may depend on the head in an unknown way."""
        return self

    def __and__(self, other: Mask) -> Mask:
        return And(self, _as_mask(other))

    def __or__(self, other: Mask) -> Mask:
        return Or(self, _as_mask(other))

    def __invert__(self) -> Mask:
        return Not(self)

    __rand__ = __and__
    __ror__ = __or__

    def __bool__(self) -> bool:
        raise SoftlookupError("mask: expected & | ~ to combine masks, got 'and', 'or', 'not' or a condition, which keep one")

    def __repr__(self) -> str:
        said = (x for x in vars(self).values() if x is not None and not isinstance(x, str))
        return f"{type(self).__name__}({', '.join(map(_brief, said))})"


def key_of(mask: Mask) -> Hashable:
    """`mask.key()`, or None where a subclass has changed what is visible but not that."""
    return mask.key() if _speaks_for(mask, "key") else None


def is_relative(mask: Mask) -> bool:
    """`mask.relative()`, or False where a subclass has changed what is visible but not that."""
    return _speaks_for(mask, "relative") and mask.relative()


def _speaks_for(mask: Mask, method: str) -> bool:
    for kind in type(mask).__mro__:
        if method in vars(kind) or "visible" in vars(kind):
            return method in vars(kind)
    return False


def _as_mask(mask: object) -> Mask:
    if isinstance(mask, Mask):
        return mask
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        return Dense(mask)
    if callable(mask) and not isinstance(mask, type):
        return MaskFunction(mask)
    raise SoftlookupError(f"mask: expected a Mask, a boolean tensor or a function to combine with, got {describe(mask)}")


def content(tensor: Tensor) -> Hashable:
    """Equal for tensors that hold the same."""
    return tuple(tensor.shape), tensor.dtype, blake2b(tensor.cpu().contiguous().numpy().tobytes(), digest_size=16).digest()


def _brief(x: object) -> str:
    if isinstance(x, Tensor):
        return str(x.item()) if x.numel() == 1 else f"tensor{tuple(x.shape)}"
    return getattr(x, "__name__", None) or repr(x)


def describe(thing: object) -> str:
    if isinstance(thing, type):
        return f"the class {thing.__name__} itself"
    if isinstance(thing, Tensor):
        return f"a {str(thing.dtype).removeprefix('torch.')} tensor of shape {tuple(thing.shape)}"
    return type(thing).__name__


class _Combined(Mask):
    """A mask made of other masks, its fields; what it is asked it asks them."""

    @property
    def parts(self) -> tuple[Mask, ...]:
        return tuple(vars(self).values())

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        for part in self.parts:
            part.check(batch, heads, queries, keys)

    def check_positions(self, first: int, last: int) -> None:
        for part in self.parts:
            part.check_positions(first, last)

    def spread(self, over: Callable[[Tensor], Tensor]) -> Mask:
        return type(self)(*(part.spread(over) for part in self.parts))

    def key(self) -> Hashable:
        keys = tuple(key_of(part) for part in self.parts)
        return None if None in keys else (type(self), *keys)

    def relative(self) -> bool:
        return all(is_relative(part) for part in self.parts)

    def differs_in_batch(self) -> bool:
        return any(part.differs_in_batch() for part in self.parts)

    def at_rows(self, rows: Tensor) -> Mask:
        return type(self)(*(part.at_rows(rows) for part in self.parts))

    def at_heads(self, heads: Tensor) -> Mask | None:
        parts = [part.at_heads(heads) for part in self.parts]
        return None if None in parts else type(self)(*parts)


@dataclass(frozen=True, eq=False, repr=False)
class And(_Combined):
    a: Mask
    b: Mask

    key, relative = _Combined.key, _Combined.relative  # of what is `visible` here: see `_speaks_for`

    def __repr__(self) -> str:
        return f"({self.a!r} & {self.b!r})"

    def visible(self, tile: Tile) -> Tensor:
        return self.a.visible(tile) & self.b.visible(tile)

    def extent(self, region: Region) -> Extent:
        a = self.a.extent(region)
        if a[0] is False:
            return a
        b = self.b.extent(region)
        return a[0] & b[0], a[1] & b[1]

    def span(self, i0: int, i1: int) -> Span:
        (a0, a1), (b0, b1) = self.a.span(i0, i1), self.b.span(i0, i1)
        return max(a0, b0), min(a1, b1)

    def first_key(self) -> int | Tensor:
        a, b = self.a.first_key(), self.b.first_key()
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b)
        return torch.maximum(torch.as_tensor(a), torch.as_tensor(b))


@dataclass(frozen=True, eq=False, repr=False)
class Or(_Combined):
    a: Mask
    b: Mask

    key, relative = _Combined.key, _Combined.relative  # of what is `visible` here: see `_speaks_for`

    def __repr__(self) -> str:
        return f"({self.a!r} | {self.b!r})"

    def visible(self, tile: Tile) -> Tensor:
        return self.a.visible(tile) | self.b.visible(tile)

    def extent(self, region: Region) -> Extent:
        a = self.a.extent(region)
        if a[1] is True:
            return a
        b = self.b.extent(region)
        return a[0] | b[0], a[1] | b[1]

    def span(self, i0: int, i1: int) -> Span:
        (a0, a1), (b0, b1) = self.a.span(i0, i1), self.b.span(i0, i1)
        return min(a0, b0), max(a1, b1)


@dataclass(frozen=True, eq=False, repr=False)
class Not(_Combined):
    a: Mask

    key, relative = _Combined.key, _Combined.relative  # of what is `visible` here: see `_speaks_for`

    def __repr__(self) -> str:
        return f"~{self.a!r}"

    def visible(self, tile: Tile) -> Tensor:
        return ~self.a.visible(tile)

    def extent(self, region: Region) -> Extent:
        some, every = self.a.extent(region)
        return every ^ True, some ^ True


class Everything(Mask):
    """Every key is visible: what `mask=None` means."""

    def key(self) -> Hashable:
        return (type(self),)

    def relative(self) -> bool:
        return True

    def visible(self, tile: Tile) -> Tensor:
        return torch.ones((1, 1), dtype=torch.bool, device=tile.i.device)

    def extent(self, region: Region) -> Extent:
        return True, True


class Causal(Mask):
    """A query sees keys at its own position and before: j <= i. Right-aligned where L != S."""

    def key(self) -> Hashable:
        return (type(self),)

    def relative(self) -> bool:
        return True

    def visible(self, tile: Tile) -> Tensor:
        return tile.j <= tile.i

    def extent(self, region: Region) -> Extent:
        return region.j0 < region.i1, region.j1 - 1 <= region.i0

    def span(self, i0: int, i1: int) -> Span:
        return -math.inf, i1


class Window(Mask):
    """A query sees keys nearer than `width` on both sides: |i - j| < width.

    `Causal() & Window(w)` sees w keys, the query's own included (Hugging Face's `sliding_window`).
    """

    def __init__(self, width: int):
        at_least_one("Window", width=width)
        self.width = int(width)

    def key(self) -> Hashable:
        return type(self), self.width

    def relative(self) -> bool:
        return True

    def visible(self, tile: Tile) -> Tensor:
        return (tile.i - tile.j).abs() < self.width

    def extent(self, region: Region) -> Extent:
        ahead, behind = region.j0 - (region.i1 - 1), region.i0 - (region.j1 - 1)  # of the two nearest
        before, after = region.i1 - 1 - region.j0, region.j1 - 1 - region.i0  # of the two furthest apart
        return (ahead < self.width) & (behind < self.width), (before < self.width) & (after < self.width)

    def span(self, i0: int, i1: int) -> Span:
        return i0 - self.width + 1, i1 + self.width - 1


class Dilated(Mask):
    """A query sees every `rate`-th key, counted from its own position: (i - j) mod rate = 0 (Child et al. 2019)."""

    def __init__(self, rate: int):
        at_least_one("Dilated", rate=rate)
        self.rate = int(rate)

    def key(self) -> Hashable:
        return type(self), self.rate

    def relative(self) -> bool:
        return True

    def visible(self, tile: Tile) -> Tensor:
        return (tile.i - tile.j) % self.rate == 0


class Prefix(Mask):
    """The first `length` keys are visible to every query: j < length, an int or one per batch entry (B,).

    A prefix language model is `Causal() | Prefix(n)`.
    """

    def __init__(self, length: int | Tensor):
        self._what = type(self).__name__
        want = f"{self._what}: expected an int or an integer tensor of shape (B,)"
        try:
            self.length = torch.as_tensor(length)
        except (TypeError, ValueError, RuntimeError):
            raise SoftlookupError(f"{want}, got {length!r}") from None
        if self.length.ndim > 1 or self.length.is_floating_point():
            raise SoftlookupError(f"{want}, got {describe(self.length)}")

    def key(self) -> Hashable:
        return type(self), content(self.length)

    def visible(self, tile: Tile) -> Tensor:
        length = self.length.to(tile.j.device)
        return tile.j < (length[tile.batch] if length.ndim else length)

    def extent(self, region: Region) -> Extent:
        lengths = self.length[region.b0 : region.b1] if self.length.ndim else self.length
        return region.j0 < int(lengths.max()), region.j1 <= int(lengths.min())

    def span(self, i0: int, i1: int) -> Span:
        return -math.inf, int(self.length.max())

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        if self.length.ndim and len(self.length) != batch:
            raise SoftlookupError(f"{self._what}: expected {batch} lengths, one per batch entry, got {len(self.length)}")

    def differs_in_batch(self) -> bool:
        return self.length.ndim == 1


class Lengths(Prefix):
    """Padding on the right: batch entry b has `lengths[b]` real keys, j < lengths[b]. lengths: int (B,)."""


class Padding(Mask):
    """Which keys are real: a boolean (B, S), True where real; for padding on either side."""

    def __init__(self, keep: Tensor):
        if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.ndim != 2:
            raise SoftlookupError(f"Padding: expected a boolean tensor of shape (B, S), got {describe(keep)}")
        self.keep = keep

    def key(self) -> Hashable:
        return type(self), content(self.keep)

    def visible(self, tile: Tile) -> Tensor:
        keep = self.keep.to(tile.j.device)
        return keep[tile.entry_of(keep), tile.j]

    def extent(self, region: Region) -> Extent:
        return Dense(self.keep[:, None, None]).extent(region)

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        if self.keep.shape[0] not in (1, batch) or self.keep.shape[1] != keys:
            raise SoftlookupError(f"Padding: expected shape ({batch}, {keys}), got {tuple(self.keep.shape)}")

    def first_key(self) -> Tensor:
        return self.keep.to(torch.int8).argmax(-1)

    def differs_in_batch(self) -> bool:
        return len(self.keep) > 1


class Documents(Mask):
    """Several documents in one row: a query sees the keys of its own document.

    ids: int (S,) or (B, S), the document of each key; a query's document is that of the key at its own position,
    or `query_ids` (L,) or (B, L) by row where queries are another sequence.
    """

    def __init__(self, ids: Tensor, query_ids: Tensor | None = None):
        for name, t in (("ids", ids), ("query_ids", query_ids)):
            if t is not None and (not isinstance(t, Tensor) or t.is_floating_point() or t.ndim not in (1, 2)):
                raise SoftlookupError(f"Documents: expected integer {name} of shape (S,) or (B, S), got {describe(t)}")
        self.ids = ids if ids.ndim == 2 else ids[None]
        self.query_ids = query_ids if query_ids is None or query_ids.ndim == 2 else query_ids[None]

    def key(self) -> Hashable:
        return type(self), content(self.ids), None if self.query_ids is None else content(self.query_ids)

    def _pick(self, ids: Tensor, tile: Tile, at: Tensor) -> Tensor:
        ids = ids.to(at.device)
        return ids[tile.entry_of(ids), at]

    def visible(self, tile: Tile) -> Tensor:
        queries = self.ids if self.query_ids is None else self.query_ids
        at = tile.i if self.query_ids is None else tile.rows[:, None]
        return self._pick(queries, tile, at) == self._pick(self.ids, tile, tile.j)

    def extent(self, region: Region) -> Extent:
        def bounds(ids: Tensor, lo: int | Tensor, hi: int | Tensor) -> tuple[Tensor, Tensor]:
            return extremes(ids[region.b0 : region.b1] if len(ids) > 1 else ids, lo, hi)

        k0, k1 = bounds(self.ids, region.j0, region.j1)
        if self.query_ids is None:
            q0, q1 = bounds(self.ids, region.i0, region.i1)
        else:
            q0, q1 = bounds(self.query_ids, region.row0, region.row1)
        apart, same = (q1 < k0) | (k1 < q0), (q0 == q1) & (k0 == k1) & (q0 == k0)
        return ~apart.all(0), same.all(0)

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        if self.ids.shape[0] not in (1, batch) or self.ids.shape[1] != keys:
            raise SoftlookupError(f"Documents: expected ids of shape ({batch}, {keys}), got {tuple(self.ids.shape)}")
        if self.query_ids is None:
            if queries > keys:
                raise SoftlookupError(f"Documents: expected query_ids, as there are {queries} queries and {keys} keys")
        elif self.query_ids.shape[0] not in (1, batch) or self.query_ids.shape[1] != queries:
            got = tuple(self.query_ids.shape)
            raise SoftlookupError(f"Documents: expected query_ids of shape ({batch}, {queries}), got {got}")

    def check_positions(self, first: int, last: int) -> None:
        keys = self.ids.shape[1]
        if self.query_ids is None and (first < 0 or last >= keys):
            want = f"query_ids, or queries at positions 0 to {keys - 1}"
            raise SoftlookupError(f"Documents: expected {want}, got {first} to {last}")

    def differs_in_batch(self) -> bool:
        return len(self.ids) > 1

    def at_rows(self, rows: Tensor) -> Mask:
        if self.query_ids is None:
            return self
        return Documents(self.ids, self.query_ids[:, rows.to(self.query_ids.device)])


class MaskFunction(Mask):
    """Any function `(b, h, i, j) -> bool`, called with broadcastable index tensors, as in FlexAttention's mask_mod.

    b (n, 1, 1, 1) and h (n, G, 1, 1) index the batch and the query heads, i (L', 1) and j (1, S') are absolute positions.
    Write it with tensor operations (`&`, `|`, `torch.where`), not with `and`, `or`, `if`.
    """

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]):
        if not callable(function):
            raise SoftlookupError(f"MaskFunction: expected a function (b, h, i, j) -> bool, got {describe(function)}")
        self.function = function

    def at_heads(self, heads: Tensor) -> Mask | None:
        return None

    def visible(self, tile: Tile) -> Tensor:
        try:
            out = self.function(tile.batch, tile.head, tile.i, tile.j)
        except RuntimeError as error:
            raise SoftlookupError(
                f"mask function: expected tensor operations that broadcast over (b, h, i, j), got {error}"
            ) from error
        out = torch.as_tensor(out, device=tile.i.device)
        if out.dtype != torch.bool:
            raise SoftlookupError(f"mask function: expected a boolean result, got {describe(out)}")
        want = (len(tile.batch), tile.group, len(tile.i), tile.j.shape[1])
        if out.ndim > 4 or any(got not in (1, n) for got, n in zip(out.shape[::-1], want[::-1], strict=False)):
            raise SoftlookupError(f"mask function: expected a result that broadcasts to {want}, got {tuple(out.shape)}")
        return out


class Dense(Mask):
    """A boolean tensor, True where visible, broadcastable to (B, H, L, S): rows by query row, columns by key position."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def visible(self, tile: Tile) -> Tensor:
        return tile.pick(self.tensor)

    def extent(self, region: Region) -> Extent:
        if isinstance(region.j0, int):
            block = region.cut(self.tensor)
            return bool(block.any()), bool(block.all())
        panels = list(zip(region.row0.flatten().tolist(), region.row1.flatten().tolist(), strict=True))
        if self.tensor.ndim < 2 or self.tensor.shape[-2] == 1:
            panels = panels[:1]  # one serves all
        found = [self._columns_extent(replace(region, row0=row0, row1=row1)) for row0, row1 in panels]
        some, every = (torch.stack(x) for x in zip(*found, strict=True))
        return some, every

    def _columns_extent(self, region: Region) -> tuple[Tensor, Tensor]:
        """For one range of rows and many of keys, (N,)."""
        j0, j1 = region.j0.flatten(), region.j1.flatten()
        rows = replace(region, j0=0, j1=self.tensor.shape[-1]).cut(self.tensor).flatten(0, 2)
        rows = rows if rows.shape[1] > 1 else rows.expand(-1, int(j1.max()))
        some, every = rows.view(torch.uint8).aminmax(dim=0)[::-1]  # ten times as fast as of booleans
        before = torch.nn.functional.pad(torch.stack([some, every]).cumsum(1), (1, 0)).cpu()  # where regions are
        inside = before[:, j1] - before[:, j0]
        return inside[0] > 0, inside[1] == j1 - j0

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        check_broadcast("mask", self.tensor, (batch, heads, queries, keys))

    def spread(self, over: Callable[[Tensor], Tensor]) -> Mask:
        return Dense(over(self.tensor))

    def differs_in_batch(self) -> bool:
        return self.tensor.ndim == 4 and self.tensor.shape[0] > 1

    def at_rows(self, rows: Tensor) -> Mask:
        return Dense(pick(self.tensor, -2, rows))

    def at_heads(self, heads: Tensor) -> Mask | None:
        return Dense(pick(self.tensor, -3, heads))


class NotHidden(Mask):
    """What a float mask leaves visible: every entry above half of its dtype's minimum (-inf and Hugging Face's "min" hide)."""

    def __init__(self, bias: Tensor):
        self.bias = bias

    def visible(self, tile: Tile) -> Tensor:
        return ~hidden(tile.pick(self.bias))

    def at_rows(self, rows: Tensor) -> Mask:
        return NotHidden(pick(self.bias, -2, rows))

    def at_heads(self, heads: Tensor) -> Mask | None:
        return NotHidden(pick(self.bias, -3, heads))


def extremes(ids: Tensor, lo: int | Tensor, hi: int | Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest of integers (K, S) in columns lo:hi, (K,) or (K, *lo.shape); of none, any number."""
    if not isinstance(lo, int):
        each = [extremes(ids, a, b) for a, b in zip(lo.flatten().tolist(), hi.flatten().tolist(), strict=True)]  # type: ignore
        least, most = (torch.stack(x, 1).unflatten(1, lo.shape).cpu() for x in zip(*each, strict=True))
        return least, most
    part = ids[:, lo:hi]
    if part.shape[1] == 0:
        any_number = torch.iinfo(ids.dtype)
        return torch.full_like(ids[:, 0], any_number.min), torch.full_like(ids[:, 0], any_number.max)
    return part.amin(1), part.amax(1)


def pick(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    """Entries `index` of a (negative) dimension of a tensor that broadcasts to (B, H, L, S); all where one serves all."""
    if tensor.ndim < -dim or tensor.shape[dim] == 1:
        return tensor
    return tensor.index_select(dim, index.to(tensor.device))


def hidden(bias: Tensor) -> Tensor:
    """True where an additive mask means "not visible": at or below finfo.min/2. NaN is visible (and poisons its row)."""
    return bias <= torch.finfo(bias.dtype).min / 2


def check_broadcast(what: str, tensor: Tensor, shape: tuple[int, int, int, int]) -> None:
    """Raise unless `tensor` broadcasts to (B, H, L, S)."""
    got = tuple(tensor.shape)
    if tensor.ndim > 4 or any(g not in (1, s) for g, s in zip(reversed(got), reversed(shape), strict=False)):
        raise SoftlookupError(f"{what}: expected a shape that broadcasts to (B, H, L, S) = {shape}, got {got}")
