"""Places that lie near a surface, or count along few directions, in 32 dimensions: does a learned metric need fewer samples?

    python benchmarks/manifold.py [--seeds 3]

The settings: "cloud", normal in all 32 dimensions, with a target of the first two of them under a random rotation; "surface",
sines of two coordinates from -1 to 1 with random frequencies and phases, and noise of 0.05 in all 32 dimensions, with a target
of both coordinates; "surface, one", the same with a target of the first coordinate. Each seed draws all of it anew.

Told are root mean squared errors at 1,000 new places, in standard deviations of the target, whose noise of 0.1 nothing gets
below: of an isotropic kernel, its bandwidth of the least leave-one-out error; of learned metrics of rank 2, 8 and 32, by 60
steps; of that among them with the least leave-one-out error; and of an isotropic kernel on the coordinates that the target is
made of, which nobody knows. Beside them stand the leave-one-out errors of the first and of the chosen. The factor is how many
times as many samples the isotropic kernel needs for the chosen metric's error, by lines through logarithms of samples and
errors: the median and the extremes over seeds. All in float32.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from softlookup.smoothing import NadarayaWatson, learned_metric

WIDTH, NOISE, STEPS = 32, 0.1, 60
RANKS = (2, 8, 32)
SAMPLES = (125, 500, 2000)
ISOTROPIC = (31, 62, 125, 250, 500, 1000, 2000, 4000, 8000)
SETTINGS = ("cloud", "surface", "surface, one")


def made(setting: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places (n, 32), what the target is made of (n, 2 or 1) and the target (n,), of which the last 1,000 are for tests."""
    random, count = np.random.default_rng(seed), ISOTROPIC[-1] + 1000
    if setting == "cloud":
        u = random.normal(size=(count, WIDTH)) / 2
        x, u = u @ np.linalg.qr(random.normal(size=(WIDTH, WIDTH))).Q, u[:, :2]
    else:
        u = random.uniform(-1, 1, (count, 2))
        x = np.sin(u @ random.normal(scale=2, size=(2, WIDTH)) + random.uniform(0, 2 * np.pi, WIDTH))
        x += 0.05 * random.normal(size=x.shape)
    if setting == "surface, one":
        u = u[:, :1]
        y = np.sin(3 * u[:, 0])
    else:
        y = np.sin(3 * u[:, 0]) + np.cos(3 * u[:, 1]) + u[:, 0] * u[:, 1]
    return x, u, y / y.std() + NOISE * random.normal(size=count)


def errors(x: np.ndarray, y: np.ndarray, count: int) -> tuple[float, float]:
    """Of an isotropic kernel by the first `count`: leaving one out, and at the last 1,000 places."""
    model = NadarayaWatson(dtype="float32").fit(x[:count], y[:count])
    return model.loo_error_**0.5, outside(model, x, y)


def outside(model: NadarayaWatson, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(np.mean((model.predict(x[-1000:]) - y[-1000:]) ** 2)))


def learned(x: np.ndarray, y: np.ndarray, count: int, rank: int) -> tuple[float, float]:
    """The same of a learned metric."""
    places, values = (torch.tensor(z[:count], dtype=torch.float32) for z in (x, y[:, None]))
    metric, inside = learned_metric(places, values, rank, STEPS)
    places = x @ metric.numpy()
    return inside**0.5, outside(NadarayaWatson(1.0, dtype="float32").fit(places[:count], y[:count]), places, y)


def needed(target: float, curve: list[float]) -> float:
    """How many samples the isotropic kernel needs for an error: 0 if the fewest are enough, infinite if the most are not."""
    if target >= curve[0]:
        return 0.0
    for n, (before, after) in enumerate(zip(curve, curve[1:], strict=False)):
        if after <= target < before:
            share = np.log(before / target) / np.log(before / after)
            return float(ISOTROPIC[n] * (ISOTROPIC[n + 1] / ISOTROPIC[n]) ** share)
    return np.inf


def shown(factor: float, count: int) -> str:
    if factor == 0:
        return f"<{ISOTROPIC[0] / count:.2g}"
    return f"{factor:.2g}" if np.isfinite(factor) else f">{ISOTROPIC[-1] / count:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns = ["isotropic", *(f"rank {rank}" for rank in RANKS), "chosen", "known", "isotropic*", "chosen*"]
    print(" " * 20 + "".join(f"{name:>11s}" for name in columns) + "  factor, and the ranks chosen (*: leaving one out)")
    for setting in SETTINGS:
        rows: dict[int, list[Any]] = {count: [] for count in SAMPLES}
        curves = []
        for seed in range(args.seeds):
            x, u, y = made(setting, seed)
            plain = {count: errors(x, y, count) for count in ISOTROPIC}
            curves.append([at for _, at in plain.values()])
            for count in SAMPLES:
                found = [learned(x, y, count, rank) for rank in RANKS]
                best = int(np.argmin([inside for inside, _ in found]))
                (loo, chosen), (plain_loo, at) = found[best], plain[count]
                factor = needed(chosen, curves[-1]) / count
                known = errors(u, y, count)[1]
                rows[count].append([at, *(e for _, e in found), chosen, known, plain_loo, loo, factor, RANKS[best]])
        for count, some in rows.items():
            *means, factors, ranks = zip(*some, strict=True)
            median, least, most = (shown(f(factors), count) for f in (np.median, min, max))
            cells = "".join(f"{np.mean(e):11.3f}" for e in means)
            print(f"{setting:13s}{count:7,d}{cells}  {median} ({least} to {most})  {ranks}", flush=True)
        curve = ", ".join(f"{n}: {e:.3f}" for n, e in zip(ISOTROPIC, np.mean(curves, 0), strict=True))
        print(f"    isotropic: {curve}", flush=True)


if __name__ == "__main__":
    main()
