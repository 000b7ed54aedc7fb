"""What a lookup leaves behind whose weights are not a softmax's: a value and statistics, which do not merge.

Weights w of a query need not sum to 1 (`Sigmoid`). Statistics are those of p = w / T with T = sum w, from sums over keys: the
entropy is log T - (sum w log w) / T, sum p^2 is (sum w^2) / T^2, and so on, in differentiable torch. Those of scores
(`max_logit`, `logit_mean`, `logit_var`, `logsumexp`) are what they are for softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .errors import SoftlookupError
from .summary import chosen, mapped

_NEEDS = {
    "argmax": {"argmax"},
    "logsumexp": {"logsumexp"},
    "max_weight": {"max_weight"},
    "expected_logit": {"first"},
    "expected_logit_var": {"spread"},
    "entropy": {"log_weight"},
    "entropy_ratio": {"log_weight"},
    "logit_mean": {"logit_mean"},
    "logit_var": {"logit_var"},
    "collision": {"square"},
    "effective_keys": {"square"},
    "jacobian_trace": {"jacobian_trace"},
    "sink_mass": {"sink_mass"},
    "distance": {"distance"},
    "support": {"support"},
    "threshold": {"threshold"},
    "received": {"received"},
}


def needed(names: Iterable[str]) -> frozenset[str]:
    """The fields of an `Outcome` that an engine must compute for these statistics."""
    return frozenset().union(*(_NEEDS.get(name, set()) for name in names))


@dataclass(frozen=True, eq=False, repr=False)
class Outcome:
    """The weights w of each query by sums over its visible keys (shapes (…, H, L), fields None where nobody asked).

    average: (…, H, L, Ev), sum w v; total: sum w; max_logit, visible: the statistics.
    With t = s - max_logit: log_weight: sum w log w; square: sum w^2; first: sum w t; spread: sum of w (t - mean)^2; sink_mass,
    distance: sums of w over the first keys, and of w |i - j|; received: (…, H, S) sum over queries of w. The others are the
    statistics of these names.
    dtype: of `value`.
    """

    average: Tensor
    total: Tensor
    max_logit: Tensor
    visible: Tensor
    argmax: Tensor | None = None
    logsumexp: Tensor | None = None
    max_weight: Tensor | None = None
    log_weight: Tensor | None = None
    square: Tensor | None = None
    first: Tensor | None = None
    spread: Tensor | None = None
    logit_mean: Tensor | None = None
    logit_var: Tensor | None = None
    jacobian_trace: Tensor | None = None
    sink_mass: Tensor | None = None
    distance: Tensor | None = None
    support: Tensor | None = None
    threshold: Tensor | None = None
    received: Tensor | None = None
    dtype: torch.dtype = torch.float32

    @property
    def value(self) -> Tensor:
        """(…, H, L, Ev) what the lookup returns."""
        return self.average.to(self.dtype)

    def stats(self, name: str) -> Tensor:
        """The statistic of this name."""
        chosen((name,))
        match name:
            case "total_weight":
                return self.total
            case "sink_weight":
                return torch.zeros_like(self.total)
            case "max_weight" | "sink_mass" | "distance":
                return self._share(self._sum(name))
            case "expected_logit":
                return torch.where(self._some, self.max_logit, 0) + self._share(self._sum("first"))
            case "expected_logit_var":
                return self._share(self._sum("spread"))
            case "entropy" | "entropy_ratio":
                total = torch.where(self.total > 0, self.total, 1)
                entropy = total.log() - self._share(self._sum("log_weight"))
                if name == "entropy":
                    return entropy
                return torch.where(self.visible > 1, entropy / self.visible.clamp(min=2).to(entropy.dtype).log(), 0)
            case "collision":
                return self._share(self._share(self._sum("square")))
            case "effective_keys":
                square = self._sum("square")
                return torch.where(square == 0, 0, self.total.square() / torch.where(square == 0, 1, square))
        return self._sum(name)

    @property
    def _some(self) -> Tensor:
        return self.visible > 0

    def _share(self, x: Tensor) -> Tensor:
        """x / T, 0 where all weights are 0."""
        some = ~(self.total <= 0)
        return torch.where(some, x / torch.where(some, self.total, 1), 0)

    def _sum(self, name: str) -> Tensor:
        found = getattr(self, name)
        if found is None:
            raise SoftlookupError(f"{name}: expected to be asked for when the lookup was made, stats=(…, {name!r})")
        return found

    def map(self, function: Callable[[Tensor, int], Tensor]) -> Outcome:
        """With `function(tensor, trailing)` applied to each tensor; trailing is 1 for `average`, else 0."""
        return replace(self, **mapped(self, function))

    def shifted(self, shift: Tensor) -> Outcome:
        """With a constant of each query added to its logits."""
        constant = torch.where(self._some, shift, 0)
        still = constant.detach()
        gradient = constant - still  # 0: carries the gradient where the maximum, a constant to autograd, cannot
        changed: dict[str, Any] = {name: getattr(self, name) for name in ("logit_mean", "logsumexp", "threshold")}
        return replace(
            self,
            max_logit=self.max_logit + still,
            first=None if self.first is None else self.first + self.total * gradient,
            **{name: x + constant for name, x in changed.items() if x is not None},
        )
