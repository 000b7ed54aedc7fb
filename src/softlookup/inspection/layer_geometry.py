"""What the weights of one attention layer say, and reading them out of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..geometry import Measure, joint_rank, likeness, measure, spread_of
from ..integrations.projections import Projections, projections
from .heads import Layer


@dataclass(frozen=True, eq=False)
class LayerGeometry:
    """One layer: its measures, each (H,), and the cosines between its heads, (H, H), "attends" and "moves"; width: of a head.
    joint_rank: in how many directions all heads together write, and the most that it could be. read: the measures weighted by
    what the layer really read, None where that is not known.
    """

    path: str
    width: int
    measures: dict[str, Measure]
    likeness: dict[str, Tensor]
    joint_rank: tuple[int, int]
    read: dict[str, Measure] | None = None

    @classmethod
    def of(cls, layer: Projections, distance: float = 0.0) -> LayerGeometry:
        """distance: how many positions a key lies before its query, where positions are rotary."""
        weights = layer.at_distance(distance)
        return cls(layer.path, weights.query.shape[2], measure(weights), likeness(weights), joint_rank(weights))

    @property
    def heads(self) -> int:
        return len(self.likeness["attends"])

    def values(self, name: str) -> Tensor | None:
        """(H,) of a measure."""
        return self.measures[name].value if name in self.measures else None

    def head(self, number: int) -> dict[str, float]:
        """The numbers of one head, its `width`, and its `likeness` to the head of its layer that is most alike."""
        numbers = {name: float(each.value[number]) for name, each in self.measures.items()}
        return numbers | {"width": float(self.width), "likeness": self.most_alike(number)[1]}

    def most_alike(self, number: int) -> tuple[int, float]:
        """Another head and its cosine, of W_Q W_K^T; (number, 0) where the layer has no other."""
        cosines = self.likeness["attends"][number].clone()
        cosines[number] = -torch.inf
        other = int(cosines.argmax())
        return (number, 0.0) if self.heads == 1 else (other, float(cosines[other]))


class Weights:
    """The projections of those layers of a model that an inspection has seen. notes: what was not read, and why."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]):
        self.notes: list[str] = []
        self._of: dict[int, Projections] = {}
        try:
            known = {each.path: each for each in projections(model)}
        except UnsupportedError as error:
            self.notes.append(f"the weights were not read: {error}")
            return
        for layer in layers:
            each = known.get(layer.path)
            if each is not None and each.weights.heads == layer.heads:
                self._of[layer.index] = each
        missing = len(layers) - len(self._of)
        if missing:
            self.notes.append(f"the weights of {missing} of {len(layers)} layers were not read")

    def read(self, layers: list[Layer]) -> list[Layer]:
        """The layers with their geometry."""
        return [replace(x, geometry=LayerGeometry.of(self._of[x.index])) if x.index in self._of else x for x in layers]

    @contextmanager
    def inputs(self, layers: Sequence[Layer]) -> Iterator[dict[int, Tensor]]:
        """Within, what the layers are called with is kept, as `spread_of` has it, by index; not that of cross attention, whose
        queries and keys read two sequences."""
        found: dict[int, Tensor] = {}

        def keep(index: int) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
                if args and isinstance(args[0], Tensor):
                    found[index] = spread_of(args[0].flatten(0, -2))

            return hook

        followed = [(x.index, self._of[x.index].reader) for x in layers if x.index in self._of and not x.cross]
        handles = [reader.register_forward_pre_hook(keep(index)) for index, reader in followed]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def weighted(
        self, layers: list[Layer], inputs: Mapping[int, Tensor], say: Callable[[str, float | None], None]
    ) -> list[Layer]:
        """The layers with their geometry weighted by what they read."""
        found = []
        for number, layer in enumerate(layers):
            say("weighing what layers read", number / len(layers))
            if layer.geometry is not None and layer.index in inputs:
                read = measure(self._of[layer.index].weights, spread=inputs[layer.index])
                layer = replace(layer, geometry=replace(layer.geometry, read=read))
            found.append(layer)
        return found
