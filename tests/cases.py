"""The cases that laws are tested on: every score, mask, bias and normalizer, small enough for float64 and gradcheck."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import softlookup as sl
from softlookup import manifolds

B, H, KV, L, S, E, EV = 2, 4, 2, 9, 13, 5, 3


class Distance(sl.Score):
    """s = -|q - k|_1 / width, with a learned width: the score of one's own in the docs."""

    def __init__(self, width: Tensor):
        self.width = width

    def block(self, q, k, i, j):
        return -(q.unsqueeze(-2) - k.unsqueeze(-3)).abs().sum(-1) / self.width


class Network(sl.Score):
    """s = w2 . tanh(W1 [q; k]): a two-layer perceptron."""

    def __init__(self, width: int, hidden: int, dtype: torch.dtype):
        self.first = nn.Linear(2 * width, hidden, dtype=dtype)
        self.second = nn.Linear(hidden, 1, dtype=dtype)

    def block(self, q, k, i, j):
        q, k = torch.broadcast_tensors(q.unsqueeze(-2), k.unsqueeze(-3))
        return self.second(self.first(torch.cat([q, k], -1)).tanh()).squeeze(-1)


class Metric(sl.Score):
    def __init__(self, metric: Tensor):
        self.metric = metric

    def lower(self, query, key):
        return sl.Product(query @ self.metric, key, scale=0.5)


class Cauchy(sl.Threshold):
    """Weights that fall off as a power: the normalizer of one's own in the docs."""

    def weight(self, x):
        return torch.where(x < 0, 1 / (1 - x.clamp(max=0)), 1 + x)

    def reach(self, w):
        return torch.where(w < 1, 1 - 1 / w, w - 1)


class Exponential(sl.Threshold):
    """Softmax, said as a threshold, with a learned temperature of its own."""

    def __init__(self, rate: Tensor):
        super().__init__()
        self.rate = rate

    def parameters(self):
        return (self.rate,)

    def weight(self, x, rate):
        return (x * rate).exp()

    def reach(self, w, rate):
        return w.log() / rate


@dataclass
class Case:
    query: Tensor
    key: Tensor
    value: Tensor
    arguments: dict[str, Any] = field(default_factory=dict)
    parameters: list[Tensor] = field(default_factory=list)

    @property
    def inputs(self) -> list[Tensor]:
        return [self.query, self.key, self.value, *self.parameters]

    def leaves(self) -> list[Tensor]:
        return [t.requires_grad_() for t in self.inputs]


def tensors(dtype=torch.float64, b=B, h=H, kv=KV, q=L, s=S, e=E, ev=EV):
    return torch.randn(b, h, q, e, dtype=dtype), torch.randn(b, kv, s, e, dtype=dtype), torch.randn(b, kv, s, ev, dtype=dtype)


def learned(*shape: int, dtype=torch.float64, positive: bool = False) -> Tensor:
    t = torch.randn(shape, dtype=dtype) * 0.5
    return t.abs() + 0.5 if positive else t


SCORES = "dot scaled softcap ssmax bilinear cosine gaussian gaussian_dims hyperbolic additive".split()
SCORES += "distance network metric mahalanobis lorentz mixed".split()
MASKS = "none causal window documents padding lengths prefix dilated not or function boolean rows float empty heads".split()
BIASES = "none dense broadcast alibi table table_causal".split()
NORMALIZERS = "plain warm warm_tensor warm_rows sink sink_learned".split()


def score_case(name: str, dtype=torch.float64) -> Case:
    q, k, v = tensors(dtype)
    case = Case(q, k, v)
    p = case.parameters

    def par(*shape: int, positive: bool = False) -> Tensor:
        p.append(learned(*shape, dtype=dtype, positive=positive))
        return p[-1]

    match name:
        case "dot":
            score = sl.Dot()
        case "scaled":
            score = sl.ScaledDot()
        case "softcap":
            score = sl.ScaledDot(softcap=1.5)
        case "ssmax":
            score = sl.ScaledDot(ssmax=par(H))
        case "bilinear":
            score = sl.Bilinear(par(H, E, E))
        case "cosine":
            score = sl.Cosine()
        case "gaussian":
            score = sl.Gaussian(par(H, positive=True))
        case "gaussian_dims":
            score = sl.Gaussian(par(H, E, positive=True))
        case "hyperbolic":
            case.query, case.key = sl.Hyperbolic.lift(q), sl.Hyperbolic.lift(k)
            score = sl.Hyperbolic()
        case "additive":
            score = sl.Additive(par(H, 6), par(H, 6, E), par(1, 6, E))
        case "distance":
            score = Distance(par(positive=True))
        case "network":
            score = Network(E, 6, dtype)
            p.extend(score.tensors())
        case "metric":
            score = Metric(par(E, E))
        case "mahalanobis":
            score = sl.Mahalanobis(par(H, 3, E))
        case "lorentz":
            score = manifolds.Distance(manifolds.Lorentz(par(H, positive=True)))
        case "mixed":
            curvature, other = par(positive=True), par(H, positive=True)
            parts = (manifolds.Euclidean(), 1), (manifolds.Sphere(curvature), 2), (manifolds.Lorentz(other), E - 3)
            score = manifolds.Distance(manifolds.Product(*parts), power=2)
    case.arguments = {"score": score}
    return case


