"""scikit-learn estimators."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ..scores import Gaussian, Score
from .leave_one_out import descend, extent, search
from .metric import learned_metric
from .smooth import Smoothed, smooth

BLOCK = 8192
"""Places at a time, as the moments of a local line are many numbers for each."""


class _Smoother(BaseEstimator):
    """What regression and classification share."""

    def __init__(
        self,
        bandwidth: float | ArrayLike | Literal["loo", "loo-each"] = "loo",
        kernel: Score | None = None,
        linear: bool = False,
        neighbors: int | None = None,
        directions: int | None = None,
        dtype: str = "float64",
    ):
        self.bandwidth = bandwidth
        self.kernel = kernel
        self.linear = linear
        self.neighbors = neighbors
        self.directions = directions
        self.dtype = dtype

    def _fit(self, x: np.ndarray, y: np.ndarray) -> None:
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"dtype: expected 'float64' or 'float32', got {self.dtype!r}")
        if not isinstance(self.kernel, Score | None):
            raise ValueError(f"kernel: expected a softlookup Score or None for a Gaussian, got {self.kernel!r}")
        self._places = torch.tensor(x, dtype=getattr(torch, self.dtype))
        self._values = torch.tensor(y, dtype=getattr(torch, self.dtype))
        if self.directions is not None:
            if (self.bandwidth, self.kernel, self.neighbors) != ("loo", None, None):
                raise ValueError("directions: expected bandwidth='loo' and no kernel or neighbors, as lengths are learned too")
            self.metric_, self.loo_error_ = learned_metric(self._places, self._values, self.directions)
            self._places = self._places @ self.metric_
            self.bandwidth_: float | np.ndarray = 1.0
            return
        if self.neighbors is not None:
            self._nearest = NearestNeighbors(n_neighbors=min(self.neighbors, len(x))).fit(x)
        self.bandwidth_ = self._chosen()

    def _chosen(self) -> float | np.ndarray:
        bandwidth, places = self.bandwidth, self._places
        if isinstance(bandwidth, str):
            if bandwidth not in ("loo", "loo-each"):
                raise ValueError(f"bandwidth: expected a number, one per feature, 'loo' or 'loo-each', got {bandwidth!r}")
            if self.kernel is not None or self.neighbors is not None:
                raise ValueError("bandwidth: expected a number with a kernel of one's own or neighbors, got " + repr(bandwidth))
            return self._searched(bandwidth == "loo-each")
        widths = np.asarray(bandwidth, dtype=float)
        if widths.shape not in ((), (places.shape[1],)) or not bool((np.isfinite(widths) & (widths > 0)).all()):
            want = f"a finite number > 0, or {places.shape[1]} of them"
            raise ValueError(f"bandwidth: expected {want}, got {bandwidth!r}")
        if widths.ndim and (self.kernel is not None or self.neighbors is not None):
            raise ValueError("bandwidth: expected one number with a kernel of one's own or neighbors, got one per feature")
        return float(widths) if widths.ndim == 0 else widths

    def _searched(self, each: bool) -> float | np.ndarray:
        """By leave-one-out error; 1 where there is nothing to choose by."""
        places = self._places
        whole = extent(places)
        if whole == 0:
            return 1.0
        best, self.loo_error_ = search(places, self._values, whole * 1e-3, whole * 10)
        if not each:
            return best
        widths, self.loo_error_ = descend(places, self._values, torch.full((places.shape[1],), best, dtype=places.dtype))
        return widths.numpy()

    def _smoothed(self, x: ArrayLike) -> Smoothed:
        check_is_fitted(self)
        places: Any = validate_data(self, x, reset=False)
        parts = [self._of(places[n : n + BLOCK]) for n in range(0, len(places), BLOCK)]
        return Smoothed(*(torch.cat([getattr(p, name) for p in parts]) for name in Smoothed.__dataclass_fields__))

    def _of(self, x: np.ndarray) -> Smoothed:
        places, score, temperature = torch.tensor(x, dtype=self._places.dtype), self.kernel, 1.0
        widths: Any = self.bandwidth_
        if self.directions is not None:
            places = places @ self.metric_
        if self.neighbors is not None:
            reach = torch.as_tensor(self._nearest.kneighbors(x)[0][:, -1], dtype=places.dtype)
            temperature = (widths * reach).clamp(min=torch.finfo(places.dtype).tiny ** 0.25).square()
        elif score is not None:
            temperature = widths**2
        else:
            score = Gaussian(widths if isinstance(widths, float) else torch.as_tensor(widths, dtype=places.dtype)[None])
        with torch.no_grad():
            return smooth(places, self._places, self._values, score, temperature=temperature, linear=self.linear)


class NadarayaWatson(MultiOutputMixin, RegressorMixin, _Smoother):
    """Kernel regression: the average of what was observed, weighted by closeness (Nadaraya 1964, Watson 1964); exact, in one
    pass with memory O(n), as attention computes it.

    Args:
        bandwidth: h of a Gaussian kernel exp(-|x - x_i|^2 / 2 h^2), a number or one per feature; "loo": with the least
            leave-one-out error, "loo-each": one per feature, by descent from there.
        kernel: another, exp(score / h^2), of any `Score`, as `Bilinear(W)`; its parameters are not learned here.
        linear: fit a line around each place instead of a constant, which does not flatten at the borders (Cleveland 1979).
        neighbors: k, for widths that follow the density: bandwidth times the distance to the k-th nearest observation.
        directions: r, to learn a metric of that rank with bandwidth="loo": along which directions, and how far, places count as
            close (`learned_metric`). With many features for the observations its leave-one-out error is too good.
        dtype: "float64", or "float32", which is several times as fast on a CPU.

    Attributes:
        bandwidth_: that in use.
        loo_error_: its leave-one-out error, where it was sought.
        metric_: (d, r) tensor that was learned.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> NadarayaWatson:
        """Keep the observations, X (S, d) and y (S,) or (S, m), and choose a bandwidth."""
        x, values = validate_data(self, X, y, multi_output=True, y_numeric=True)
        self._single = values.ndim == 1
        self._fit(x, values[:, None] if self._single else values)
        return self

    def predict(self, X: ArrayLike, return_std: bool = False) -> Any:
        """The mean at each place, (n,) or (n, m); with return_std also its standard error, the spread of what was
        observed nearby over the root of how many observations that is, from the same pass."""
        found = self._smoothed(X)
        mean = self._shaped(found.mean)
        if not return_std:
            return mean
        return mean, self._shaped((found.variance / found.effective_samples[:, None]).sqrt())

    def effective_samples(self, X: ArrayLike) -> np.ndarray:
        """(n,) on how many observations each mean rests, 1 / sum p^2."""
        return self._smoothed(X).effective_samples.double().numpy()

    def _shaped(self, x: Tensor) -> np.ndarray:
        return (x[:, 0] if self._single else x).double().numpy()


class NadarayaWatsonClassifier(ClassifierMixin, _Smoother):
    """Kernel classification: the probability of a class is the weight of its observations. Arguments as `NadarayaWatson`'s."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> NadarayaWatsonClassifier:
        """Keep the observations, X (S, d) and y (S,) of any labels, and choose a bandwidth."""
        x, labels = validate_data(self, X, y)
        check_classification_targets(labels)
        self.classes_, index = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier can't train when only one class is present, got {self.classes_[0]!r}")
        self._fit(x, np.eye(len(self.classes_))[index])
        return self

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """(n, classes), rows add up to 1."""
        shares = self._smoothed(X).mean.clamp(min=0)
        return (shares / shares.sum(1, keepdim=True)).double().numpy()

    def predict(self, X: ArrayLike) -> np.ndarray:
        """(n,) the likeliest class of each."""
        shares = self.predict_proba(X)
        return self.classes_[shares.argmax(1)]
