"""An inspection in the terminal: findings in words, a heat map of one statistic, the cost. Plain text wherever
colour is not to be had."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.text import Text

from .findings import JUDGED_ON, grouped
from .findings import Group as Kindred
from .flow import INDENT, Flow, words
from .statistics import Statistic, statistic

if TYPE_CHECKING:
    from .inspection import Inspection

WIDTH = 80
LISTED = 8
"""Heads that a finding names before "and … more"."""

RAMP = ("#2f2654", "#3a4383", "#33659b", "#2d88a5", "#34aba8", "#65cba9", "#a9e4bc", "#e8f6e2")
SHADES = " ░▒▓█"
"""Without colour, where a number does not fit."""


@dataclass(frozen=True, repr=False)
class HeadMap:
    """The layer × head map of one statistic. ``print`` shows it in plain text, rich and the command line in colour."""

    inspection: Inspection
    stat: str = "entropy_ratio"

    def __post_init__(self) -> None:
        statistic(self.stat, self.inspection.stats + self.inspection.measures)

    def __rich_console__(self, console: Console, options: object) -> Iterator[RenderableType]:
        yield from _map(self.inspection, self.stat, console)

    def __str__(self) -> str:
        return _plain(self)

    __repr__ = __str__


def summary(inspection: Inspection, stat: str = "entropy_ratio") -> RenderableType:
    """The whole screen: findings first, then the map, then the cost of looking."""
    heads = len(inspection.heads())
    title = words(
        (inspection.model, "bold"),
        f"  {inspection.queries:,} tokens of {inspection.text.title}, {len(inspection.layers)} layers, {heads:,} heads",
    )
    parts: list[RenderableType] = [Flow(title), Text()]
    groups = grouped(inspection.findings)
    if not groups:
        parts.append(Text("No head passes a threshold."))
    for group in groups:
        parts += [*finding(group), Text()]
    if groups:
        parts += [Flow(words((f"{JUDGED_ON} The map takes every query.", "dim"))), Text()]
    parts += [Flow(words(f"Note: {note}")) for note in inspection.notes]
    parts += [HeadMap(inspection, stat), Text(), Flow(words(f"Cost of looking: {inspection.cost}"))]
    return Group(*parts)


def plain(inspection: Inspection) -> str:
    """``summary`` as text of 80 columns."""
    return _plain(summary(inspection))


def _plain(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, legacy_windows=False)
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def finding(group: Kindred) -> Iterator[RenderableType]:
    """A title with the threshold, the heads with their values, and what it means."""
    bullet = Text("! ", "bold yellow") if group.kind.tone == "warning" else Text("• ", "bold cyan")
    yield Flow(words((group.title, "bold"), (f"  {group.criterion}", "dim")), bullet)
    yield heads_listed([(found.label, found.value) for found in group.findings])
    yield Flow(words((" ".join(group.words), "dim")), " " * INDENT)


def heads_listed(heads: Sequence[tuple[str, float]]) -> Flow:
    """Heads (label, value), the first ``LISTED`` of them and how many more."""
    listed = heads[:LISTED]
    ends = [","] * (len(listed) - 1) + [""]
    pieces = [Text.assemble((label, "bold"), f" {value:.3g}{end}") for (label, value), end in zip(listed, ends, strict=True)]
    if len(heads) > LISTED:
        pieces.append(Text(f"and {len(heads) - LISTED} more", "dim"))
    return Flow(pieces, " " * INDENT)


def _map(inspection: Inspection, name: str, console: Console) -> Iterator[RenderableType]:
    stat = statistic(name, inspection.stats + inspection.measures)
    rows = [_values(layer.values(name), layer.heads) for layer in inspection.layers]
    low, high = _range(stat, [value for row in rows for value in row if math.isfinite(value)])
    yield Flow(words((f"{stat.label}, layer by head", "bold"), (f"  {stat.help}", "dim")))
    colour = console.color_system is not None
    widest = max(map(len, rows), default=0)
    label = len(str(len(rows) - 1)) + 1
    cell = min(5, max(1, (console.width - label) // max(widest, 1)))
    per_band = max(1, (console.width - label) // cell)
    numbers = cell >= 4
    for start in range(0, widest, per_band):
        band = range(start, min(start + per_band, widest))
        yield _header(band, cell, label)
        for index, row in enumerate(rows):
            line = Text(f"{index}".rjust(label - 1) + " ")
            for head in band:
                if head < len(row):
                    line.append_text(_cell(row[head], _share(stat, row[head], low, high), cell, numbers, colour))
            if not colour:
                line.rstrip()
            yield line
    yield _legend(low, high, stat, colour, numbers)


def _header(band: range, cell: int, label: int) -> Text:
    """Head numbers above their columns, as many as fit."""
    step = max(1, -(-4 // cell)) if cell < 4 else 1
    line = " " * label
    for head in band:
        if (head - band.start) % step == 0:
            line = line.ljust(label + (head - band.start) * cell) + (str(head).center(cell) if cell >= 4 else str(head))
    return Text(line.rstrip(), "dim")


def _cell(value: float, share: float, width: int, numbers: bool, colour: bool) -> Text:
    if not math.isfinite(value):
        return Text("–".center(width), "dim")
    text = _short(value).center(width) if numbers else " " * width
    if colour:
        shade = RAMP[min(len(RAMP) - 1, int(share * len(RAMP)))]
        return Text(text, f"{'black' if share > 0.45 else 'white'} on {shade}")
    return Text(text if numbers else SHADES[min(len(SHADES) - 1, int(share * len(SHADES)))] * width)


def _legend(low: float, high: float, stat: Statistic, colour: bool, numbers: bool) -> Text:
    if not colour and numbers:
        return Text(f"from {_short(low).strip()} to {_short(high).strip()}", "dim")
    line = Text(f"{_short(low).strip()} ")
    if colour:
        for shade in RAMP:
            line.append("   ", f"on {shade}")
    else:
        line.append("".join(shade * 3 for shade in SHADES))
    return line.append(f" {_short(high).strip()}" + (" (logarithmic)" if stat.scale == "log" else ""))


def _values(values: object, heads: int) -> list[float]:
    return [math.nan] * heads if values is None else values.tolist()  # type: ignore[attr-defined]


def _range(stat: Statistic, values: list[float]) -> tuple[float, float]:
    if stat.domain is not None:
        return stat.domain
    return (min(values), max(values)) if values else (0.0, 1.0)


def _share(stat: Statistic, value: float, low: float, high: float) -> float:
    """Place of a value on the colour scale, from 0 to 1."""
    if not math.isfinite(value):
        return 0.0
    if stat.scale == "log":
        low = max(low, high / 1e6, 1e-9)
        value, low, high = math.log(max(value, low)), math.log(low), math.log(max(high, low))
    return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0


def _short(value: float) -> str:
    """At most four characters (five with a sign): ``.42``, ``1.00``, ``12.3``, ``1.2k``, ``34M``."""
    size, sign = abs(value), "-" if value < 0 else ""
    if size < 0.995:
        text = f"{size:.2f}".lstrip("0")
        return sign + text if text != ".00" else "0"
    for limit, form in ((9.995, "{:.2f}"), (99.95, "{:.1f}"), (999.5, "{:.0f}")):
        if size < limit:
            return sign + form.format(size)
    for unit, factor in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if size < 999.5 * factor:
            return sign + (f"{size / factor:.1f}{unit}" if size < 9.95 * factor else f"{size / factor:.0f}{unit}")
    return f"{value:.0e}"
