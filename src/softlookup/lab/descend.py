"""The loop of small trainings of one model by one loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def descend(parameters: Iterable[Tensor], loss: Callable[[], Tensor], steps: int, rate: float) -> list[float]:
    """Adam for so many steps, its rate falling in a line to 0; the losses on the way."""
    optimizer, losses = torch.optim.Adam(parameters, rate), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        found = loss()
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        losses.append(found.item())
    return losses
