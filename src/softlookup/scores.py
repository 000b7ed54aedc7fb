"""What is relevant: scores, each lowered to one of three forms that engines know.

`Product` is the canonical form s = phi(scale * (q_i . k_j) + beta_j); `Additive` is u . tanh(q_i + k_j); `Pairwise` is any
function of a block. Biases, temperature and masks come on top, outside of the form. A score of your own is a subclass
of `Score` with either method:

    class Distance(Score):
        def block(self, q, k, i, j):             # q (n, G, L', E), k (n, 1, S', E), i (L', 1), j (1, S') -> (n, G, L', S')
            return -(q.unsqueeze(-2) - k.unsqueeze(-3)).abs().sum(-1)

    class Metric(Score):
        def lower(self, query, key):             # (B, H, L, E), (B, Hkv, S, E) -> a form
            return Product(query @ self.metric, key)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import SoftlookupError, within

# ---- forms: what engines see -----------------------------------------------------------------------------------------


class Pointwise:
    """A map phi applied to every product: `__call__` and its derivative `slope`."""

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def slope(self, x: Tensor) -> Tensor:
        """phi'(x)."""
        raise NotImplementedError

    def bound(self, x: float) -> float:
        """A bound on |phi| over [-x, x]; infinity if none is known."""
        return math.inf


@dataclass(frozen=True)
class SoftCap(Pointwise):
    """phi(x) = c tanh(x / c), so that |s| < c (Gemma Team 2024)."""

    cap: float

    def bound(self, x: float) -> float:
        return min(x, self.cap)

    def __call__(self, x: Tensor) -> Tensor:
        return (x / self.cap).tanh_().mul_(self.cap) if not x.requires_grad else self.cap * torch.tanh(x / self.cap)

    def slope(self, x: Tensor) -> Tensor:
        return 1 - torch.tanh(x / self.cap).square()


@dataclass(frozen=True)
class LorentzDistance(Pointwise):
    """phi(<q,k>_L) = -arccosh(-<q,k>_L), computed as -2 asinh(sqrt(z)/2) with z = |q-k|^2_L = -2 - 2<q,k>_L.

    arccosh loses half of the digits near q = k; asinh does not. The derivative is unbounded at q = k, where it is set to 0.
    """

    def __call__(self, x: Tensor) -> Tensor:
        z = -2 - 2 * x
        near = z <= 0
        root = torch.sqrt(torch.where(near, torch.ones_like(z), z))
        return torch.where(near, torch.zeros_like(z), -2 * torch.asinh(root / 2))

    def slope(self, x: Tensor) -> Tensor:
        z = -2 - 2 * x
        near = z <= 0
        safe = torch.where(near, torch.ones_like(z), z)
        return torch.where(near, torch.zeros_like(z), 1 / torch.sqrt(safe * (1 + safe / 4)))


