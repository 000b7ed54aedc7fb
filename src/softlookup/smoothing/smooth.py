"""The smoother itself: a lookup whose keys are the places of observations and whose values are what was observed there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..masks import Mask
from ..normalizers import Softmax
from ..operator import attend
from ..scores import Gaussian, Score


@dataclass(frozen=True, eq=False)
class Smoothed:
    """Of n places: mean (n, m), E_p[y]; variance (n, m), of y around it under p; effective_samples (n,), 1 / sum p^2; log_sum
    (n,), the logarithm of the sum of all kernel values, for a Gaussian kernel a density but for a constant.

    The mean's own variance, noise being independent and alike nearby, is `variance / effective_samples`.
    """

    mean: Tensor
    variance: Tensor
    effective_samples: Tensor
    log_sum: Tensor


def smooth(
    places: Tensor,
    observed: Tensor,
    values: Tensor,
    score: Score | None = None,
    *,
    temperature: float | Tensor = 1.0,
    linear: bool = False,
    mask: Mask | None = None,
) -> Smoothed:
    """Averages of `values` (S, m), observed at `observed` (S, d), at `places` (n, d), weighted by softmax(score / temperature)
    (Nadaraya 1964, Watson 1964). Differentiable in all of them.

    Args:
        score: of a place and an observation, `Gaussian(1.0)` by default.
        temperature: a float or (n,): for a Gaussian a width h
            is a temperature h^2.
        linear: fit a line instead of a constant around each place, by least squares under the same weights (Cleveland 1979);
            then the mean is what the line says there, and the variance is still that around the average.
        mask: which observations count for which place.
    """
    if places.ndim != 2 or observed.ndim != 2 or values.ndim != 2 or len(values) != len(observed):
        got = ", ".join(str(tuple(x.shape)) for x in (places, observed, values))
        raise SoftlookupError(f"smooth: expected places (n, d), observed (S, d) and values (S, m), got {got}")
    centre, width = values.detach().mean(0), values.shape[1]
    if linear:
        # Moments are of differences from one point: far from 0 their squares would lose digits.
        origin = observed.detach().mean(0)
        places, observed = places - origin, observed - origin
    y = values - centre
    columns = [y, y.square()]
    if linear:
        first, second = torch.triu_indices(observed.shape[1], observed.shape[1], device=observed.device)
        columns += [observed, observed[:, first] * observed[:, second]]
        columns += [(observed[:, :, None] * y[:, None]).flatten(1)]
    if isinstance(temperature, Tensor) and temperature.ndim:
        temperature = temperature.view(1, 1, -1)
    moments, stats = attend(
        places[None],
        observed[None],
        torch.cat(columns, 1)[None],
        score=Gaussian() if score is None else score,
        normalizer=Softmax(temperature),
        mask=mask,
        stats=("effective_keys", "logsumexp"),
    )
    mean, square, *rest = moments[0].split([c.shape[1] for c in columns], 1)
    variance = (square - mean.square()).clamp(min=0)
    if linear:
        mean = mean + _slope(rest[0], rest[1], rest[2].unflatten(1, (-1, width)), mean, places)
    return Smoothed(mean + centre, variance, stats.effective_keys[0], stats.logsumexp[0])


def _slope(x: Tensor, upper: Tensor, xy: Tensor, y: Tensor, places: Tensor) -> Tensor:
    """(n, m) what a line through the weighted means adds at the places. x (n, d), upper (n, d (d + 1) / 2), xy (n, d, m) and
    y (n, m): weighted means of the observations and their products."""
    d = x.shape[1]
    first, second = torch.triu_indices(d, d, device=x.device)
    products = x.new_zeros(len(x), d, d)
    products[:, first, second] = upper
    products = products + products.triu(1).mT
    spread = products - x[:, :, None] * x[:, None]
    # Where observations lie along fewer directions than there are, or a single one counts, the line is level in the others: a
    # spread below the rounding of its difference says nothing.
    ridge = products.diagonal(dim1=1, dim2=2).sum(1).clamp(min=torch.finfo(x.dtype).tiny**0.5) * (30 * torch.finfo(x.dtype).eps)
    level = ridge[:, None, None] * torch.eye(d, dtype=x.dtype, device=x.device)
    slopes = torch.linalg.solve(spread + level, xy - x[:, :, None] * y[:, None])
    return ((places - x)[:, None] @ slopes)[:, 0]
