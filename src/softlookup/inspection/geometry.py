"""The geometry of a model's heads: what its weights alone say of every head, with the heads that stand out named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.text import Text
from torch import Tensor, nn

from ..files import write_text
from ..geometry import MEANINGS, Measure, likeness, measure
from ..integrations.projections import Projections, projections
from .flow import INDENT, Flow, words
from .terminal import heads_listed
from .writing import check_target, finite

THRESHOLDS: dict[str, float] = {
    # Three quarters of |W_Q W_K^T|^2 are symmetric; random weights have half, within 1/d.
    "symmetric": 0.75,
    # Nine tenths of the eigenvalues' size point the same way: what is read comes out again.
    "copying": 0.9,
    # An eighth of the head's width asks all the questions.
    "rank_starved": 1 / 8,
    # Cosine of two heads' W_Q W_K^T; random ones have 0, within 1/d.
    "duplicate": 0.5,
}


@dataclass(frozen=True, eq=False)
class LayerGeometry:
    """One layer: its measures, each (H,), and the cosines between its heads, (H, H), "attends" and "moves"."""

    path: str
    measures: dict[str, Measure]
    likeness: dict[str, Tensor]


@dataclass(frozen=True)
class Standing:
    """Heads that pass a threshold, as (label, value), the most extreme first."""

    title: str
    singular: str
    criterion: str
    meaning: str
    heads: tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class ModelGeometry:
    """All layers of a model; `width` of a head; distance: of rotary positions, None where the model has none."""

    model: str
    layers: tuple[LayerGeometry, ...]
    width: int
    distance: float | None

    @classmethod
    def of(
        cls, network: nn.Module, model: str, distance: float = 0.0, say: Callable[[str, float | None], None] = lambda *_: None
    ) -> ModelGeometry:
        """Read a model's weights. distance: how many positions a key lies before its query, for rotary positions."""
        found = projections(network)
        layers = []
        for number, each in enumerate(found):
            say("reading weights", number / len(found))
            weights = each.weights if each.frequencies is None else each.weights.at_distance(distance, each.frequencies)
            layers.append(LayerGeometry(each.path, measure(weights), likeness(weights)))
        turns = any(each.frequencies is not None for each in found)
        return cls(model, tuple(layers), _width(found), distance if turns else None)

    def all(self, name: str) -> tuple[Tensor, Tensor]:
        """A measure of all heads, layer by layer, and its chance levels."""
        return tuple(torch.cat([getattr(x.measures[name], part) for x in self.layers]) for part in ("value", "chance"))  # type: ignore[return-value]

    @property
    def labels(self) -> list[str]:
        """layer.head of every head, in the order of `all`."""
        return [f"{n}.{h}" for n, layer in enumerate(self.layers) for h in range(len(layer.measures["rank"].value))]

    @property
    def standing(self) -> list[Standing]:
        """The heads that stand out, kind by kind."""
        return [each for each in _standing(self) if each.heads]

    def save_json(self, path: str | Path) -> None:
        """Every number: per layer its path, per measure values and chance levels by head, and cosines between heads. Whole
        or not at all, and never over a file that is not softlookup's."""
        write_text(check_target(path, "save_json"), json.dumps(finite(self.as_dict()), allow_nan=False))

    def as_dict(self) -> dict[str, Any]:
        return {
            "generator": "softlookup",
            "model": self.model,
            "head_width": self.width,
            "distance": self.distance,
            "measures": {name: {"title": x.title, "meaning": x.sentence} for name, x in MEANINGS.items()},
            "layers": [
                {
                    "path": layer.path,
                    **{n: {"value": x.value.tolist(), "chance": x.chance.tolist()} for n, x in layer.measures.items()},
                    "likeness": {name: x.tolist() for name, x in layer.likeness.items()},
                }
                for layer in self.layers
            ],
        }


def _width(found: list[Projections]) -> int:
    return found[0].weights.query.shape[2]


def _standing(geometry: ModelGeometry) -> Iterator[Standing]:
    labels = geometry.labels
    symmetric, copying, duplicate = (THRESHOLDS[name] for name in ("symmetric", "copying", "duplicate"))
    starved = THRESHOLDS["rank_starved"] * geometry.width

    def above(values: Tensor, limit: float) -> tuple[tuple[str, float], ...]:
        order = values.argsort(descending=True).tolist()
        return tuple((labels[k], float(values[k])) for k in order if values[k] > limit)

    yield Standing(
        "symmetric heads",
        "symmetric head",
        f"symmetric share > {symmetric:g}, chance 0.5",
        "They match like with like: a pair scores the same in both orders, before positions and masks have their say.",
        above(geometry.all("symmetric_share")[0], symmetric),
    )
    yield Standing(
        "copying heads",
        "copying head",
        f"copying > {copying:g}, chance 0",
        "What they read they write again in the same direction; with a head that finds earlier copies of a token, induction.",
        above(geometry.all("copying")[0], copying),
    )
    yield Standing(
        "rank-starved heads",
        "rank-starved head",
        f"effective rank < {starved:g} of {geometry.width}",
        "A few directions decide all scores: the rest of their width is paid for and hardly used.",
        tuple((label, -value) for label, value in above(-geometry.all("rank")[0], -starved)),
    )
    yield Standing(
        "duplicate pairs of heads",
        "duplicate pair of heads",
        f"cosine of W_Q W_K^T > {duplicate:g}, chance 0",
        "Two heads of a layer ask the same question; one of them may be pruned or merged.",
        _pairs(geometry, duplicate),
    )


def _pairs(geometry: ModelGeometry, limit: float) -> tuple[tuple[str, float], ...]:
    found = []
    for n, layer in enumerate(geometry.layers):
        cosines = layer.likeness["attends"].triu(1)
        found += [(f"{n}.{a}={n}.{b}", float(cosines[a, b])) for a, b in (cosines > limit).nonzero().tolist()]
    return tuple(sorted(found, key=lambda pair: -pair[1]))


def screen(geometry: ModelGeometry) -> RenderableType:
    """What the terminal shows: the heads that stand out, then every measure over all heads beside chance."""
    heads = len(geometry.labels)
    about = "" if geometry.distance is None else f", rotary positions as at distance {geometry.distance:g}"
    title = words(
        (geometry.model, "bold"), f"  {len(geometry.layers)} layers, {heads:,} heads of width {geometry.width}{about}"
    )
    parts: list[RenderableType] = [Flow(title), Text()]
    for each in geometry.standing:
        count = f"{len(each.heads)} {each.title if len(each.heads) > 1 else each.singular}"
        parts.append(Flow(words((count, "bold"), (f"  {each.criterion}", "dim")), Text("• ", "bold cyan")))
        parts += [heads_listed(each.heads), Flow(words((each.meaning, "dim")), " " * INDENT), Text()]
    parts.append(Text(f"{'measure':20s} {'chance':>7s} {'5 %':>7s} {'median':>7s} {'95 %':>7s}  least     most", "bold"))
    for name, meaning in MEANINGS.items():
        value, chance = geometry.all(name)
        low, middle, high = value.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=value.dtype)).tolist()
        least, most = (geometry.labels[int(k)] for k in (value.argmin(), value.argmax()))
        numbers = " ".join(f"{x:7.3g}" for x in (float(chance.mean()), low, middle, high))
        parts += [
            Text(f"{meaning.title:20s} {numbers}  {least:8s}  {most}"),
            Flow(words((meaning.sentence, "dim")), " " * INDENT),
        ]
    return Group(*parts)