@dataclass(frozen=True, eq=False)
class Product:
    """s_ij = phi(scale * (query_i . key_j) + key_bias_j): one matrix product, however the score was written.

    query: (B, H, L, E); key: (B, Hkv, S, E); scale: a float, or a tensor of shape () or (H,);
    key_bias: (B, H, S) or None; pointwise: phi, None for the identity;
    ssmax: kappa, a float or a tensor () or (H,): the scale is multiplied by kappa * log(visible_i);
    shift: (B, H, L) or None, a per-query constant of the score: it cancels in the weights but belongs to the logits.
    """

    query: Tensor
    key: Tensor
    scale: float | Tensor = 1.0
    key_bias: Tensor | None = None
    pointwise: Pointwise | None = None
    ssmax: float | Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class AdditiveForm:
    """s_ij = weight_h . tanh(query_i + key_j). query: (B, H, L, A); key: (B, Hkv, S, A); weight: (H, A) or (1, A)."""

    query: Tensor
    key: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Pairwise:
    """s = score.block(q, k, i, j), any differentiable function of a block; query (B, H, L, E), key (B, Hkv, S, E')."""

    query: Tensor
    key: Tensor
    score: Score

    def block(self, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """`score.block`, its shape checked. A score whose parameters are all of one half precision gets q and k in it."""
        own = {t.dtype for t in self.score.tensors() if t.is_floating_point()}
        if own in ({torch.float16}, {torch.bfloat16}):
            (half,) = own
            q, k = q.to(half), k.to(half)
        s = self.score.block(q, k, i, j)
        want = (*q.shape[:3], k.shape[2])
        if tuple(s.shape) != want:
            raise SoftlookupError(f"{type(self.score).__name__}.block: expected scores of shape {want}, got {tuple(s.shape)}")
        return s


Form = Product | AdditiveForm | Pairwise


# ---- scores: what users say ------------------------------------------------------------------------------------------


class Score:
    """Base of all scores. Override `lower` (anything that becomes a product) or `block` (anything at all).

    Tensors and modules kept as attributes are the score's parameters; those that require a gradient get one.
    """

    takes_scale = True

    def hands_on(self) -> bool:
        """True if `lower` gives query and key as they are, so that a row of NaN cannot spoil anything on the way."""
        return False

    def lower(self, query: Tensor, key: Tensor) -> Form:
        """The form of this score for query (B, H, L, E) and key (B, Hkv, S, E'), in differentiable torch operations."""
        if type(self).block is Score.block:
            raise SoftlookupError(f"{type(self).__name__}: expected a Score with lower() or block(), got neither")
        return Pairwise(query, key, self)

    def block(self, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Scores (n, G, L', S') of q (n, G, L', E) and k (n, 1, S', E') at positions i (L', 1) and j (1, S')."""
        raise NotImplementedError

    def tensors(self) -> list[Tensor]:
        """The tensors that `block` depends on besides q and k, in a fixed order."""
        return list(_tensors_in(vars(self)))


def _tensors_in(thing: object) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, nn.Module):
        yield from thing.parameters()
    elif isinstance(thing, dict):
        for item in thing.values():
            yield from _tensors_in(item)
    elif isinstance(thing, list | tuple):
        for item in thing:
            yield from _tensors_in(item)


class Dot(Score):
    """s = q . k (Luong et al. 2015, "dot")."""

    def hands_on(self) -> bool:
        return True

    def lower(self, query: Tensor, key: Tensor) -> Product:
        same_width(self, query, key)
        return Product(query, key)


class ScaledDot(Score):
    """s = q . k / sqrt(E) (Vaswani et al. 2017, eq. 1).

    softcap: c > 0 bounds the logits, s = c tanh(q . k / (c sqrt(E))) (Gemma 2).
    ssmax: kappa, a float or a learned tensor () or (H,): logits are multiplied by kappa * log(visible keys), so that
        attention does not fade as the context grows (Nakanishi 2025, Scalable-Softmax).
    """

    def __init__(self, softcap: float | None = None, ssmax: float | Tensor | None = None):
        if softcap is not None and not within(softcap, 0, math.inf):
            raise SoftlookupError(f"softcap: expected a finite number > 0, got {softcap!r}")
        self.softcap = softcap
        self.ssmax = ssmax

    def hands_on(self) -> bool:
        return self.ssmax is None

    def lower(self, query: Tensor, key: Tensor) -> Product:
        same_width(self, query, key)
        pointwise = None if self.softcap is None else SoftCap(float(self.softcap))
        return Product(query, key, query.shape[-1] ** -0.5, pointwise=pointwise, ssmax=self.ssmax)


class Bilinear(Score):
    """s = q W k (Luong et al. 2015, "general"). w: (E, E') or (H, E, E')."""

    def __init__(self, w: Tensor):
        self.w = w

    def lower(self, query: Tensor, key: Tensor) -> Product:
        heads, want = query.shape[1], (query.shape[-1], key.shape[-1])
        if tuple(self.w.shape) not in {want, (1, *want), (heads, *want)}:
            raise SoftlookupError(f"Bilinear: expected w of shape {want} or {(heads, *want)}, got {tuple(self.w.shape)}")
        return Product(query @ self.w.to(query.dtype), key)


class Cosine(Score):
    """s = scale * cos(q, k), scale 1 unless `attend` is given another (a zero vector has cosine 0)."""

    def lower(self, query: Tensor, key: Tensor) -> Product:
        same_width(self, query, key)
        return Product(unit(query), unit(key))


def unit(x: Tensor) -> Tensor:
    """x / |x| in at least single precision; 0 for 0."""
    return nn.functional.normalize(single(x), dim=-1)


def single(x: Tensor) -> Tensor:
    """x in at least single precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Gaussian(Score):
    """s = -|q - k|^2 / (2 h^2): the lookup is the Nadaraya-Watson kernel smoother (Nadaraya 1964, Watson 1964).

    bandwidth: h > 0, a float or a tensor of shape () or (H,) or, one width per dimension, (1, E) or (H, E).
    """

    takes_scale = False

    def __init__(self, bandwidth: float | Tensor = 1.0):
        if not isinstance(bandwidth, Tensor) and not within(bandwidth, 0, math.inf):
            raise SoftlookupError(f"Gaussian: expected a finite bandwidth > 0, got {bandwidth!r}")
        self.bandwidth = bandwidth

    def lower(self, query: Tensor, key: Tensor) -> Product:
        same_width(self, query, key)
        heads, width = query.shape[1], query.shape[-1]
        query, key = single(query), single(key)
        h = torch.as_tensor(self.bandwidth, dtype=query.dtype, device=query.device)
        if tuple(h.shape) not in {(), (heads,), (1, width), (heads, width)}:
            raise SoftlookupError(
                f"Gaussian: expected a bandwidth of shape (), ({heads},) or ({heads}, {width}), got {tuple(h.shape)}"
            )
        precision = (1 / h.square()).reshape(-1, 1 if h.ndim < 2 else width).expand(heads, width)[:, None, :]
        if not bool(precision.isfinite().all()):
            raise SoftlookupError(f"Gaussian: expected bandwidths h with finite 1 / h^2 in {h.dtype}, got {float(h.min()):g}")
        query, key = _centred(query, key)
        groups = heads // key.shape[1]
        squares = key.square().repeat_interleave(groups, 1) if h.ndim else key.square()
        half = precision if h.ndim else precision[:1]
        key_bias = -0.5 * (squares * half).sum(-1)
        if not h.ndim:
            key_bias = key_bias.repeat_interleave(groups, 1)
        shift = -0.5 * (query.square() * precision).sum(-1)
        return Product(query * precision, key, key_bias=key_bias, shift=shift)


def _centred(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Both moved to the middle of the queries (B, H, L, E), which changes no difference but the digits that products lose.

    Not that of the keys (B, Hkv, S, E): they may be hidden, and what they hold must not matter. A median is not dragged along
    by a few.
    """
    sample = query.detach()[..., :: max(1, query.shape[-2] // 256), :]
    centre = sample.reshape(*key.shape[:2], -1, query.shape[-1]).nanmedian(-2, keepdim=True).values
    return query - centre.repeat_interleave(query.shape[1] // key.shape[1], 1), key - centre


class Mahalanobis(Score):
    """s = -(q - k)^T M (q - k) / 2 with M = A^T A (Mahalanobis 1936): `Gaussian` of A q and A k, which may have fewer
    dimensions. a: A, (r, E) or (H, r, E).
    """

    takes_scale = False

    def __init__(self, a: Tensor):
        if not isinstance(a, Tensor) or not a.is_floating_point() or a.ndim not in (2, 3) or 0 in a.shape:
            got = (type(a).__name__, *a.shape) if isinstance(a, Tensor) else a
            raise SoftlookupError(f"Mahalanobis: expected a of shape (r, E) or (H, r, E), got {got!r}".replace("\n", " "))
        self.a = a

    def lower(self, query: Tensor, key: Tensor) -> Product:
        same_width(self, query, key)
        heads, width, got = query.shape[1], query.shape[-1], tuple(self.a.shape)
        if len(got) not in (2, 3) or got[-1] != width or (len(got) == 3 and got[0] not in (1, heads)):
            raise SoftlookupError(f"Mahalanobis: expected a of shape (r, {width}) or ({heads}, r, {width}), got {got}")
        query, key = _centred(single(query), single(key))
        if len(got) == 3 and got[0] > 1:
            key = key.repeat_interleave(heads // key.shape[1], 1)
        a = self.a.to(query.dtype).mT
        return Gaussian().lower(query @ a, key @ a)


class Hyperbolic(Score):
    """s = -d(q, k), the geodesic distance on the hyperboloid (Lorentz model; Gulcehre et al. 2019).

    Vectors are points (x_0, x_1, ..., x_n) with x_0 = sqrt(1 + |x_1..n|^2), time first; `Hyperbolic.lift` makes them.
    """

    takes_scale = False

    @staticmethod
    def lift(x: Tensor) -> Tensor:
        """The point of the hyperboloid above x: (…, n) -> (…, n + 1)."""
        return torch.cat([torch.sqrt(1 + x.square().sum(-1, keepdim=True)), x], -1)

    def lower(self, query: Tensor, key: Tensor) -> Product:
        same_width(self, query, key)
        return Product(query, torch.cat([-key[..., :1], key[..., 1:]], -1), pointwise=LorentzDistance())


class Additive(Score):
    """s = u . tanh(W_q q + W_k k) (Bahdanau, Cho & Bengio 2015; Luong's "concat").

    u: (H, A); w_q: (H, A, E); w_k: (H, A, Ek); H may be 1 everywhere. Queries and keys are projected once.
    """

    takes_scale = False

    def __init__(self, u: Tensor, w_q: Tensor, w_k: Tensor):
        if u.ndim != 2 or w_q.ndim != 3 or w_k.ndim != 3 or not u.shape[1] == w_q.shape[1] == w_k.shape[1]:
            raise SoftlookupError(
                "Additive: expected u (H, A), w_q (H, A, E), w_k (H, A, Ek), "
                f"got {tuple(u.shape)}, {tuple(w_q.shape)}, {tuple(w_k.shape)}"
            )
        self.u, self.w_q, self.w_k = u, w_q, w_k

    def lower(self, query: Tensor, key: Tensor) -> AdditiveForm:
        heads = query.shape[1]
        for name, w, width in (("w_q", self.w_q, query.shape[-1]), ("w_k", self.w_k, key.shape[-1])):
            if w.shape[0] not in (1, heads) or w.shape[2] != width:
                want = (heads, self.u.shape[1], width)
                raise SoftlookupError(f"Additive: expected {name} of shape {want}, got {tuple(w.shape)}")
        if self.u.shape[0] not in (1, heads):
            raise SoftlookupError(f"Additive: expected u for {heads} heads, got {tuple(self.u.shape)}")
        if self.w_k.shape[0] != 1 and key.shape[1] != heads:
            key = key.repeat_interleave(heads // key.shape[1], 1)
        dtype = query.dtype
        return AdditiveForm(query @ self.w_q.to(dtype).mT, key @ self.w_k.to(dtype).mT, self.u)


def same_width(score: Score, query: Tensor, key: Tensor) -> None:
    """Raise unless query and key vectors have the same number of dimensions."""
    if query.shape[-1] != key.shape[-1]:
        name, q, k = type(score).__name__, query.shape[-1], key.shape[-1]
        raise SoftlookupError(f"{name}: expected queries and keys of the same width, got {q} and {k}")
