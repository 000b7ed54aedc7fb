"""Feature maps: exp(q . k) and other similarities as products of features, phi(q) . phi(k), which can be summed over keys."""

from __future__ import annotations

import inspect
import math
import zlib

import torch
from torch import Tensor, nn

from ..errors import SoftlookupError, at_least_one


class FeatureMap(nn.Module):
    """phi of queries (…, H, N, E) and keys (…, Hkv, N, E) at positions from `first` on -> (…, H or Hkv, N, F).

    One of your own has `forward(x, first)`, for both, or `query` and `key`. Features of a row may depend on that row alone:
    then sums over keys mean the same however they are cut. A factor common to all features of a query cancels.
    What it knows beside parameters and buffers belongs in `extra_repr`: a State is continued by no other map.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in {"forward", "query", "key", "sized"} & vars(cls).keys():
            signature = inspect.signature(vars(cls)[name])
            try:
                signature.bind("self", "x", 0)
            except TypeError:
                raise SoftlookupError(f"{cls.__name__}.{name}: expected (self, x, first), got {signature}") from None

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        raise SoftlookupError(f"{type(self).__name__}: expected forward(x, first), or query and key, got neither")

    def query(self, x: Tensor, first: int = 0) -> Tensor:
        return self(x, first)

    def key(self, x: Tensor, first: int = 0) -> Tensor:
        return self(x, first)

    def sized(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor | None]:
        """Features of keys, each divided by the exp of the second, (…, N, 1), for maps whose features leave a float's range;
        None: they are as `key` has them."""
        return self.key(x, first), None

    def identity(self) -> str:
        """What tells this map from others: its words, and a checksum of what it has learned or drawn, in single precision."""
        said, held = " ".join(repr(self).split()), [*self.parameters(), *self.buffers()]
        return f"{said} with {_checksum(held):08x}" if held else said


@torch.compiler.disable  # bytes are outside of any graph
def _checksum(tensors: list[Tensor]) -> int:
    found = 0
    for x in tensors:
        found = zlib.crc32(x.detach().float().cpu().contiguous().numpy().tobytes(), found)
    return found


class EluPlusOne(FeatureMap):
    """phi(x) = elu(x) + 1 = max(x, 0) + exp(min(x, 0)) (Katharopoulos et al. 2020, eq. 7). F = E."""

    def query(self, x: Tensor, first: int = 0) -> Tensor:
        """As `forward`, but for a factor of queries whose features are all below 1, of which the largest becomes 1."""
        return self._below(x, x.detach().amax(-1, keepdim=True).clamp(max=0))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        return self._below(x, 0)

    @staticmethod
    def _below(x: Tensor, top: Tensor | float) -> Tensor:
        positive = x.relu()
        return (x - positive).sub_(top).exp_() + positive  # elu(x) + 1 as it is written loses its digits below 0


class ReLU(FeatureMap):
    """phi(x) = max(x, 0), to which `offset` is added so that no query is without weights. F = E."""

    def __init__(self, offset: float = 1e-3):
        super().__init__()
        if not isinstance(offset, int | float) or not 0 <= offset < math.inf:
            raise SoftlookupError(f"ReLU: expected a finite offset of at least 0, got {offset}")
        self.offset = offset

    def extra_repr(self) -> str:
        return f"{self.offset}"

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        return x.relu() + self.offset


class RandomFeatures(FeatureMap):
    """Random features whose products are exp(scale q . k) on average (Choromanski et al. 2021, "FAVOR+").

    With x = sqrt(scale) q, y = sqrt(scale) k and rows w of a Gaussian matrix, either

        positive:       phi(x) = exp(w . x - |x|^2 / 2) / sqrt(m)                        (Lemma 1)
        trigonometric:  phi(x) = exp(|x|^2 / 2) (sin w . x, cos w . x) / sqrt(m)         (Rahimi & Recht 2007)

    Positive ones have variance SM^2 exp(|x + y|^2) (1 - exp(-|x + y|^2)) / m, smallest where the similarity SM = exp(x . y) is;
    trigonometric ones exp(|x|^2 + |y|^2) (1 - exp(-|x - y|^2))^2 / 2m, which is large there and may be negative.

    width: E. features: m, rows of w; by default E. orthogonal: rows of w at right angles to each other in groups of E, whose
    variance is smaller (their Theorem 2). scale: by default 1/sqrt(E), that of `ScaledDot`. seed: of w, which is not trained.
    """

    w: Tensor

    def __init__(
        self,
        width: int,
        features: int | None = None,
        *,
        kind: str = "positive",
        orthogonal: bool = True,
        scale: float | None = None,
        seed: int = 0,
    ):
        super().__init__()
        features = width if features is None else features
        at_least_one("RandomFeatures", width=width, features=features)
        if kind not in ("positive", "trigonometric"):
            raise SoftlookupError(f"RandomFeatures: expected kind 'positive' or 'trigonometric', got {kind!r}")
        self.width, self.features, self.kind, self.orthogonal = width, features, kind, orthogonal
        self.scale = width**-0.5 if scale is None else scale
        if not isinstance(self.scale, int | float) or not 0 < self.scale < math.inf:
            raise SoftlookupError(f"RandomFeatures: expected a finite scale above 0, got {scale}")
        self.register_buffer("w", torch.empty(features, width))
        self.draw(seed)

    def draw(self, seed: int) -> None:
        """Other random features, as training may want from time to time."""
        if not isinstance(seed, int):
            raise SoftlookupError(f"RandomFeatures: expected a whole number as seed, got {seed!r}")
        make = torch.Generator().manual_seed(seed)
        w = torch.randn(self.features, self.width, generator=make, dtype=torch.float64)
        if self.orthogonal:
            blocks = []
            for start in range(0, self.features, self.width):
                q, r = torch.linalg.qr(torch.randn(self.width, self.width, generator=make, dtype=torch.float64))
                blocks.append((q * r.diagonal().sign())[: self.features - start])  # uniform over rotations
            w = torch.cat(blocks) * w.norm(dim=1, keepdim=True)
        self.w.copy_(w)

    def extra_repr(self) -> str:
        said = f"{self.width}, {self.features}, kind={self.kind!r}, scale={self.scale}"
        return said if self.orthogonal else f"{said}, orthogonal=False"

    def query(self, x: Tensor, first: int = 0) -> Tensor:
        """As `forward`, but for a factor of each query, which keeps exponentials in range."""
        return self.sized(x, first)[0]

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        features, size = self.sized(x, first)
        return features * size.exp()

    def sized(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        if x.shape[-1] != self.width:
            raise SoftlookupError(f"RandomFeatures: expected rows of width {self.width}, got {x.shape[-1]}")
        x = x * self.scale**0.5
        turns, half = x @ self.w.to(x).T, x.square().sum(-1, keepdim=True) / 2
        if self.kind == "trigonometric":
            return torch.cat([turns.sin(), turns.cos()], -1) / math.sqrt(self.features), half
        most = turns.detach().amax(-1, keepdim=True)
        return (turns - most).exp() / math.sqrt(self.features), most - half


class Hedgehog(FeatureMap):
    """phi(x) = (softmax(x W), softmax(-x W)), W learned for each head and the identity at first (Zhang et al. 2024). F = 2 E.

    Trained to give the weights that a model's softmax gives, it takes that one's place.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        at_least_one("Hedgehog", width=width, heads=heads)
        self.of_query = nn.Parameter(torch.eye(width).repeat(heads, 1, 1))
        self.of_key = nn.Parameter(torch.eye(width).repeat(heads, 1, 1))

    def query(self, x: Tensor, first: int = 0) -> Tensor:
        return self._both(x, self.of_query)

    def key(self, x: Tensor, first: int = 0) -> Tensor:
        """With a map for each query head, keys of fewer heads become as many."""
        heads, given = len(self.of_key), x.shape[-3]
        return self._both(x if heads % given else x.repeat_interleave(heads // given, -3), self.of_key)

    @staticmethod
    def _both(x: Tensor, maps: Tensor) -> Tensor:
        heads, width = maps.shape[:2]
        if (x.shape[-3], x.shape[-1]) != (heads, width):
            raise SoftlookupError(f"Hedgehog: expected {heads} heads of width {width}, got {x.shape[-3]} of {x.shape[-1]}")
        x = x @ maps.to(x)
        return torch.cat([x.softmax(-1), (-x).softmax(-1)], -1)


class CosFormer(FeatureMap):
    """phi(x_i) = (max(x, 0) cos(pi i / 2M), max(x, 0) sin(pi i / 2M)), so that weights fall with distance as
    cos(pi (i - j) / 2M) (Qin et al. 2022, eq. 10). M: `length`, no shorter than the sequence. F = 2 E.
    """

    def __init__(self, length: int):
        super().__init__()
        at_least_one("CosFormer", length=length)
        self.length = length

    def extra_repr(self) -> str:
        return f"{self.length}"

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        if first + x.shape[-2] > self.length:
            raise SoftlookupError(f"CosFormer: expected at most {self.length} positions, got {first + x.shape[-2]}")
        # In float64: in half precision there are no positions beyond 256.
        turn = torch.arange(first, first + x.shape[-2], device=x.device, dtype=torch.float64) * (math.pi / 2 / self.length)
        x = x.relu()
        return torch.cat([x * turn.cos().to(x)[:, None], x * turn.sin().to(x)[:, None]], -1)
