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
from typing import TYPE_CHECKING

from ..cost import seconds
from ..findings import JUDGED_ON, Finding, Group, grouped
from .data import keys_shown, page_data, script_json

if TYPE_CHECKING:
    from ..inspection import Inspection

SCRIPTS = ("data", "colour", "map", "chart", "head", "tokens", "main")
ATTENDS = {True: "causal", False: "not causal", None: "causal in part"}
CHIPS = 9
"""Heads that a finding shows before "and … more"."""


def page(inspection: Inspection) -> str:
    """The whole page. Everything that is text of the model or the user is escaped here, or built by the script as
    text nodes."""
    script = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    heads = len(inspection.heads())
    return _filled(
        _asset("page.html"),
        version=html.escape(inspection.provenance.softlookup),
        title=html.escape(f"{inspection.model} · softlookup"),
        style=_asset("style.css"),
        model=html.escape(inspection.model),
        lead=_lead(inspection, heads),
        facts=_facts(inspection, heads),
        findings=_findings(grouped(inspection.findings)),
        tokens_hidden="" if inspection.views else " hidden",
        left_out="".join(f"<li>{html.escape(line)}</li>" for line in left_out(inspection)),
        footer=html.escape(_footer(inspection)),
        data=script_json(page_data(inspection)),
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
    groups = grouped(inspection.findings)
    if not groups:
        return opening + " Nothing stands out."
    named = [re.sub(r"^\d+", r"<b>\g<0></b>", html.escape(group.title)) for group in groups]
    listing = named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]
    return f"{opening} Found: {listing}."


def _facts(inspection: Inspection, heads: int) -> str:
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
    return "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}<small>{html.escape(note)}</small></dd></div>"
        for name, value, note in entries
    )


def _findings(groups: Sequence[Group]) -> str:
    if not groups:
        return '<p class="hint">No head passed a threshold. The maps below show all of them.</p>'
    cards = "".join(_card(group) for group in groups)
    note = f"{JUDGED_ON} The maps and the numbers of a head take every query."
    return f'<div class="findings">{cards}</div><p class="footnote">{html.escape(note)}</p>'


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
        f"the largest logit excepted.{digest}"
    )


def _filled(template: str, **slots: str) -> str:
    """``{{name}}`` replaced in one sweep, so that a slot's content is never searched for slots."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: slots[match.group(1)], template)


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
