"""An alignment as a picture: shades in a terminal, a table in HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence

from torch import Tensor

END = "end"
_SHADES = " ·░▒▓█"


def in_terminal(source: Sequence[str], output: Sequence[str], weights: Tensor) -> str:
    """One line per step of the output, one column per source symbol; the darker, the more of it the step read.

    weights: (T + 1, S), the last row that of the output's end."""
    wide = max(len(symbol) for symbol in source) + 1
    names = [*output, END]
    left = max(map(len, names)) + 1
    lines = [" " * left + "".join(symbol.ljust(wide) for symbol in source).rstrip()]
    for name, row in zip(names, weights.tolist(), strict=True):
        cells = "".join((_shade(share) * min(wide, 2)).ljust(wide) for share in row)
        lines.append((name.ljust(left) + cells).rstrip())
    return "\n".join(lines)


def _shade(share: float) -> str:
    return _SHADES[min(len(_SHADES) - 1, round(share * (len(_SHADES) - 1) + 0.15))]


def in_html(pictures: Sequence[tuple[Sequence[str], Sequence[str], Tensor]]) -> str:
    """A page of its own, with a table for each (source, output, weights)."""
    return _PAGE.replace("TABLES", "\n".join(_table(*each) for each in pictures))


def _table(source: Sequence[str], output: Sequence[str], weights: Tensor) -> str:
    title = html.escape(f"{''.join(source)} → {' '.join(output)}")
    head = "".join(f'<th scope="col">{html.escape(symbol)}</th>' for symbol in source)
    rows = []
    for name, row in zip([*output, END], weights.tolist(), strict=True):
        cells = "".join(f'<td style="--w:{share:.3f}" title="{share:.3f}"></td>' for share in row)
        rows.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    return f"<table><caption>{title}</caption><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


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
table { border-collapse: collapse; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th { font-weight: 400; padding: .1rem .45rem; }
tbody th { text-align: right; font-variant-caps: all-small-caps; }
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
