"""The report of a model's weights alone: the same page, without what only a text can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...geometry import MEANINGS
from ..circuits import SHOWN
from ..findings import grouped
from . import cards, facts, filled_page, found_in_words
from .data import findings_data, geometry_data, kinds_data, stat_data, values_data

if TYPE_CHECKING:
    from ..geometry import ModelGeometry


def page(geometry: ModelGeometry) -> str:
    """The whole page."""
    heads, groups = len(geometry.heads), grouped(geometry.findings)
    told = [
        ("Heads", f"{heads:,}", f"in {len(geometry.layers)} layers"),
        ("Width of a head", f"{geometry.width}", "columns of its queries and keys"),
    ]
    if geometry.distance is not None:
        told.append(("Rotary positions", f"{geometry.distance:g}", "positions from a query back to its key"))
    opening = f"What <b>{heads:,} attention heads</b> in {len(geometry.layers)} layers are made to do, read from their weights."
    return filled_page(
        model=geometry.model,
        what="geometry report",
        lead=f"{opening} {found_in_words(groups)}",
        facts=facts(told),
        findings=cards(groups, "Read from the weights alone; chance is what random weights of the same shape give."),
        tokens_hidden=" hidden",
        left_out=[
            "What a layer really reads: softlookup inspect weighs the same measures by it.",
            f"All compositions but the {SHOWN} strongest of each kind, which are in the JSON and, the first, in the terminal.",
            "Biases, which move queries and keys by a constant, and the gains of normalizations before the projections.",
        ],
        footer="Made by softlookup. No matrix of model size was formed: everything is computed on factors of the heads' width.",
        data=_data(geometry),
    )


def _data(geometry: ModelGeometry) -> dict[str, Any]:
    layers = geometry.layers
    return {
        "tokens": None,
        "stats": [stat_data(layers, name, "weights") for name in MEANINGS],
        "values": values_data(layers, list(MEANINGS)),
        "layers": [_layer(geometry, number) for number in range(len(layers))],
        "axes": [],
        "rowsPerPoint": 1,
        "kinds": kinds_data(),
        "findings": findings_data(geometry.findings),
        "views": [],
    }


def _layer(geometry: ModelGeometry, number: int) -> dict[str, Any]:
    layer = geometry.layers[number]
    pairs = None if geometry.pairs is None else [[x.share, x.looks_for, x.found_by] for x in geometry.pairs[number]]
    about = {"path": layer.path, "cross": False, "causal": False, "heads": layer.heads}
    return about | {"geometry": geometry_data(layer), "pairs": pairs}