def mask_of(name: str, b=B, h=H, q=L, s=S):
    i = torch.arange(s)
    match name:
        case "none":
            return None
        case "causal":
            return sl.Causal()
        case "window":
            return sl.Causal() & sl.Window(3)
        case "documents":
            return sl.Documents(torch.stack([(i > 4).long() + (i > 8), (i > 6).long()])[:b]) & sl.Causal()
        case "padding":
            return sl.Padding(torch.stack([i >= 4, (i < 9) & (i != 2)])[:b]) & sl.Causal()
        case "lengths":
            return sl.Lengths(torch.tensor([5, s])[:b])
        case "prefix":
            return sl.Causal() | sl.Prefix(torch.tensor([0, 6])[:b])
        case "dilated":
            return sl.Dilated(3) & sl.Causal()
        case "not":
            return ~(sl.Causal() & sl.Window(2))
        case "or":
            return (sl.Window(2) | sl.Prefix(1)) & sl.Causal()
        case "function":
            return sl.Causal() & (lambda b, h, i, j: ((i + j + h + b) % 3 != 0))
        case "boolean":
            return torch.rand(b, h, q, s, generator=torch.Generator().manual_seed(1)) > 0.4
        case "rows":
            return torch.rand(q, s, generator=torch.Generator().manual_seed(2)) > 0.5
        case "float":
            m = torch.randn(b, 1, q, s, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
            return torch.where(m < -0.5, torch.finfo(m.dtype).min, m)
        case "empty":
            return sl.Causal() & sl.Lengths(torch.tensor([0, 3])[:b])
        case "heads":
            return sl.MaskFunction(lambda b, h, i, j: (h % 2 == 0) | (j <= i))


def bias_case(name: str) -> Case:
    q, k, v = tensors()
    case = Case(q, k, v)
    match name:
        case "none":
            return case
        case "dense":
            w = learned(B, H, L, S)
            bias = w
        case "broadcast":
            w = learned(1, H, 1, S)
            bias = w
        case "alibi":
            w = learned(H, positive=True)
            bias = sl.ALiBi(w)
        case "table":
            w = learned(8, H)
            bias = sl.RelativeTable(w, max_distance=9)
        case "table_causal":
            w = learned(6, H)
            bias = sl.RelativeTable(w, bidirectional=False, max_distance=8)
    case.arguments, case.parameters = {"bias": bias, "mask": sl.Causal()}, [w]
    return case


def normalizer_case(name: str) -> Case:
    q, k, v = tensors()
    case = Case(q, k, v, {"mask": mask_of("empty") | sl.Window(2), "bias": torch.randn(L, S, dtype=torch.float64)})
    match name:
        case "plain":
            normalizer = sl.Softmax()
        case "warm":
            normalizer = sl.Softmax(temperature=0.7)
        case "warm_tensor":
            case.parameters = [learned(H, positive=True)]
            normalizer = sl.Softmax(temperature=case.parameters[0])
        case "warm_rows":
            case.parameters = [learned(1, H, L, positive=True)]
            normalizer = sl.Softmax(temperature=case.parameters[0])
        case "sink":
            normalizer = sl.Softmax(sink=0.0)
        case "sink_learned":
            case.parameters = [learned(H)]
            normalizer = sl.Softmax(temperature=1.3, sink=case.parameters[0])
    case.arguments["normalizer"] = normalizer
    return case


RULES = "sparsemax entmax entmax_one entmax_low entmax_high entmax_learned entmax_head".split()
RULES += "topk sigmoid sigmoid_fixed sigmoid_head cauchy exponential".split()


def rule_case(name: str, small: bool = False) -> Case:
    """Normalizers other than softmax, with scores of which some are far below others. small: so that every entry of a Jacobian
    can be looked at."""
    sizes = {"b": 1, "h": 2, "kv": 1, "q": 3, "s": 6, "e": 2, "ev": 2} if small else {"h": H, "q": L, "s": S}
    q, k, v = tensors(**sizes)
    mask = sl.Causal() | sl.Window(3) if small else mask_of("empty") | sl.Window(3)
    heads, length = sizes["h"], sizes["q"]
    case = Case(2 * q, 2 * k, v, {"mask": mask, "bias": torch.randn(length, sizes["s"], dtype=torch.float64)})
    p = case.parameters
    match name:
        case "sparsemax":
            normalizer: sl.Normalizer = sl.Sparsemax()
        case "entmax":
            p.append(learned(heads, positive=True))
            normalizer = sl.Entmax(1.5, temperature=p[0])
        case "entmax_one":
            normalizer = sl.Entmax(1.0, temperature=0.7)
        case "entmax_low":
            normalizer = sl.Entmax(1.2)
        case "entmax_high":
            normalizer = sl.Entmax(1.9)
        case "entmax_learned":
            p.append(learned(positive=True) / 2 + 1)
            normalizer = sl.Entmax(p[0])
        case "entmax_head":
            p += [learned(heads, positive=True) / 2 + 1, learned(1, heads, length, positive=True)]
            normalizer = sl.Entmax(p[0], temperature=p[1])
        case "topk":
            normalizer = sl.TopK(3)
        case "sigmoid":
            normalizer = sl.Sigmoid()
        case "sigmoid_fixed":
            normalizer = sl.Sigmoid(-1.5, temperature=2.0)
        case "sigmoid_head":
            p.append(learned(heads))
            normalizer = sl.Sigmoid(p[0])
        case "cauchy":
            normalizer = Cauchy()
        case "exponential":
            p.append(learned(heads, positive=True))
            normalizer = Exponential(p[0])
    case.arguments["normalizer"] = normalizer
    return case


ALL_CASES = (
    [("score", n) for n in SCORES]
    + [("mask", n) for n in MASKS]
    + [("bias", n) for n in BIASES]
    + [("normalizer", n) for n in NORMALIZERS]
)


def case_of(kind: str, name: str) -> Case:
    if kind == "score":
        case = score_case(name)
        case.arguments["mask"] = mask_of("padding")
        return case
    if kind == "mask":
        return Case(*tensors(), {"mask": mask_of(name)})
    return bias_case(name) if kind == "bias" else normalizer_case(name)
