"""Attention beside kernel regression: the identity, its rate on closed curves in more dimensions, and the hull of values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import softlookup as sl
from softlookup.smoothing import NadarayaWatson

from ..figure import THEORY, WITH, WITHOUT, halves
from ..run import Given

WIDTH, SPACE, DRAWS, PLACES = 32, 16, 16, 1000
SAMPLES, QUICK = (250, 500, 1000, 2000, 4000), (125, 250, 500, 1000)


def identity(given: Given) -> dict[str, float]:
    """Attention, minus the Gaussian kernel with a prior of keys, and minus Nadaraya-Watson with keys of one length."""
    query, key, value = (torch.randn(200, WIDTH, dtype=torch.float64) for _ in range(3))
    prior = key.square().sum(1) / (2 * WIDTH**0.5) * (not given.control)
    kernel = sl.Gaussian(WIDTH**0.25)
    weighted = sl.attend(query, key, value, score=kernel, bias=prior.expand(200, -1))
    alike = key if given.control else torch.nn.functional.normalize(key, dim=1) * WIDTH**0.5
    regression = NadarayaWatson(WIDTH**0.25).fit(alike, value).predict(query)
    return {
        "prior": float((sl.attend(query, key, value) - weighted).abs().max()),
        "same": float((sl.attend(query, alike, value) - torch.from_numpy(regression)).abs().max()),
    }


def circle(x: Tensor) -> tuple[Tensor, Tensor]:
    """Normal x (n, SPACE) -> places (n, 2) of unit length, and sin 2θ of variance 1."""
    places = torch.nn.functional.normalize(x[:, :2], dim=1)
    return places, 2**0.5 * 2 * places[:, 0] * places[:, 1]


def torus(x: Tensor) -> tuple[Tensor, Tensor]:
    """Normal x (n, SPACE) -> places (n, 4) of unit length, and sin θ₁ + cos θ₂ of variance 1."""
    places = torch.cat([circle(x)[0], circle(x[:, 2:])[0]], 1)
    return places / 2**0.5, places[:, 1] + places[:, 2]


def learned(curve: Callable[[Tensor], tuple[Tensor, Tensor]], count: int, whole_sphere: bool) -> tuple[float, float]:
    """Mean squared error at new places after `count` observations with noise of variance 1, at the temperature τ that leaving
    one out chooses; and τ, for keys of unit length."""
    x = torch.randn(count + PLACES, SPACE)
    places, target = curve(x)
    if whole_sphere:
        places = torch.nn.functional.normalize(x, dim=1)
    turned = places @ torch.linalg.qr(torch.randn(SPACE, SPACE)).Q[: places.shape[1]]
    seen = target[:count, None] + torch.randn(count, DRAWS)
    model = NadarayaWatson(dtype="float32").fit(turned[:count], seen)
    error = model.predict(turned[count:]) - target[count:, None].numpy()
    return float(np.square(error).mean()), float(model.bandwidth_) ** 2


def rates(given: Given) -> dict[str, Any]:
    samples = QUICK if given.quick else SAMPLES
    on_circle, on_torus = ([learned(curve, n, given.control) for n in samples] for curve in (circle, torus))
    errors, widths, others = *zip(*on_circle, strict=True), [error for error, _ in on_torus]
    slopes = [float(np.polyfit(np.log(samples), np.log(some), 1)[0]) for some in (errors, others, widths)]
    return dict(zip(("circle", "torus", "bandwidth"), slopes, strict=True)) | {"errors": [errors, others], "widths": widths}


def outside(local_line: bool) -> dict[str, Any]:
    """The line y = x, observed from 0 to 1 without noise, continued; by a kernel wide enough for a line to have a slope."""
    seen, beyond = np.linspace(0, 1, 200)[:, None], np.linspace(2, 10, 9)[:, None]
    values = NadarayaWatson(0.2, linear=local_line).fit(seen, seen[:, 0]).predict(beyond)
    slope = np.polyfit(beyond[:, 0], beyond[:, 0] - values, 1)[0]
    return {"hull": float(max(values.max() - 1, 0 - values.min(), 0)), "beyond": float(slope), "values": values.tolist()}


def measure(given: Given) -> dict[str, Any]:
    torch.manual_seed(given.seed)
    return identity(given) | rates(given) | outside(given.control)


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    left, right = halves(axes)
    samples = np.array(SAMPLES if len(found[0]["widths"]) == len(SAMPLES) else QUICK)
    for at, (name, marker, rate) in enumerate((("circle", "o", -4 / 5), ("torus", "^", -2 / 3))):
        for some, colour, label in ((found, WITH, name), (control, WITHOUT, f"{name}'s target on a sphere")):
            error = np.exp(np.log([each["errors"][at] for each in some]).mean(0))
            left.plot(samples, error, marker, color=colour, ms=4, label=label)
            if some is found:
                left.plot(samples, error[0] * (samples / samples[0]) ** rate, color=THEORY, lw=0.9)
    left.plot([], [], color=THEORY, lw=0.9, label="rates −4/5 and −2/3")
    left.set(xscale="log", yscale="log", xlabel="observations n", ylabel="mean squared error (noise 1)", ylim=(None, 30))
    left.set_xticks(samples, map(str, samples))
    left.minorticks_off()
    beyond = np.linspace(2, 10, 9)
    right.plot([0, 10], [0, 10], color=THEORY, lw=0.9, label="y = x")
    right.axvspan(0, 1, color=THEORY, alpha=0.15, lw=0, label="observed")
    right.plot(beyond, found[0]["values"], "o", color=WITH, ms=4, label="weighted mean")
    right.plot(beyond, control[0]["values"], "o", color=WITHOUT, ms=4, mfc="none", label="local line")
    right.set(xlabel="x", ylabel="value")
    for half in (left, right):
        half.legend(frameon=False, fontsize=8)
