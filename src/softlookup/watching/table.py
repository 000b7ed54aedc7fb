"""A layer x head table of plain text, 80 columns wide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import SoftlookupError

if TYPE_CHECKING:
    from .seen import Seen

WIDTH = 80
MAIN = ("entropy", "entropy_ratio", "max_weight", "max_logit", "sink_mass", "distance")
"""What fits beside a layer's name and says most: how spread, how spread against the bound, how peaked, how large the
logits, how much goes to the first key, how far it looks."""
_SHORT = {
    "entropy": "entropy",
    "entropy_ratio": "H/logn",
    "max_weight": "max p",
    "max_logit": "max s",
    "sink_mass": "sink",
    "distance": "dist",
    "logsumexp": "lse",
    "expected_logit": "E[s]",
    "expected_logit_var": "Var[s]",
    "logit_mean": "mean s",
    "logit_var": "var s",
    "collision": "sum p2",
    "effective_keys": "keys",
    "jacobian_trace": "jac",
    "sink_weight": "w sink",
}
_COLUMN = 8


@dataclass(frozen=True)
class Table:
    """Rows of text cells under a header; `str` aligns them. `columns`: names of the statistics, in order; errors: where the
    means are of samples, their largest standard error in each column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    errors: tuple[str, ...] = ()

    def __str__(self) -> str:
        room = WIDTH - 5 - _COLUMN * len(self.columns)
        header = ("layer", "head", *(_SHORT.get(name, name) for name in self.columns))
        footer = [("sampled queries: ±", "", *self.errors)] if self.errors else []
        return "\n".join(_line(cells, room) for cells in (header, *self.rows, *footer))

    __repr__ = __str__


def table_of(seen: Seen, stats: str | Sequence[str] | None = None) -> Table:
    """Means per layer and head; "-" where a layer has no such statistic or no query counted."""
    stats = (stats,) if isinstance(stats, str) else stats
    wanted = tuple(stats) if stats is not None else tuple(s for s in MAIN if s in seen.stats) or seen.stats[: len(MAIN)]
    unknown = [name for name in wanted if name not in seen.stats]
    if unknown:
        raise SoftlookupError(f"table: expected statistics among {', '.join(seen.stats)}, got {', '.join(unknown)}")
    if len(wanted) > len(MAIN):
        raise SoftlookupError(f"table: expected at most {len(MAIN)} statistics in {WIDTH} columns, got {len(wanted)}")
    rows = []
    errors = torch.zeros(len(wanted), dtype=torch.float64)
    for layer in seen.layers.values():
        told = [layer.stderr(name) if name in layer.stats else errors.new_zeros(1) for name in wanted]
        here = [each.nan_to_num(0.0, posinf=math.inf).max() for each in told]
        errors = torch.maximum(errors, torch.stack(here))
        means = [layer.mean(name).tolist() if name in layer.stats else [math.nan] * layer.heads for name in wanted]
        counts = layer.counts.tolist()
        for head in range(layer.heads):
            nothing = not counts[head]
            missing = [nothing or name not in layer.stats for name in wanted]
            cells = ("-" if none else _number(m[head]) for none, m in zip(missing, means, strict=True))
            rows.append((layer.name if head == 0 else "", str(head), *cells))
    return Table(wanted, tuple(rows), tuple(map(_number, errors.tolist())) if bool(errors.any()) else ())


def _line(cells: Sequence[str], room: int) -> str:
    name, head, *numbers = cells
    if len(name) > room:
        name = "…" + name[len(name) - room + 1 :]  # the end of a module path says more than its beginning
    return (name.ljust(room) + head.rjust(5) + "".join(n.rjust(_COLUMN) for n in numbers)).rstrip()


def _number(x: float) -> str:
    """At most 7 characters, three to four significant digits."""
    if math.isnan(x):
        return "nan"
    if math.isinf(x):
        return "inf" if x > 0 else "-inf"
    if x != 0 and not 1e-3 <= abs(x) < 1e5:
        return f"{x:.0e}"
    for decimals in (3, 2, 1, 0):
        text = f"{x:.{decimals}f}"
        if len(text) <= 6:
            return text
    return text
