"""What 1/sqrt(d_k) does to the variance of scores, to gradients, and to the best learning rate."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import softlookup as sl

from ...inspection.text import read_text
from ..figure import THEORY, WITH, WITHOUT
from ..run import Given

SCALES = {"none": lambda d: 1.0, "1/√d_k": lambda d: d**-0.5, "1/d_k": lambda d: 1 / d}
ROWS, VALUES, WIDTHS = 256, 64, (16, 32, 64, 128, 256)
WIDTH, HEADS, LAYERS, LENGTH, BATCH, STEPS = 64, 2, 2, 64, 16, 200
TRAINED, RATES = (8, 32, 128, 256), [2.0**-x for x in range(4, 11)]


def scores(d: int) -> tuple[Tensor, Tensor]:
    """Queries and keys (1, ROWS, d) of variance 1."""
    query, key = torch.randn(2, 1, ROWS, d)
    return query, key


def gradient(d: int, scale: float) -> float:
    """The mean over queries of the norm of the gradient at the scores, for a random gradient of the values."""
    (query, key), bias = scores(d), torch.zeros(1, ROWS, ROWS, requires_grad=True)
    y = sl.attend(query, key, torch.randn(1, ROWS, VALUES), score=sl.Dot(), scale=scale, bias=bias)
    (found,) = torch.autograd.grad(y, bias, torch.randn_like(y))
    return float(found.norm(dim=-1).mean())


class Attention(nn.Module):
    """Causal; queries and keys are d_k wide and begin with components of variance 1, values as wide as ever. bias: of the
    scores, (B, HEADS, LENGTH, LENGTH), from which a gradient there can be read."""

    def __init__(self, d_k: int, scale: float):
        super().__init__()
        self.query, self.key = (nn.Linear(WIDTH, HEADS * d_k, bias=False) for _ in range(2))
        self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        for each in (self.query, self.key, self.value, self.out):
            nn.init.normal_(each.weight, std=WIDTH**-0.5)
        self.scale, self.bias = scale, None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = sl.attend(q, k, v, score=sl.Dot(), scale=self.scale, mask=sl.Causal(), bias=self.bias)
        return self.out(y.transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """Bytes in, the logits of the next byte out."""

    def __init__(self, d_k: int, scale: float):
        super().__init__()
        self.embedding, self.places = nn.Embedding(256, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.attention = nn.ModuleList(Attention(d_k, scale) for _ in range(LAYERS))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH)) for _ in range(LAYERS)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * LAYERS + 1))
        self.last = nn.Linear(WIDTH, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.places.weight
        for n, (attention, feed) in enumerate(zip(self.attention, self.feed, strict=True)):
            x = x + attention(self.norms[2 * n](x))
            x = x + feed(self.norms[2 * n + 1](x))
        return self.last(self.norms[-1](x))


def loss(d_k: int, scale: str, rate: float, seed: int, steps: int) -> float:
    """Of the last tenth of a training on Python's reference, in nats; at most that of chance."""
    torch.manual_seed(seed)
    text = torch.frombuffer(bytearray(read_text(None)[0].encode()), dtype=torch.uint8).long()
    model, losses = Decoder(d_k, SCALES[scale](d_k)), []
    optimizer = torch.optim.Adam(model.parameters(), rate, betas=(0.9, 0.95), fused=True)
    for step in range(steps):
        start = torch.randint(len(text) - LENGTH - 1, (BATCH,))
        batch = text[start[:, None] + torch.arange(LENGTH + 1)]
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10)
        optimizer.zero_grad()
        now = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        now.backward()
        optimizer.step()
        losses.append(now.item())
    return float(np.nan_to_num(np.mean(losses[-steps // 10 :]), nan=math.log(256)))


def best_rate(given: Given, d_k: int, scale: str) -> float:
    """log2 of it: the vertex of the parabola through the least loss and its neighbours. Quick runs read the records too."""
    losses = []
    for rate in RATES:
        key = f"d_k {d_k}, scale {scale}, rate {rate}, seed {given.seed}"
        losses.append(given.records.get(key, partial(loss, d_k, scale, rate, given.seed, STEPS)))
    x, at = np.log2(RATES), int(np.clip(np.argmin(losses), 1, len(RATES) - 2))
    curve = np.polyfit(x[at - 1 : at + 2], losses[at - 1 : at + 2], 2)
    return float(np.clip(-curve[1] / (2 * curve[0]), x.min(), x.max())) if curve[0] > 0 else float(x[np.argmin(losses)])


def measure(given: Given) -> dict[str, Any]:
    torch.manual_seed(given.seed)
    repeated = range(4 if given.quick else 8)
    products = [(q @ k.mT).square().mean().item() / d for d in WIDTHS for q, k in (scores(d) for _ in repeated)]
    scale = "none" if given.control else "1/√d_k"
    norms = [np.mean([gradient(d, SCALES[scale](d)) for _ in repeated]) for d in WIDTHS]
    carried = ("none",) if given.control else ("1/d_k", "1/√d_k")
    rates = {name: [best_rate(given, d, name) for d in TRAINED] for name in carried}
    return {
        "variance": float(np.mean(products)),
        "gradient": float(np.polyfit(np.log(WIDTHS), np.log(norms), 1)[0]),
        "transfer": rates[carried[0]][0] - rates[carried[0]][-1],
        "norms": [float(norm) for norm in norms],
        "rates": {name: [TRAINED, found] for name, found in rates.items()},
    }


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    for results, colour, label in ((found, WITH, "1/√d_k"), (control, WITHOUT, "no scale")):
        for n, each in enumerate(results):
            norms = np.array(each["norms"]) / each["norms"][0]
            axes.plot(WIDTHS, norms, "o-", color=colour, ms=3, lw=1, label=None if n else label)
    axes.plot(WIDTHS, (np.array(WIDTHS) / WIDTHS[0]) ** -0.5, color=THEORY, ls=":", lw=1, label="d_k to the −1/2")
    axes.set(xscale="log", yscale="log", xlabel="d_k", ylabel="gradient at the scores, by that at d_k = 16", xticks=WIDTHS)
    axes.set_xticklabels(map(str, WIDTHS))
    axes.set_yticks((1, 0.7, 0.5, 0.35, 0.25), ("1", "0.7", "0.5", "0.35", "0.25"))
    axes.minorticks_off()
    axes.legend(frameon=False)
