"""Feature maps: exp(q . k) and other similarities as products of features, phi(q) . phi(k), which can be summed over keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from ..errors import SoftlookupError, at_least_one


class FeatureMap(nn.Module):
    """phi of queries (…, H, N, E) and keys (…, Hkv, N, E) at positions from `first` on -> (…, H or Hkv, N, F).

    One of your own has `forward(x, first)`, for both, or `query` and `key`. Features of a row may depend on that row alone:
    then sums over keys mean the same however they are cut. A factor common to all features of a query cancels.
    """

    def query(self, x: Tensor, first: int = 0) -> Tensor:
        return self(x, first)

    def key(self, x: Tensor, first: int = 0) -> Tensor:
        return self(x, first)


class EluPlusOne(FeatureMap):
    """phi(x) = elu(x) + 1 (Katharopoulos et al. 2020, eq. 7). F = E."""

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        return elu(x) + 1


class ReLU(FeatureMap):
    """phi(x) = max(x, 0), to which `offset` is added so that no query is without weights. F = E."""

    def __init__(self, offset: float = 1e-3):
        super().__init__()
        self.offset = offset

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
        self.register_buffer("w", torch.empty(features, width))
        self.draw(seed)

    def draw(self, seed: int) -> None:
        """Other random features, as training may want from time to time."""
        make = torch.Generator().manual_seed(seed)
        w = torch.randn(self.features, self.width, generator=make, dtype=torch.float64)
        if self.orthogonal:
            blocks = []
            for start in range(0, self.features, self.width):
                q, r = torch.linalg.qr(torch.randn(self.width, self.width, generator=make, dtype=torch.float64))
                blocks.append((q * r.diagonal().sign())[: self.features - start])  # uniform over rotations
            w = torch.cat(blocks) * w.norm(dim=1, keepdim=True)
        self.w.copy_(w)

    def query(self, x: Tensor, first: int = 0) -> Tensor:
        """As `forward`, but for a factor of each query, which keeps exponentials in range."""
        return self._features(x, of_query=True)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        return self._features(x, of_query=False)

    def _features(self, x: Tensor, of_query: bool) -> Tensor:
        x = x * self.scale**0.5
        turns, half = x @ self.w.to(x).T, x.square().sum(-1, keepdim=True) / 2
        if self.kind == "trigonometric":
            size = torch.ones_like(half) if of_query else half.exp()
            return torch.cat([turns.sin(), turns.cos()], -1) * size / math.sqrt(self.features)
        size = turns - (turns.detach().amax(-1, keepdim=True) if of_query else half)
        return size.exp() / math.sqrt(self.features)


class Hedgehog(FeatureMap):
    """phi(x) = (softmax(W x), softmax(-W x)), W learned for each head and the identity at first (Zhang et al. 2024). F = 2 E.

    Trained to give the weights that a model's softmax gives, it takes that one's place.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        at_least_one("Hedgehog", width=width, heads=heads)
        self.of_query = nn.Parameter(torch.eye(width).repeat(heads, 1, 1))
        self.of_key = nn.Parameter(torch.eye(width).repeat(heads, 1, 1))

    def query(self, x: Tensor, first: int = 0) -> Tensor:
        return self._both(x @ self.of_query)

    def key(self, x: Tensor, first: int = 0) -> Tensor:
        """With a map for each query head, keys of fewer heads become as many."""
        if x.shape[-3] != len(self.of_key):
            x = x.repeat_interleave(len(self.of_key) // x.shape[-3], -3)
        return self._both(x @ self.of_key)

    @staticmethod
    def _both(x: Tensor) -> Tensor:
        return torch.cat([x.softmax(-1), (-x).softmax(-1)], -1)


class CosFormer(FeatureMap):
    """phi(x_i) = (max(x, 0) cos(pi i / 2M), max(x, 0) sin(pi i / 2M)), so that weights fall with distance as
    cos(pi (i - j) / 2M) (Qin et al. 2022, eq. 10). M: `length`, no shorter than the sequence. F = 2 E.
    """

    def __init__(self, length: int):
        super().__init__()
        at_least_one("CosFormer", length=length)
        self.length = length

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        if first + x.shape[-2] > self.length:
            raise SoftlookupError(f"CosFormer: expected at most {self.length} positions, got {first + x.shape[-2]}")
        turn = torch.arange(first, first + x.shape[-2], device=x.device, dtype=x.dtype)[:, None] * (math.pi / 2 / self.length)
        x = x.relu()
        return torch.cat([x * turn.cos(), x * turn.sin()], -1)
