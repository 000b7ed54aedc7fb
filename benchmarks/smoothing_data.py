"""Kernel regression on real data: errors of five-fold cross-validation beside those of its neighbours in scikit-learn.

    python benchmarks/smoothing_data.py

Sunspots and carbon dioxide by time, food by income (Engel) and diabetes are regressions; told is the root mean squared error
in standard deviations; digits are ten classes, told is the share that is wrong. Features are standardized. What the
others have to choose they choose by cross-validation inside of each fold's training part. The time series are asked twice: at
times left out at random (interpolation), and for their last tenth (extrapolation). Last, carbon dioxide by bandwidths from tiny
to huge, beside what they tend to: the nearest observation, and the mean or the least-squares line.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.dummy import DummyRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.datasets import co2, engel, sunspots

from softlookup.smoothing import NadarayaWatson, NadarayaWatsonClassifier

INSIDE = KFold(5, shuffle=True, random_state=1)
NEIGHBOURS = {"n_neighbors": [1, 2, 3, 5, 8, 12, 20, 30]}
RIDGES = {"alpha": [1e-3, 1e-2, 0.1, 1.0], "gamma": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0]}
BANDWIDTHS = (0.03, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 1e4, 1e5, 1e6)
REGRESSIONS: dict[str, Callable[[], Any]] = {
    "loo": NadarayaWatson,
    "loo-each": lambda: NadarayaWatson("loo-each"),
    "line": lambda: LocalLine(),
    "k-NN": lambda: GridSearchCV(KNeighborsRegressor(), NEIGHBOURS, cv=INSIDE),
    "kernel ridge": lambda: GridSearchCV(KernelRidge(kernel="rbf"), RIDGES, cv=INSIDE),
    "Gaussian process": lambda: GaussianProcessRegressor(ConstantKernel() * RBF() + WhiteKernel(), normalize_y=True),
}


class LocalLine(NadarayaWatson):
    """A line around each place; its bandwidth, of the constant's choice times a factor, by cross-validation."""

    def fit(self, X: Any, y: Any) -> Any:
        width = NadarayaWatson().fit(X, y).bandwidth_
        grid = {"bandwidth": [width * f for f in (0.7, 1.0, 1.5, 2.0, 3.0, 5.0)]}
        found = GridSearchCV(NadarayaWatson(linear=True), grid, cv=INSIDE).fit(X, y)
        self.bandwidth, self.linear = found.best_params_["bandwidth"], True
        return super().fit(X, y)


def series(frame: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Time in steps and what was measured, without gaps."""
    values = np.asarray(frame[name], dtype=float)
    known = np.flatnonzero(np.isfinite(values))
    return known[:, None].astype(float), values[known]


def scaled(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: make_pipeline(StandardScaler(), make())


def error(make: Callable[[], Any], x: np.ndarray, y: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Root mean squared error over all folds, in standard deviations."""
    squares = []
    for train, test in folds:
        squares.append((make().fit(x[train], y[train]).predict(x[test]) - y[test]) ** 2)
    return float(np.sqrt(np.concatenate(squares).mean()) / y.std())


def limits(x: np.ndarray, y: np.ndarray) -> None:
    """Errors at the times that were seen, at times left out at random and for the last tenth; bandwidths in steps of time."""
    cut = len(x) * 9 // 10
    left_out = list(KFold(5, shuffle=True, random_state=0).split(x))
    tasks = {
        "seen": [(train, train) for train, _ in left_out],
        "left out": left_out,
        "last tenth": [(np.arange(cut), np.arange(cut, len(x)))],
    }
    ways: dict[str, Callable[[], Any]] = {"nearest": lambda: KNeighborsRegressor(1)}
    for h in BANDWIDTHS:
        ways[f"{h:g}"] = lambda h=h: NadarayaWatson(h)
        ways[f"{h:g}, line"] = lambda h=h: NadarayaWatson(h, linear=True)
    ways |= {"mean": DummyRegressor, "least squares": LinearRegression}
    print(" " * 16 + "".join(f"{task:>12s}" for task in tasks))
    for name, make in ways.items():
        print(f"{name:16s}" + "".join(f"{error(make, x, y, folds):12.4g}" for folds in tasks.values()), flush=True)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    outside = KFold(5, shuffle=True, random_state=0)
    income = engel.load_pandas().data
    sets = {
        "sunspots": series(sunspots.load_pandas().data, "SUNACTIVITY"),
        "co2": series(co2.load_pandas().data, "co2"),
        "engel": (np.asarray(income[["income"]], dtype=float), np.asarray(income["foodexp"], dtype=float)),
        "diabetes": load_diabetes(return_X_y=True),
    }
    print(" " * 28 + "  ".join(f"{name:>16s}" for name in REGRESSIONS))
    for name, (x, y) in sets.items():
        tasks = {name: list(outside.split(x))}
        if name in ("sunspots", "co2"):
            cut = len(x) * 9 // 10
            tasks[f"{name}, the last tenth"] = [(np.arange(cut), np.arange(cut, len(x)))]
        for task, folds in tasks.items():
            row = "  ".join(f"{error(scaled(make), x, y, folds):16.3f}" for make in REGRESSIONS.values())
            print(f"{task:26s}  {row}", flush=True)
    x, y = load_digits(return_X_y=True)
    ways = {"loo": NadarayaWatsonClassifier, "k-NN": lambda: GridSearchCV(KNeighborsClassifier(), NEIGHBOURS, cv=INSIDE)}
    for name, make in ways.items():
        wrong = [make().fit(x[train], y[train]).predict(x[test]) != y[test] for train, test in outside.split(x)]
        print(f"digits, wrong: {name:6s} {np.concatenate(wrong).mean():.2%}", flush=True)
    limits(*sets["co2"])


if __name__ == "__main__":
    main()
