"""A metric that is learned: along which directions, and how far, two places count as close."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SoftlookupError
from .leave_one_out import extent, leave_one_out, search


def learned_metric(observed: Tensor, values: Tensor, directions: int, steps: int = 200) -> tuple[Tensor, float]:
    """A map L (d, r) to `directions` dimensions, such that a Gaussian kernel of width 1 on observed @ L has a small
    leave-one-out error (a Mahalanobis distance of rank r; Weinberger & Tesauro 2007, "Metric Learning for Kernel Regression"),
    and that error. From an isotropic kernel a metric of all directions is learned, of which the strongest are kept and learned
    again: from few directions at once the way often ends early.

    observed: (S, d); values: (S, m). Each of the 2 `steps` takes time O(S^2).
    """
    width = observed.shape[1]
    if not 1 <= directions <= width:
        raise SoftlookupError(f"learned_metric: expected directions from 1 to {width}, got {directions}")
    with torch.no_grad():
        h, _ = search(observed, values, extent(observed) * 1e-2, extent(observed) * 10)
    whole, error = _descend(observed, values, torch.eye(width, dtype=observed.dtype) / h, steps)
    if directions == width:
        return whole, error
    axes, lengths, _ = torch.linalg.svd(whole)
    return _descend(observed, values, axes[:, :directions] * lengths[:directions], steps)


def _descend(observed: Tensor, values: Tensor, start: Tensor, steps: int) -> tuple[Tensor, float]:
    """The best metric on the way of Adam from `start`, and its error."""
    metric, one = start.clone().requires_grad_(), torch.ones(1, dtype=observed.dtype)
    optimizer = torch.optim.Adam([metric], lr=0.05 * float(start.norm(dim=0).mean()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, least = start, float("inf")
    for _ in range(steps):
        optimizer.zero_grad()
        error = leave_one_out(observed @ metric, values, one)[0]
        if error.item() < least:
            best, least = metric.detach().clone(), error.item()
        error.backward()
        optimizer.step()
        schedule.step()
    return best, least
