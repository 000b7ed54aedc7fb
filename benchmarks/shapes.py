"""What is measured: the sizes and masks that every contender gets, and the inputs that go with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import softlookup as sl


@dataclass(frozen=True)
class Shape:
    """B batch entries, H query and Hkv key heads, L queries, S keys, E wide; one mask or none."""

    name: str
    queries: int
    keys: int
    width: int = 64
    heads: int = 8
    kv_heads: int = 8
    batch: int = 1
    causal: bool = False
    window: int = 0
    documents: int = 0
    additive: bool = False
    statistics: bool = True
    """Whether softlookup is timed with the cheap set."""
    backward: bool = True

    @property
    def rows(self) -> int:
        """B * H * L: softmaxes."""
        return self.batch * self.heads * self.queries

    @property
    def lengths(self) -> list[int]:
        """Of the documents, which are as unequal as 3 : 1 and fill the row."""
        parts = [2 + (i % 3 - 1) for i in range(self.documents)]
        ends = [sum(parts[: i + 1]) * self.keys // sum(parts) for i in range(self.documents)]
        return [b - a for a, b in zip([0, *ends], ends, strict=False)]

    @property
    def pairs(self) -> int:
        """Visible pairs of a query and a key, in all heads."""
        if self.documents:
            each = sum(n * (n + 1) // 2 for n in self.lengths)
        elif self.window:
            each = self.window * self.queries - self.window * (self.window - 1) // 2
        elif self.causal:
            each = self.queries * (self.queries + 1) // 2
        else:
            each = self.queries * self.keys
        return self.batch * self.heads * each

    def flops(self, backward: bool) -> int | None:
        """Useful ones: two products of 2 E per visible pair forward, five backward. None where tanh is most of the work."""
        return None if self.additive else (10 if backward else 4) * self.pairs * self.width


class Inputs:
    """Random inputs of a shape, and its mask in the forms that contenders ask for."""

    def __init__(self, shape: Shape):
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        self.shape = shape
        self.query = normal(shape.batch, shape.heads, shape.queries, shape.width)
        self.key, self.value = (normal(shape.batch, shape.kv_heads, shape.keys, shape.width) for _ in range(2))
        self.grad = normal(*self.query.shape)
        """Of the output."""
        self.scale = shape.width**-0.5
        self.u = normal(shape.heads, shape.width) * self.scale
        self.w_q, self.w_k = (normal(shape.heads, shape.width, shape.width) * self.scale for _ in range(2))

    @cached_property
    def document(self) -> Tensor:
        """(S,) the document of each key."""
        lengths = torch.tensor(self.shape.lengths)
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths)

    def sees(self, i: Tensor, j: Tensor) -> Tensor:
        """Whether the query at position i sees the key at position j, in tensor operations that broadcast."""
        seen = j <= i
        if self.shape.window:
            seen = seen & (i - j < self.shape.window)
        if self.shape.documents:
            seen = seen & (self.document[i] == self.document[j])
        return seen

    @cached_property
    def visible(self) -> Tensor | None:
        """(L, S) boolean, None where everything is visible."""
        if not self.shape.causal:
            return None
        return self.sees(torch.arange(self.shape.queries)[:, None], torch.arange(self.shape.keys)[None])

    @cached_property
    def mask(self) -> sl.Mask | None:
        if not self.shape.causal:
            return None
        mask: sl.Mask = sl.Causal()
        if self.shape.window:
            mask = mask & sl.Window(self.shape.window)
        return mask & sl.Documents(self.document) if self.shape.documents else mask

    def repeated(self, x: Tensor) -> Tensor:
        """Keys or values with a head for each head of the queries."""
        groups = self.shape.heads // self.shape.kv_heads
        return x if groups == 1 else x.repeat_interleave(groups, 1)


def square(name: str, n: int, **other: object) -> Shape:
    return Shape(name, n, n, **other)  # type: ignore[arg-type]


TABLE = [
    *(
        square(f"{n}{' causal' * causal}, D={width}", n, width=width, causal=causal)
        for width in (64, 128)
        for n in (1024, 4096)
        for causal in (False, True)
    ),
    square("window 256 of 8192", 8192, causal=True, window=256),
    square("16 documents in 8192", 8192, causal=True, documents=16),
    Shape("decode 1 x 16384", 1, 16384, backward=False),
    square("2048 causal, 9/3 heads", 2048, causal=True, heads=9, kv_heads=3),
    square("additive 512, d=128", 512, width=128, heads=1, kv_heads=1, additive=True),
    square("call, 16 tokens, no statistics", 16, statistics=False),
    square("256 x 10 tokens", 10, batch=256),
]

CURVES = [
    *(square(f"{2**k}", 2**k, backward=False) for k in range(9, 15)),
    *(square(f"window 256 of {2**k}", 2**k, causal=True, window=256, backward=False) for k in range(9, 17)),
]
