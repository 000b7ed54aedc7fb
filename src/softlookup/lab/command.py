"""What `softlookup lab` does; cli.py only says how it is called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from ..errors import SoftlookupError
from ..files import reason, write_text
from ..inspection.writing import finite
from .claim import Claim, Quantity, chosen, claims
from .figure import of_its_own
from .report import counted, interval, page, spread
from .run import Result, committed, run
from .verdict import Measured, Verdict

COLOURS = {Verdict.CONFIRMED: "green", Verdict.REFUTED: "red", Verdict.INCONCLUSIVE: "yellow"}


def listed() -> Table:
    """All claims, with the verdicts of the results that the package brings."""
    table = _table("", "claim", "", "verdict")
    for claim in claims().values():
        result = committed(claim)
        table.add_row(str(claim.number), claim.name, claim.title, "" if result is None else _mark(result.verdict()))
    return table


def run_all(
    names: Sequence[str], quick: bool, retrain: bool, folder: Path, say: Any
) -> tuple[list[Result], list[str]]:
    """Results of claims, each written to FOLDER/NAME.json as soon as it is there, and a line for each of several that could
    not be run, as where a model is not installed."""
    results, missing = [], []
    wanted = chosen(names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):  # before the measuring, which may take an hour
            pass
    except OSError as error:
        raise SoftlookupError(f"--folder: expected a folder to write to, got {folder} ({reason(error)})") from None
    for claim in wanted:
        try:
            results.append(run(claim, quick, folder if retrain else None, say))
        except SoftlookupError as error:
            if len(wanted) == 1:
                raise
            missing.append(f"{claim.name} was not run: {error}")
            continue
        write_text(folder / f"{claim.name}.json", results[-1].to_json())
    if not results:
        raise SoftlookupError("; ".join(missing))
    return results, missing


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


def save_figures(results: Sequence[Result], folder: Path) -> None:
    """FOLDER/NAME.svg for each claim."""
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        write_text(folder / f"{result.claim.name}.svg", of_its_own(result))


def save_json(results: Sequence[Result], path: Path) -> None:
    rows = (finite(row) for result in results for row in result.rows())
    lines = ",\n".join(map(json.dumps, rows))
    write_text(path, f'{{"generator": "softlookup", "rows": [\n{lines}\n]}}\n')


def shown(results: Sequence[Result]) -> RenderableType:
    """Each claim with its predictions, and the sum."""
    parts: list[RenderableType] = []
    for result in results:
        claim = result.claim
        flips = "" if result.flips else ", and no prediction that held fails there"
        control = f"without the mechanism ({escape(claim.control)}): {_mark(result.verdict(control=True))}{flips}"
        run = "quick run, " * result.quick
        parts.append(f"[bold]{claim.number} {claim.name}[/bold]  {escape(claim.title)}")
        parts.append(f"{run}{_mark(result.verdict())} in {result.seconds:.0f} s; {control}")
        table = _table("", "")
        for q in claim.quantities:
            with_it, without = (result.measured(q.name, control) for control in (False, True))
            said = f"{interval(q.low, q.high)} predicted; measured {_judged(with_it, q)}; control {_judged(without, q)}"
            table.add_row(f"  {q.name}", f"{escape(q.meaning)}\n{said}")
        parts += [table, ""]
    return Group(*parts, counted(results))


def _judged(found: Measured, q: Quantity) -> str:
    return f"{spread(found)} {_mark(found.verdict(q.low, q.high))}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns))
    for name in columns:
        table.add_column(name)
    return table


def _mark(verdict: Verdict) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]"
