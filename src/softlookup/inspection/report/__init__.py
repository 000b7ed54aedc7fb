"""The report: one page that carries its data, opens without a network and asks for nothing else.

The charts are drawn by some 500 lines of script that travel with the page. A charting library would add five
megabytes to every report and still not draw the two things that matter here: a map that is walked with the keyboard,
and the text with its weights.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ...version import __version__
from ..cost import seconds
from ..findings import JUDGED_ON, Finding, Group, grouped
from .data import keys_shown, page_data, script_json

if TYPE_CHECKING:
    from ..inspection import Inspection

SCRIPTS = ("data", "colour", "map", "chart", "weights", "head", "tokens", "main")
ATTENDS = {True: "causal", False: "not causal", None: "causal in part"}
CHIPS = 9
"""Heads that a finding shows before "and … more"."""


def page(inspection: Inspection) -> str:
    """The whole page. Everything that is text of the model or the user is escaped here, or built by the script as
    text nodes."""
    heads = len(inspection.heads())
    return filled_page(
        model=inspection.model,
        what="attention report",
        lead=_lead(inspection, heads),
        facts=facts(_facts(inspection, heads)),
        findings=cards(
            grouped(inspection.findings), f"{JUDGED_ON} The maps and the numbers of a head take every query."
        ),
        tokens_hidden="" if inspection.views else " hidden",
        left_out=left_out(inspection),
        footer=_footer(inspection),
        data=page_data(inspection),
    )


def filled_page(
    *,
    model: str,
    what: str,
    lead: str,
    facts: str,
    findings: str,
    tokens_hidden: str,
    left_out: Sequence[str],
    footer: str,
    data: dict[str, Any],
) -> str:
    """The page with its parts; lead, facts and findings are HTML already, all others are text."""
    script = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    return _filled(
        _asset("page.html"),
        version=html.escape(__version__),
        title=html.escape(f"{model} · softlookup"),
        style=_asset("style.css"),
        model=html.escape(model),
        what=html.escape(what),
        lead=lead,
        facts=facts,
        findings=findings,
        tokens_hidden=tokens_hidden,
        left_out="".join(f"<li>{html.escape(line)}</li>" for line in left_out),
        footer=html.escape(footer),
        data=script_json(data),
        script='"use strict";(() => {\n' + script + "\n})();",
    )


def left_out(inspection: Inspection) -> list[str]:
    """What a reader should know is not on the page."""
    lines = ["The n×n weights of a head are never stored: statistics come from the pass that computed the output."]
    longest = max((layer.length for layer in inspection.layers), default=0)
    points = max((len(layer.positions) for layer in inspection.layers), default=0)
    if points < longest:
        lines.append(
            f"Entropy curves have {points} points for {longest:,} queries: each is the mean of its neighbours."
        )
    if inspection.histograms:
        sampled = max(found.queries for found in inspection.histograms.values())
        lines.append(f"Logit histograms are exact for {sampled} queries per layer, drawn at random with a fixed seed.")
    if inspection.views:
        heads, views, keys = len(inspection.heads()), inspection.views, keys_shown(inspection.views)
        covered = sum(float(view.weights[:, :keys].sum(-1).mean()) for view in views) / len(views)
        lines.append(
            f"{len(views)} of {heads} heads have a token view, with the {keys} strongest keys of each query; "
            f"together they cover {covered:.0%} of those heads' weight. Choose others with --heads or look(heads=…)."
        )
        lines.append("Token views show the first sequence of the batch.")
    else:
        lines.append("No head has a token view: no finding names one. Choose some with --heads or look(heads=…).")
    return lines + inspection.notes


def _lead(inspection: Inspection, heads: int) -> str:
    """The page in two sentences: numbers in bold, the rest in words."""
    text = html.escape(inspection.text.title)
    opening = (
        f"What <b>{heads:,} attention heads</b> in {len(inspection.layers)} layers did while the model read "
        f"<b>{inspection.queries:,} tokens</b> of {text}."
    )
    return f"{opening} {found_in_words(grouped(inspection.findings))}"


def found_in_words(groups: Sequence[Group]) -> str:
    """HTML: how many heads of each kind."""
    if not groups:
        return "Nothing stands out."
    named = [re.sub(r"^\d+", r"<b>\g<0></b>", html.escape(group.title)) for group in groups]
    listing = named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]
    return f"Found: {listing}."


Fact = tuple[str, str, str]
"""Name, value and a note."""


def _facts(inspection: Inspection, heads: int) -> list[Fact]:
    cost, made = inspection.cost, inspection.provenance
    text_note = f"sha256 {inspection.text.sha256[:12]}…" if inspection.text.sha256 else ""
    both = f"{seconds(cost.looked.seconds)}; the plain forward took {seconds(cost.plain.seconds)}"
    entries = [
        ("Heads", f"{heads:,}", f"in {len(inspection.layers)} layers, {ATTENDS[inspection.causal]}; {inspection.kind}"),
        ("Text", f"{inspection.queries:,} tokens", text_note),
        ("Computed in", made.dtype, f"on {made.device}"),
        ("Cost of looking", f"{cost.ratio:.2f}×", both),
    ]
    if cost.extra_mb is not None:
        entries.append(("Extra memory", f"{cost.extra_mb:.0f} MB", "peak, beyond the plain forward"))
    return entries


def facts(entries: Sequence[Fact]) -> str:
    return "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}<small>{html.escape(note)}</small></dd></div>"
        for name, value, note in entries
    )


def cards(groups: Sequence[Group], note: str) -> str:
    """HTML: a card for each kind of finding, and what is to be said of all."""
    if not groups:
        return '<p class="hint">No head passed a threshold. The maps below show all of them.</p>'
    each = "".join(_card(group) for group in groups)
    return f'<div class="findings">{each}</div><p class="footnote">{html.escape(note)}</p>'


def _card(group: Group) -> str:
    kind, (meaning, advice) = group.kind, group.words
    more = group.findings[CHIPS:]
    rest = f"<details><summary>and {len(more)} more</summary>{_chips(more)}</details>" if more else ""
    return (
        f'<article class="card finding {kind.tone}"><h3>{html.escape(group.title)}</h3>'
        f'<p class="criterion">{html.escape(group.criterion)}</p>'
        f'<p class="meaning">{html.escape(meaning)}</p><p class="advice">{html.escape(advice)}</p>'
        f"{_chips(group.findings[:CHIPS])}{rest}"
        f'<div class="on-map"><button type="button" data-kind="{kind.name}" aria-pressed="false">'
        "Show on the map</button></div></article>"
    )


def _chips(findings: Sequence[Finding]) -> str:
    items = (
        f'<li><a class="chip" href="#h{found.label}"><b>{found.label}</b><span>{found.value:.3g}</span></a></li>'
        for found in findings
    )
    return f'<ul class="chips">{"".join(items)}</ul>'


def _footer(inspection: Inspection) -> str:
    made = inspection.provenance
    digest = f" Text: {inspection.text.title}, sha256 {inspection.text.sha256}." if inspection.text.sha256 else ""
    return (
        f"Made by softlookup {made.softlookup} with torch {made.torch}. Entropies in nats; values are means over queries, "
        f"the largest logit, bandwidth and prior excepted.{digest}"
    )


def _filled(template: str, **slots: str) -> str:
    """``{{name}}`` replaced in one sweep, so that a slot's content is never searched for slots."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: slots[match.group(1)], template)


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
