"""Where else what a watch has seen can go: a callback (Weights & Biases, MLflow, …) or TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .seen import Seen

LARGEST = ("max_logit", "max_weight")
"""Statistics of which a layer's largest is told; of others the mean over its heads."""


def flat(seen: Seen) -> dict[str, float]:
    """One number per layer and statistic, "layers.0.self_attn/entropy": the mean over heads, of `LARGEST` the largest."""
    numbers = {}
    for name, layer in seen.layers.items():
        if layer.count:
            for stat in layer.stats:
                some = layer.counts > 0  # a head that counted nothing says nothing; one that counted NaN does
                of = layer.max(stat)[some].max() if stat in LARGEST else layer.mean(stat)[some].mean()
                numbers[f"{name}/{stat}"] = float(of)
    return numbers


class Callback:
    """Calls a function with a dictionary of numbers (`flat`, your own beside it) and the step.

    Weights & Biases: `record = Callback(lambda numbers, step: wandb.log(numbers, step=step))`.
    """

    def __init__(self, function: Callable[[dict[str, float], int], Any]):
        self._function = function

    def __call__(self, step: int, seen: Seen, **numbers: float) -> None:
        """Hand over what was seen since it was last cleared."""
        self._function({**numbers, **flat(seen)}, step)


class TensorBoard:
    """Scalars for TensorBoard, "attention/<layer>/<statistic>" as in `flat`; with heads=True also one for each head, ".../3".

    writer: a `torch.utils.tensorboard.SummaryWriter`, which is yours to close.
    """

    def __init__(self, writer: Any, heads: bool = False):
        self._writer, self._heads = writer, heads

    def __call__(self, step: int, seen: Seen, **numbers: float) -> None:
        """Write what was seen since it was last cleared, and numbers of your own under their names."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        for name, number in flat(seen).items():
            self._writer.add_scalar(f"attention/{name}", number, step)
        for name, layer in seen.layers.items() if self._heads else ():
            for stat in layer.stats if layer.count else ():
                each = layer.max(stat) if stat in LARGEST else layer.mean(stat)
                for head, number in enumerate(each.tolist()):
                    self._writer.add_scalar(f"attention/{name}/{stat}/{head}", number, step)
