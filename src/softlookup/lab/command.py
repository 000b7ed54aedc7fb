"""What `softlookup lab` does; cli.py only says how it is called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from ..errors import SoftlookupError
from ..files import write_text
from .claim import Claim, chosen, claims
from .report import counted, interval, page, spread
from .run import Result, committed, run
from .verdict import Verdict

COLOURS = {Verdict.CONFIRMED: "green", Verdict.REFUTED: "red", Verdict.INCONCLUSIVE: "yellow"}


def listed() -> Table:
    """All claims, with the verdicts of the results that the package brings."""
    table = _table("", "claim", "", "verdict")
    for claim in claims().values():
        result = committed(claim)
        table.add_row(str(claim.number), claim.name, claim.title, "" if result is None else _mark(result.verdict()))
    return table


def run_all(names: Sequence[str], quick: bool, retrain: bool, folder: Path, say: Any) -> list[Result]:
    """Results of claims, each written to FOLDER/NAME.json as soon as it is there."""
    results = []
    wanted = chosen(names)
    folder.mkdir(parents=True, exist_ok=True)
    for claim in wanted:
        results.append(run(claim, quick, folder if retrain else None, say))
        write_text(folder / f"{claim.name}.json", results[-1].to_json())
    return results


def gathered(folder: Path | None) -> list[Result]:
    """The results in a folder, or those that the package brings."""
    found = [_of(claim, folder) for claim in claims().values()]
    results = [result for result in found if result is not None]
    if not results:
        raise SoftlookupError(f"{folder or 'lab'}: expected results, which `softlookup lab run` writes, found none")
    return results


def _of(claim: Claim, folder: Path | None) -> Result | None:
    if folder is None:
        return committed(claim)
    path = folder / f"{claim.name}.json"
    return Result.read(claim, path) if path.exists() else None


def save_html(results: Sequence[Result], path: Path) -> None:
    write_text(path, page(results))


def save_json(results: Sequence[Result], path: Path) -> None:
    rows = [row for result in results for row in result.rows()]
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_text(path, f'{{"generator": "softlookup", "rows": [\n{lines}\n]}}\n')


def shown(results: Sequence[Result]) -> RenderableType:
    """A table for each claim, and the sum."""
    parts: list[RenderableType] = []
    for result in results:
        claim = result.claim
        table = _table("", "predicted", "measured", "control")
        for q in claim.quantities:
            both = [result.measured(q.name, control) for control in (False, True)]
            cells = (f"{spread(each)}\n{_mark(each.verdict(q.low, q.high))}" for each in both)
            table.add_row(q.meaning, interval(q.low, q.high), *cells)
        flips = "changes" if result.flips else "does not change"
        head = f"[bold]{claim.number} {claim.name}[/bold]: {claim.title}. {_mark(result.verdict())}, {result.seconds:.0f} s"
        parts += [head, f"Control: {claim.control}; the verdict {flips}.", table, ""]
    return Group(*parts, f"{len(results)} claims: {counted(results)}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name)
    return table


def _mark(verdict: Verdict) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]"
