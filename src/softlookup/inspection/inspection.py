"""The result of a look: findings, tables, JSON and the report are all views of this one object."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_text
from ..watching.frame import load_pandas
from .cost import Cost
from .findings import Finding
from .heads import FEW, Head, Layer
from .histogram import Histogram
from .provenance import Provenance
from .token_view import TokenView
from .writing import check_target, finite

if TYPE_CHECKING:
    from .terminal import HeadMap

SCHEMA_VERSION = 1
"""Of the JSON; raised when a field changes its meaning or goes away."""

JUDGED = {"previous_token_share": "previous_token", "distance_without_first_token": "reach"}
"""What findings judge a head by and no statistic of the operator tells: name in the JSON -> name in ``Head.wide``."""


@dataclass(frozen=True)
class Text:
    """Where the input came from. ``sha256`` of the whole text as read; None for an input given from Python."""

    title: str
    sha256: str | None = None


@dataclass(frozen=True, repr=False)
class Inspection:
    """What every attention head did in one forward.

    layers are numbered in the order in which the forward calls them (an encoder-decoder's cross attention is a layer
    of its own); each knows its module path. kind: the model's class and size. tokens: the first sequence's words,
    None if not given.
    """

    model: str
    kind: str
    layers: list[Layer]
    histograms: dict[int, Histogram]
    views: list[TokenView]
    findings: list[Finding]
    cost: Cost
    tokens: list[str] | None
    text: Text
    provenance: Provenance
    notes: list[str] = field(default_factory=list)

    @property
    def stats(self) -> list[str]:
        """Names of the statistics that a head has a mean of, in the operator's order; not every layer has
        ``distance``."""
        return list(dict.fromkeys(stat for layer in self.layers for stat in layer.means))

    @property
    def measures(self) -> list[str]:
        """Names of the measures of the weights, in their own order; none where no layer's weights were read."""
        return list(dict.fromkeys(name for layer in self.layers if layer.geometry for name in layer.geometry.measures))

    @property
    def queries(self) -> int:
        """Query positions of the longest layer."""
        return max((layer.length for layer in self.layers), default=0)

    @property
    def causal(self) -> bool | None:
        """Whether queries see nothing that comes after them, in every self-attention; None where layers differ, or
        all attend to another sequence."""
        kinds = {layer.causal for layer in self.layers if not layer.cross}
        return kinds.pop() if len(kinds) == 1 else None

    def heads(self) -> list[Head]:
        """Every head, layer by layer."""
        return [layer.head(number) for layer in self.layers for number in range(layer.heads)]

    def table(self, stat: str = "entropy_ratio") -> HeadMap:
        """The layer × head map of one statistic, or of one measure of the weights: prints itself, in plain text and in
        colour."""
        from .terminal import HeadMap

        return HeadMap(self, stat)

    def to_frame(self) -> Any:
        """One row per head, with the columns of the JSON's heads: layer, head, path, every statistic, what findings
        judge, and the kinds of its findings. ``SoftlookupError`` where pandas is not installed."""
        return load_pandas().DataFrame([row | {"findings": ", ".join(row["findings"])} for row in self._rows()])

    def as_dict(self) -> dict[str, Any]:
        """What ``to_json`` writes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "generator": "softlookup",
            "model": self.model,
            "kind": self.kind,
            "tokens": self.queries,
            "text": {"title": self.text.title, "sha256": self.text.sha256},
            "provenance": self.provenance.as_dict() | {"causal": self.causal},
            "cost": self.cost.as_dict(),
            "reductions": {
                "max_logit": "largest over queries",
                "bandwidth": "over keys",
                "prior_spread": "over keys",
                "others": "mean over queries",
            },
            "heads": self._rows(),
            "findings": [finding.as_dict() for finding in self.findings],
            "findings_count_queries_with_visible_at_least": FEW,
            "notes": self.notes,
        }

    def to_json(self) -> str:
        """What `save_json` writes."""
        return json.dumps(finite(self.as_dict()), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save_json(self, path: str | Path) -> None:
        """Write ``to_json()`` to ``path``, whole or not at all, and never over a file that is not softlookup's."""
        write_text(check_target(path, "save_json"), self.to_json())

    def to_html(self) -> str:
        """The report: one page that needs no network."""
        from .report import page

        return page(self)

    def save_html(self, path: str | Path) -> None:
        """Write the report to ``path``, whole or not at all, and never over a file that is not softlookup's."""
        write_text(check_target(path, "save_html"), self.to_html())

    def _repr_html_(self) -> str:
        # A frame of its own: the notebook's styles stay out, the report's scripts stay in.
        return (
            f'<iframe srcdoc="{html.escape(self.to_html())}" sandbox="allow-scripts" title="softlookup report" '
            'style="width:100%;height:900px;border:0"></iframe>'
        )

    def __repr__(self) -> str:
        from .terminal import plain

        return plain(self)

    def _rows(self) -> list[dict[str, Any]]:
        kinds: dict[tuple[int, int], list[str]] = {}
        for finding in self.findings:
            kinds.setdefault((finding.layer, finding.head), []).append(finding.kind)
        return [
            {"layer": head.layer, "head": head.head, "path": head.path}
            | head.means
            | {name: None if head.wide is None else head.wide.get(stat) for name, stat in JUDGED.items()}
            | {f"weights_{name}": None if head.weights is None else head.weights[name] for name in self.measures}
            | {"findings": kinds.get((head.layer, head.head), [])}
            for head in self.heads()
        ]
