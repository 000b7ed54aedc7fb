"""From a Hugging Face mask function to a structured mask.

transformers composes its masks from a handful of building blocks (`masking_utils`): causal, sliding window, chunked,
packed documents, blocks of image tokens, and the intersections and unions of those. Each is a closure; comparing its
code with that of the library's own factories tells which one it is, and its cell variables hold the parameters. So
`Causal() & Window(4096)` reaches the operator as such and the engine can skip what it hides. A function that is not
recognized stays a function (`MaskFunction`): evaluated block by block, still without any n x n tensor.

Positions. transformers speaks of absolute positions: row r stands at q_offset + r, key c at kv_offset + c (a sliding
cache has dropped the first kv_offset keys). The operator gets only the S keys that are there, so everything here is
said relative to the first of them: row r stands at q_offset - kv_offset + r.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils as hf

from ..masks import Causal, Documents, Everything, Mask, MaskFunction, Padding, Window

HFMaskFunction = Callable[..., Any]
NO_SKIPS = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}


@dataclass(frozen=True, eq=False)
class HFMask:
    """What transformers says about a mask (a `lazy_mask.Recipe`), and that said as a structured mask.

    function(b, h, q, kv): in absolute positions. padding: boolean (B, >= kv_offset + S), True where real, or None. asked: the
    keywords by which it was asked for, that tell other implementations when they may skip the mask.
    """

    function: HFMaskFunction
    batch: int
    queries: int
    keys: int
    q_offset: int
    kv_offset: int
    padding: Tensor | None
    dtype: torch.dtype
    device: torch.device
    use_vmap: bool
    made_in: torch.dtype | None = None  # before a cast
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, 1, self.queries, self.keys

    def dense(self) -> Tensor:
        """Eager's own mask: 0 where visible, the dtype's minimum where hidden."""
        return self._made(hf.eager_mask, self.made_in or self.dtype).to(self.dtype)

    def cut(self, first: int, last: int, keys: int) -> HFMask:
        part = {"q_offset": self.q_offset + first, "queries": last - first, "keys": keys}
        whole = (first, last, keys) == (0, self.queries, self.keys)
        return self if whole else replace(self, **part, asked=NO_SKIPS)  # type: ignore[arg-type]

    def cast(self, dtype: torch.dtype) -> HFMask:
        return replace(self, dtype=dtype, made_in=self.made_in or self.dtype)

    def made_by(self, mask_function: Callable[..., Any]) -> Any:
        """The same mask as another implementation's mask function makes it."""
        return self._made(mask_function, self.dtype, **self.asked)

    def _made(self, mask_function: Callable[..., Any], dtype: torch.dtype, **asked: Any) -> Any:
        return mask_function(
            batch_size=self.batch,
            q_length=self.queries,
            kv_length=self.keys,
            q_offset=self.q_offset,
            kv_offset=self.kv_offset,
            mask_function=self.function,
            attention_mask=self.padding,
            dtype=dtype,
            use_vmap=self.use_vmap,
            device=self.device,
            **asked,
        )

    @property
    def query_offset(self) -> int:
        """Position of row 0 among the keys that are there."""
        return self.q_offset - self.kv_offset

    @property
    def rows(self) -> Tensor | None:
        """(B, L) True where the query is a real token, if queries and keys are the same sequence. None: no padding."""
        if self.padding is None or self.padding.shape[1] < self.q_offset + self.queries:
            return None
        return self.padding[:, self.q_offset : self.q_offset + self.queries]

    @property
    def one_sequence(self) -> bool:
        """True if the function compares a query's position with a key's, as only self-attention does."""
        return _compares_positions(self.function)

    @cached_property
    def structure(self) -> Mask | None:
        """The mask for the operator, over keys 0 .. S-1; None where everything is visible."""
        mask = self._lower(self.function)
        if self.padding is not None:
            keep = self._at_keys(self.padding, False)
            if not bool(keep.all()):
                mask = mask & Padding(keep)
        return None if isinstance(mask, Everything) else mask

    def _lower(self, function: HFMaskFunction) -> Mask:
        if function is hf.causal_mask_function:
            return Causal()
        if function is hf.bidirectional_mask_function:
            return Everything()
        if (parts := _cells(function, _AND)) is not None:
            return self._all_of(parts["mask_functions"])
        if (parts := _cells(function, _OR)) is not None:
            return reduce(Mask.__or__, map(self._lower, parts["mask_functions"]))
        if (window := _cells(function, _WINDOW_BOTH_SIDES)) is not None:
            return Window(window["sliding_window"] + 1)  # |i - j| <= w, the distance w included
        if (packed := _cells(function, _PACKED)) is not None and self._same_positions:
            return Documents(packed["packed_sequence_mask"])
        if (blocks := _cells(function, _BLOCKS)) is not None and self._queries_are_keys:
            ids = self._at_keys(blocks["block_sequence_ids"], -1)
            return Documents(ids) & Padding(ids >= 0)  # ids < 0 belong to no block
        if (chunks := _cells(function, _CHUNKS)) is not None and self._queries_are_keys:
            position = torch.arange(self.keys, device=self.device) + self.kv_offset
            ids = (position - chunks["left_padding"].to(self.device)[:, None]) // chunks["chunk_size"]
            return Documents(ids)
        return MaskFunction(self._by_block(function))

    def _all_of(self, functions: tuple[HFMaskFunction, ...]) -> Mask:
        """The intersection. Two blocks mean something simpler beside a third than they do alone."""
        packed = any(_cells(f, _PACKED) for f in functions) and self._same_positions
        causal = any(map(_is_causal, functions))
        masks: list[Mask] = []
        for function in functions:
            window, remapped = _cells(function, _WINDOW), _cells(function, _REMAPPED)
            if window is not None and causal:
                masks.append(Window(window["sliding_window"]))  # j > i - w, and j <= i from its neighbour
            elif remapped is not None and packed and _only_differences(remapped["mask_function"]):
                # Within a packed document positions step by one, as indices do: differences need no remapping.
                masks.append(self._lower(remapped["mask_function"]))
            else:
                masks.append(self._lower(function))
        kept = [mask for mask in masks if not isinstance(mask, Everything)]
        return reduce(Mask.__and__, kept) if kept else Everything()

    @property
    def _same_positions(self) -> bool:
        """Queries and keys are one whole sequence, and indices are positions."""
        return self.q_offset == self.kv_offset == 0 and self.queries == self.keys

    @property
    def _queries_are_keys(self) -> bool:
        """Every query stands at one of the keys that are there."""
        return self.query_offset >= 0 and self.query_offset + self.queries <= self.keys

    def _at_keys(self, per_position: Tensor, fill: int | bool) -> Tensor:
        """(B, S): `per_position` (B, n) at the positions of the keys, `fill` beyond its end."""
        part = per_position[:, self.kv_offset : self.kv_offset + self.keys]
        return torch.nn.functional.pad(part, (0, self.keys - part.shape[1]), value=fill)

    def _by_block(self, function: HFMaskFunction) -> HFMaskFunction:
        """`function` of this frame's positions. Heads share a Hugging Face mask: they are called with head 0."""
        shift = self.kv_offset

        def broadcast(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return function(b, torch.zeros_like(b), i + shift, j + shift)

        def pointwise(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            # A user's function may only work on scalars, one quadruple of indices at a time.
            with hf.TransformGetItemToIndex():
                every = hf._vmap_expansion_sdpa(function)
                return every(b.flatten(), b.new_zeros(1), i.flatten() + shift, j.flatten() + shift)

        return pointwise if self.use_vmap else broadcast


def _is_causal(function: HFMaskFunction) -> bool:
    parts = _cells(function, _AND)
    return function is hf.causal_mask_function or (parts is not None and any(map(_is_causal, parts["mask_functions"])))


def _compares_positions(function: HFMaskFunction) -> bool:
    for parts in (_cells(function, _AND), _cells(function, _OR)):
        if parts is not None:
            return any(map(_compares_positions, parts["mask_functions"]))
    blocks = (_WINDOW, _WINDOW_BOTH_SIDES, _CHUNKS, _BLOCKS, _PACKED, _REMAPPED)
    return function is hf.causal_mask_function or any(_cells(function, code) is not None for code in blocks)


def _only_differences(function: HFMaskFunction) -> bool:
    """True if the function depends on q - kv alone."""
    if (parts := _cells(function, _AND)) is not None:
        return all(map(_only_differences, parts["mask_functions"]))
    simple = (hf.causal_mask_function, hf.bidirectional_mask_function)
    return function in simple or any(_cells(function, made) is not None for made in (_WINDOW, _WINDOW_BOTH_SIDES))


def _cells(function: HFMaskFunction, code: Any) -> dict[str, Any] | None:
    """The closure variables of `function` if a factory with this inner code made it, else None."""
    if getattr(function, "__code__", None) is not code:
        return None
    return dict(inspect.getclosurevars(function).nonlocals)


_NO_IDS = torch.zeros(1, 1, dtype=torch.int64)
_AND = hf.and_masks(hf.causal_mask_function).__code__  # type: ignore[attr-defined]
_OR = hf.or_masks(hf.causal_mask_function).__code__  # type: ignore[attr-defined]
_WINDOW = hf.sliding_window_overlay(1).__code__  # type: ignore[attr-defined]
_WINDOW_BOTH_SIDES = hf.sliding_window_bidirectional_overlay(1).__code__  # type: ignore[attr-defined]
_CHUNKS = hf.chunked_overlay(1, _NO_IDS).__code__  # type: ignore[attr-defined]
_BLOCKS = hf.blockwise_overlay(_NO_IDS).__code__  # type: ignore[attr-defined]
_PACKED = hf.packed_sequence_mask_function(_NO_IDS).__code__  # type: ignore[attr-defined]
_REMAPPED = hf.remap_positions_for_packed_sequence(hf.causal_mask_function, _NO_IDS).__code__  # type: ignore[attr-defined]
