"""An alignment as a picture: shades in a terminal, a table in HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from torch import Tensor

END = "end"
_SHADES = " ·░▒▓█"


@dataclass(frozen=True, eq=False)
class Picture:
    """weights: (T + 1, S) how much each step of the output read of each source symbol, the last row that of the end."""

    title: str
    source: Sequence[str]
    output: Sequence[str]
    weights: Tensor


def in_terminal(picture: Picture, width: int = 80) -> str:
    """One line per step of the output, one column per source symbol; the darker, the more of it the step read. Columns that do
    not fit into the terminal follow below."""
    names = [*picture.output, END]
    left = max(map(cell_len, names)) + 1
    wide = min(max(map(cell_len, picture.source)) + 1, max(2, width - left))
    fit = max(1, (width - left) // wide)
    bands = []
    for start in range(0, len(picture.source), fit):
        columns = slice(start, start + fit)
        head = "".join(set_cell_size(symbol, wide - 1) + " " for symbol in picture.source[columns])
        lines = [" " * left + head.rstrip()]
        for name, row in zip(names, picture.weights[:, columns].tolist(), strict=True):
            cells = "".join((_shade(share) * min(wide, 2)).ljust(wide) for share in row)
            lines.append((set_cell_size(name, left) + cells).rstrip())
        bands.append("\n".join(lines))
    return "\n\n".join(bands)


def _shade(share: float) -> str:
    return _SHADES[min(len(_SHADES) - 1, round(share * (len(_SHADES) - 1) + 0.15))]


def in_html(pictures: Sequence[Picture]) -> str:
    """A page of its own, with a table for each."""
    return _PAGE.replace("TABLES", "\n".join(map(_table, pictures)))


def _table(picture: Picture) -> str:
    head = "".join(f'<th scope="col">{html.escape(symbol)}</th>' for symbol in picture.source)
    rows = []
    for name, row in zip([*picture.output, END], picture.weights.tolist(), strict=True):
        cells = "".join(f'<td style="--w:{share:.3f}" title="{share:.3f}"></td>' for share in row)
        rows.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    body = f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<figure><figcaption>{html.escape(picture.title)}</figcaption><table>{body}</table></figure>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="softlookup">
<meta name="viewport" content="width=device-width">
<title>Alignments</title>
<style>
body { font: 16px/1.4 system-ui, sans-serif; margin: 2rem; color: #1c2330; background: #fff; }
p { max-width: 40rem; }
main { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; }
table { border-collapse: collapse; width: max-content; }
figure { margin: 0; max-width: 100%; overflow-x: auto; }
figcaption { font-weight: 600; padding-bottom: .4rem; position: sticky; left: 0; }
th { font-weight: 400; padding: .1rem .45rem; }
tbody th { text-align: right; font-size: .85rem; white-space: nowrap; }
td[style] { width: 1.9rem; height: 1.9rem; border: 1px solid #e4e8ef;
  background: color-mix(in srgb, #16427c calc(var(--w) * 100%), #fff); }
</style>
</head>
<body>
<h1>Alignments</h1>
<p>A row is a step of the output, a column a symbol of the source. The darker, the more of the symbol the step read; a row adds
up to 1. The number is shown where the pointer rests.</p>
<main>
TABLES
</main>
</body>
</html>
"""
