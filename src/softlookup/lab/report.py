"""One page of all results: what was claimed, predicted and found, and what is left without the mechanism."""

from __future__ import annotations

import html
from collections.abc import Sequence
from math import inf, isnan
from pathlib import Path

from markdown_it import MarkdownIt

from .figure import svg
from .run import Result
from .verdict import Measured, Verdict

PAGE = Path(__file__).with_name("page.html")


def page(results: Sequence[Result]) -> str:
    """HTML that opens offline."""
    content = {"SUMMARY": "\n".join(map(_line, results)), "CLAIMS": "\n".join(map(_section, results)), "LEAD": _lead(results)}
    text = PAGE.read_text(encoding="utf-8")
    for name, part in content.items():
        text = text.replace(f"<!--{name}-->", part)
    return text


def number(x: float, digits: int = 4) -> str:
    """So many digits, in words a reader would write."""
    return f"{x:,.0f}" if 1e4 <= abs(x) < 1e7 else f"{x:.{digits}g}"


def interval(low: float, high: float) -> str:
    """Where theory says that a number lies."""
    if low == -inf:
        return f"≤ {number(high)}"
    if high == inf:
        return f"≥ {number(low)}"
    digits = 4 if number(low) != number(high) else 8
    return f"{number(low, digits)} to {number(high, digits)}"


def spread(found: Measured) -> str:
    """A mean with its interval."""
    if isnan(found.mean):
        return "no number"
    mean = number(found.mean)
    return mean if found.low == found.high else f"{mean} ({number(found.low)} to {number(found.high)})"


def counted(results: Sequence[Result]) -> str:
    """How many claims there are, and how many have which verdict, in words."""
    verdicts = [result.verdict() for result in results]
    found = ", ".join(f"{verdicts.count(each)} {each}" for each in Verdict if each in verdicts)
    return f"{len(results)} claim{'s' * (len(results) > 1)}: {found}"


def _lead(results: Sequence[Result]) -> str:
    flips = sum(result.flips for result in results)
    quick = " Some are quick runs, of few seeds and small sizes." if any(result.quick for result in results) else ""
    return f"{counted(results)}. Where the mechanism is taken away, predictions of {flips} fail that held with it.{quick}"


def _mark(verdict: Verdict) -> str:
    return f'<span class="{verdict}">{verdict}</span>'


def _line(result: Result) -> str:
    claim = result.claim
    link = f'<a href="#{claim.name}">{html.escape(claim.title)}</a>'
    cells = (str(claim.number), link, _mark(result.verdict()), _mark(result.verdict(control=True)))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _section(result: Result) -> str:
    claim = result.claim
    rows = []
    for q in claim.quantities:
        both = [result.measured(q.name, control) for control in (False, True)]
        cells = [f"{html.escape(q.meaning)}<small>{html.escape(q.source)}</small>", interval(q.low, q.high)]
        cells += [f"{spread(each)} {_mark(each.verdict(q.low, q.high))}" for each in both]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    said = "quick run" if result.quick else "full run"
    seeds = f"{len(result.found)} seeds" if len(result.found) > 1 else "one seed"
    return f"""<section id="{claim.name}">
<div class="text">{MarkdownIt().enable("table").render(claim.text)}</div>
<figure>{svg(result)}</figure>
<div class="wide"><table><thead><tr><th>what</th><th>predicted</th><th>measured</th>
<th>control: {html.escape(claim.control)}</th></tr></thead><tbody>
{"".join(rows)}
</tbody></table></div>
<p class="made">{said}, {seeds}, {result.seconds:,.0f} s · <code>{result.command}</code></p>
</section>"""
