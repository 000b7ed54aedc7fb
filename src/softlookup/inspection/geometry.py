"""The geometry of a model's heads: what its weights alone say of every head, with the heads that stand out named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.text import Text
from torch import Tensor, nn

from ..files import write_text
from ..geometry import MEANINGS
from ..integrations.projections import projections
from .circuits import Composition, TokenPair, strongest, token_pairs
from .findings import Finding, find, grouped
from .flow import INDENT, Flow, words
from .heads import Head
from .layer_geometry import LayerGeometry
from .terminal import finding, heads_listed
from .writing import check_target, finite


@dataclass(frozen=True, eq=False)
class ModelGeometry:
    """All layers of a model; distance: of rotary positions, None where the model has none; compositions: the strongest, each
    beside `composition_chance`; pairs: of every head the tokens of its strongest pair, None where there is no tokenizer.
    """

    model: str
    layers: tuple[LayerGeometry, ...]
    distance: float | None
    compositions: tuple[Composition, ...] = ()
    composition_chance: float = 0.0
    pairs: list[list[TokenPair]] | None = None

    @classmethod
    def of(
        cls,
        network: nn.Module,
        model: str,
        distance: float = 0.0,
        say: Callable[[str, float | None], None] = lambda *_: None,
        tokenizer: Any = None,
    ) -> ModelGeometry:
        """Read a model's weights. distance: how many positions a key lies before its query, for rotary positions."""
        found = projections(network)
        layers = []
        for number, each in enumerate(found):
            say("reading weights", number / len(found))
            layers.append(LayerGeometry.of(each, distance=distance))
        weights = [each.at_distance(distance) for each in found]
        composed: tuple[Composition, ...] = ()
        two = getattr(getattr(network, "config", None), "is_encoder_decoder", False)
        if len({x.query.shape[1] for x in weights}) == 1 and not two:  # else they do not write to one stream
            composed = strongest(weights, lambda share: say("compositions", share))
        say("tokens", None)
        return cls(
            model,
            tuple(layers),
            distance if any(each.rotary is not None for each in found) else None,
            composed,
            weights[0].query.shape[1] ** -0.5,
            token_pairs(weights, network, tokenizer),
        )

    @property
    def width(self) -> int:
        """Of a head."""
        return self.layers[0].width

    def all(self, name: str) -> tuple[Tensor, Tensor]:
        """A measure of all heads, layer by layer, and its chance levels."""
        return tuple(torch.cat([getattr(x.measures[name], part) for x in self.layers]) for part in ("value", "chance"))  # type: ignore[return-value]

    @property
    def labels(self) -> list[str]:
        """layer.head of every head, in the order of `all`."""
        return [head.label for head in self.heads]

    @property
    def heads(self) -> list[Head]:
        """Every head, layer by layer."""
        return [
            Head(number, head, layer.path, {}, None, weights=layer.head(head))
            for number, layer in enumerate(self.layers)
            for head in range(layer.heads)
        ]

    @cached_property
    def findings(self) -> list[Finding]:
        """The heads that stand out, kind by kind."""
        return find(self.heads)

    def save_json(self, path: str | Path) -> None:
        """Every number: per layer its path, per measure values and chance levels by head, and cosines between heads. Whole
        or not at all, and never over a file that is not softlookup's."""
        write_text(check_target(path, "save_json"), json.dumps(finite(self.as_dict()), allow_nan=False))

    def to_html(self) -> str:
        """The report: one page that needs no network."""
        from .report.of_geometry import page

        return page(self)

    def save_html(self, path: str | Path) -> None:
        """Write the report, whole or not at all, and never over a file that is not softlookup's."""
        write_text(check_target(path, "save_html"), self.to_html())

    def as_dict(self) -> dict[str, Any]:
        return {
            "generator": "softlookup",
            "model": self.model,
            "head_width": self.width,
            "distance": self.distance,
            "measures": {name: {"title": x.title, "meaning": x.sentence} for name, x in MEANINGS.items()},
            "compositions": {"chance": self.composition_chance, "strongest": [asdict(x) for x in self.compositions]},
            "layers": [
                {
                    "path": layer.path,
                    **{n: {"value": x.value.tolist(), "chance": x.chance.tolist()} for n, x in layer.measures.items()},
                    "joint_rank": layer.joint_rank,
                    "likeness": {name: x.tolist() for name, x in layer.likeness.items()},
                    "strongest_pairs": None if self.pairs is None else [asdict(x) for x in self.pairs[number]],
                }
                for number, layer in enumerate(self.layers)
            ],
        }


def screen(geometry: ModelGeometry) -> RenderableType:
    """What the terminal shows: the heads that stand out, then every measure over all heads beside chance."""
    heads = len(geometry.labels)
    about = "" if geometry.distance is None else f", rotary positions as at distance {geometry.distance:g}"
    title = words(
        (geometry.model, "bold"), f"  {len(geometry.layers)} layers, {heads:,} heads of width {geometry.width}{about}"
    )
    parts: list[RenderableType] = [Flow(title), Text()]
    for group in grouped(geometry.findings):
        parts += [*finding(group), Text()]
    parts.append(Text(f"{'measure':20s} {'chance':>7s} {'5 %':>7s} {'median':>7s} {'95 %':>7s}  least     most", "bold"))
    for name, meaning in MEANINGS.items():
        value, chance = geometry.all(name)
        low, middle, high = value.nanquantile(torch.tensor([0.05, 0.5, 0.95], dtype=value.dtype)).tolist()
        least, most = (geometry.labels[int(x.argmax())] for x in (-value.nan_to_num(torch.inf), value.nan_to_num(-torch.inf)))
        numbers = " ".join(f"{x:7.3g}" for x in (float(chance.nanmean()), low, middle, high))
        parts += [
            Text(f"{meaning.title:20s} {numbers}  {least:8s}  {most}"),
            Flow(words((meaning.sentence, "dim")), " " * INDENT),
        ]
    parts += [Text(), Flow(words(_together(geometry)))]
    if geometry.compositions:
        parts += [Text(), *_composed(geometry)]
    return Group(*parts)


def _together(geometry: ModelGeometry) -> str:
    """In how many directions the heads of a layer write together."""
    short = [(n, *x.joint_rank) for n, x in enumerate(geometry.layers) if x.joint_rank[0] < x.joint_rank[1]]
    if not short:
        return "Together, the heads of every layer write in as many directions as they have columns."
    number, rank, most = min(short, key=lambda x: x[1] / x[2])
    layers = "1 layer" if len(short) == 1 else f"{len(short)} layers"
    return f"In {layers} heads write to common directions; least in layer {number}: {rank} of {most} directions."


def _composed(geometry: ModelGeometry) -> Iterator[RenderableType]:
    """The strongest compositions of each kind."""
    title = words(("strongest compositions between layers", "bold"), (f"  chance {geometry.composition_chance:.2g}", "dim"))
    yield Flow(title)
    for kind in dict.fromkeys(x.kind for x in geometry.compositions):
        some = [(f"{x.earlier}→{x.later}", x.strength) for x in geometry.compositions if x.kind == kind]
        yield Flow(words(f"{COMPOSED[kind]}:"), " " * INDENT)
        yield heads_listed(some)
    meaning = "What an earlier head writes, a later one reads: cosine-like, |W_OV W| / (|W_OV| |W|) (Elhage et al. 2021)."
    yield Flow(words((meaning, "dim")), " " * INDENT)


COMPOSED = {"query": "into queries", "key": "into keys (induction heads read so)", "value": "into values"}
