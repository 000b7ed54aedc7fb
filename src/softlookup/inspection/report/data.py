"""What the page's script reads: plain JSON with the long arrays packed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..findings import KINDS
from ..statistics import STATISTICS, statistic
from .pack import packed, packed_keys, rounded

if TYPE_CHECKING:
    from ...geometry import Measure
    from ..findings import Finding
    from ..inspection import Inspection
    from ..layer_geometry import LayerGeometry
    from ..token_view import TokenView

CURVE_BUDGET = 2_000_000
"""Points of all entropy curves together (2 bytes each): beyond it curves get coarser, so that a model with 5,000
heads has a page too."""

VIEW_BUDGET = 1_200_000
"""(query, key) pairs of all token views together (4 bytes each); beyond it fewer keys per query are shown."""


class Valued(Protocol):
    """A layer with a number per head for each name."""

    @property
    def heads(self) -> int: ...
    def values(self, name: str) -> Tensor | None: ...


def script_json(value: Any) -> str:
    """JSON that is safe inside <script>: no character that could end the element or a line of script."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page_data(inspection: Inspection) -> dict[str, Any]:
    layers = inspection.layers
    heads = sum(layer.heads for layer in layers)
    step = max(1, -(-heads * max((len(layer.positions) for layer in layers), default=0) // CURVE_BUDGET))
    axes: list[dict[str, Any]] = []
    return {
        "tokens": inspection.tokens,
        "stats": [stat_data(layers, name, "text") for name in _ordered(inspection.stats)]
        + [stat_data(layers, name, "weights") for name in inspection.measures],
        "values": values_data(layers, inspection.stats + inspection.measures),
        "layers": [
            {
                "path": layer.path,
                "cross": layer.cross,
                "causal": layer.causal,
                "heads": layer.heads,
                "axis": _shared(axes, layer.positions[::step], layer.bound[::step]),
                "entropy": packed(layer.entropy[:, ::step]),
                "histogram": _histogram(inspection, layer.index),
                "geometry": None if layer.geometry is None else geometry_data(layer.geometry),
            }
            for layer in layers
        ],
        "axes": axes,
        "rowsPerPoint": step
        * max((-(-layer.length // len(layer.positions)) for layer in layers if layer.length), default=1),
        "kinds": kinds_data(),
        "findings": findings_data(inspection.findings),
        "views": [_view(view, keys_shown(inspection.views)) for view in inspection.views],
    }


def values_data(layers: Sequence[Valued], names: Sequence[str]) -> dict[str, Any]:
    return {name: [_values(layer.values(name), layer.heads) for layer in layers] for name in names}


def kinds_data() -> dict[str, Any]:
    return {
        kind.name: {
            "tag": kind.tag,
            "singular": kind.singular,
            "quantity": kind.quantity,
            "above": kind.above,
            "tone": kind.tone,
            "tab": "weights" if kind.of_weights else "text",
            "words": kind.words(causal=False),
            "wordsIfCausal": kind.words(causal=True),
        }
        for kind in KINDS.values()
    }


def findings_data(findings: Sequence[Finding]) -> list[list[Any]]:
    return [[x.kind, x.layer, x.head, rounded(x.value), rounded(x.threshold)] for x in findings]


def geometry_data(layer: LayerGeometry) -> dict[str, Any]:
    """Beside the measures themselves, which are values of the map: their chance levels, what they are weighted by what the
    layer read, and the heads that are most alike."""

    def of(measures: Mapping[str, Measure]) -> dict[str, Any]:
        return {name: [rounded(x, 3) for x in each.value.tolist()] for name, each in measures.items()}

    def chance(measures: Mapping[str, Measure]) -> dict[str, Any]:
        return {name: rounded(float(each.chance.mean()), 3) for name, each in measures.items()}

    weighted = None if layer.read is None else {"values": of(layer.read), "chance": chance(layer.read)}
    alike = [(other, rounded(cosine, 3)) for other, cosine in map(layer.most_alike, range(layer.heads))]
    return {"chance": chance(layer.measures), "weighted": weighted, "alike": alike}


def keys_shown(views: list[TokenView]) -> int:
    """Keys per query that the page has room for."""
    queries = sum(len(view.keys) for view in views)
    available = max((view.keys.shape[1] for view in views), default=0)
    return min(available, max(1, VIEW_BUDGET // max(queries, 1)))


def _ordered(names: list[str]) -> list[str]:
    """Known statistics in the order in which ``STATISTICS`` tells them, others after them."""
    return [name for name in STATISTICS if name in names] + [name for name in names if name not in STATISTICS]


def stat_data(layers: Sequence[Valued], name: str, tab: str) -> dict[str, Any]:
    """tab: "text" for what heads did with it, "weights" for what they are made to do."""
    known = statistic(name, [name])
    return {
        "name": name,
        "tab": tab,
        "label": known.label,
        "help": known.help,
        "domain": known.domain,
        "scale": known.scale,
        "mapped": _differs(layers, name),
    }


def _differs(layers: Sequence[Valued], name: str) -> bool:
    """False where every head has the same value, as the page rounds it: such a map shows nothing. A model of one head
    keeps all its maps."""
    values = [value for layer in layers for value in _values(layer.values(name), layer.heads)]
    return len(values) == 1 or len({value for value in values if value is not None}) > 1


def _values(values: Tensor | None, heads: int) -> list[float | None]:
    return [None] * heads if values is None else [rounded(value) for value in values.tolist()]


def _shared(axes: list[dict[str, Any]], positions: Tensor, bound: Tensor) -> int:
    """Index of this axis in ``axes``: the layers of a model usually share one."""
    axis = {
        "positions": [rounded(value, 6) for value in positions.tolist()],
        "bound": [rounded(value) for value in bound.tolist()],
    }
    if axis not in axes:
        axes.append(axis)
    return axes.index(axis)


def _histogram(inspection: Inspection, layer: int) -> dict[str, Any] | None:
    found = inspection.histograms.get(layer)
    if found is None:
        return None
    return {
        "low": [rounded(value, 6) for value in found.low.tolist()],
        "high": [rounded(value, 6) for value in found.high.tolist()],
        "bins": found.keys.shape[1],
        "keys": packed(found.keys),
        "weight": packed(found.weight),
        "queries": found.queries,
    }


def _view(view: TokenView, keys: int) -> dict[str, Any]:
    ends = torch.tensor([0.0, 1.0])  # part of the packed weights, so that their scale is exact at both
    return {
        "layer": view.layer,
        "head": view.head,
        "queries": len(view.keys),
        "total": view.total,
        "shown": keys,
        "keys": packed_keys(view.keys[:, :keys], view.total),
        "weights": packed(torch.cat([view.weights[:, :keys].flatten(), ends])),
    }
