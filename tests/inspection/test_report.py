"""The page: complete, small, offline, and safe whatever the text says."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from softlookup.inspection import report
from softlookup.inspection.inspection import Inspection
from softlookup.inspection.report import data as page_data_module
from softlookup.inspection.report.data import page_data, script_json
from softlookup.inspection.report.pack import MISSING, packed, packed_keys

from .planted import inspection

NASTY = [
    "</script><script>alert(1)</script>", "<!--", "<script", "]]>", "&amp;", '"', "'", "\\", "\u2028", "\u2029", "\0",
    "\x1b[31m", "\u202eevil\u202c", "👩‍👩‍👧", "\ufffd", "\ud800", "\n", "\t", "{{model}}", "${1}",
    "<img src=x onerror=alert(1)>",
]  # fmt: skip


class Outline(HTMLParser):
    """Tags and text of a page; scripts and styles as browsers cut them out."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0] if self.tags else "", data))

    def embedded(self) -> dict:
        place = next(i for i, (tag, attrs) in enumerate(self.tags) if attrs.get("id") == "data")
        assert self.tags[place][0] == "script"
        return json.loads(next(text for tag, text in self.texts if tag == "script" and text.startswith('{"tokens"')))


@pytest.fixture(scope="module")
def planted() -> Inspection:
    rows = [["ordinary", "sink", "previous"], ["local", "uniform", "saturated"], ["blow_up", "sink", "ordinary"]]
    return inspection(rows, 96, [f" w{i}" for i in range(96)])


def test_everything_is_on_the_page(planted: Inspection) -> None:
    page = planted.to_html()
    outline = Outline(page)
    data = outline.embedded()
    assert (
        data["tokens"] == planted.tokens and len(data["layers"]) == 3 and len(data["findings"]) == len(planted.findings)
    )
    assert {(view["layer"], view["head"]) for view in data["views"]} == {
        (view.layer, view.head) for view in planted.views
    }
    chips = {attrs["href"] for tag, attrs in outline.tags if tag == "a" and "chip" in (attrs.get("class") or "")}
    assert chips == {f"#h{finding.label}" for finding in planted.findings}
    assert "planted" in page and "1.42×" in page and "96 tokens" in page and planted.text.sha256 in page


def test_the_numbers_are_those_of_the_inspection(planted: Inspection) -> None:
    data = page_data(planted)
    for layer, about in zip(planted.layers, data["layers"], strict=True):
        bits = torch.frombuffer(bytearray(base64.b64decode(about["entropy"]["data"])), dtype=torch.uint16).double()
        low, high = about["entropy"]["low"], about["entropy"]["high"]
        shown = (low + bits / (MISSING - 1) * (high - low)).reshape(layer.entropy.shape)
        torch.testing.assert_close(shown.float(), layer.entropy, atol=1e-3, rtol=0)
        torch.testing.assert_close(
            torch.tensor(data["values"]["max_logit"][layer.index]), layer.means["max_logit"], rtol=1e-3, atol=1e-6
        )


def test_it_opens_offline(planted: Inspection) -> None:
    page = planted.to_html()
    outline = Outline(page)
    for tag, attrs in outline.tags:
        assert "src" not in attrs and tag not in ("link", "iframe", "object", "base")
        assert not (attrs.get("href") or "#").startswith(("http", "//"))
    assert "default-src 'none'" in page
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|eval|innerHTML|document\.write|import\()", page)
    without_namespace = page.replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in without_namespace and "https:" not in without_namespace and "@import" not in page


@pytest.mark.parametrize("nasty", NASTY)
def test_any_text_is_only_text(nasty: str) -> None:
    clean = inspection([["sink", "local"]], 40, ["word"] * 40, "model")
    dirty = inspection([["sink", "local"]], 40, [nasty] * 40, f"model {nasty}")
    clean.notes.append("note")
    dirty.notes.append(nasty)
    object.__setattr__(dirty.text, "title", nasty)
    outline = Outline(dirty.to_html())
    assert [tag for tag, _ in outline.tags] == [tag for tag, _ in Outline(clean.to_html()).tags]
    assert outline.embedded()["tokens"] == [nasty] * 40
    assert f"model {nasty}" in "".join(text for tag, text in outline.texts if tag == "h1")


def test_script_json_never_ends_its_element() -> None:
    text = script_json({"a": "</script><!--&\u2028\u2029"})
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == {"a": "</script><!--&\u2028\u2029"}


def test_an_inspection_without_findings_tokens_or_views() -> None:
    page = inspection([["ordinary"]], 64).to_html()
    assert "No head passed a threshold" in page and "Nothing stands out" in page and "No head has a token view" in page
    assert '<section id="tokens" aria-labelledby="tokens-title" hidden>' in page


def test_it_says_what_it_leaves_out(planted: Inspection) -> None:
    page = planted.to_html()
    assert "n×n weights of a head are never stored" in page
    assert f"{len(planted.views)} of 9 heads have a token view, with the 8 strongest keys of each query" in page
    assert re.search(r"together they cover \d+% of those heads", page)
    long = inspection([["ordinary"]], 700)
    assert "Entropy curves have 512 points for 700 queries" in long.to_html()


def test_it_says_what_computed_it_and_how_findings_were_judged(planted: Inspection) -> None:
    outline = Outline(planted.to_html())
    text = " ".join(text for tag, text in outline.texts if tag not in ("script", "style"))
    for part in ("bfloat16", "on cuda:1", "softlookup 0.1.0 with torch 2.13.0", "in 3 layers, causal;"):
        assert part in text
    assert "Findings count only queries that see at least 16 keys" in text
    assert "take every query." in text


def test_maps_that_show_nothing_are_not_offered(planted: Inspection) -> None:
    offered = {stat["name"]: stat["mapped"] for stat in page_data(planted)["stats"]}
    assert {name for name, mapped in offered.items() if not mapped} == {"visible", "sink_weight"}
    assert all(stat["mapped"] for stat in page_data(inspection([["ordinary"]], 48))["stats"])


def test_cards_of_encoders_do_not_speak_of_decoders(planted: Inspection) -> None:
    encoder = replace(planted, findings=[replace(finding, causal=False) for finding in planted.findings])
    shown = {made.causal: " ".join(t for tag, t in Outline(made.to_html()).texts if tag == "p") for made in (planted,)}
    assert "evict" in shown[True] and "induction" in shown[True]
    cards = " ".join(text for tag, text in Outline(encoder.to_html()).texts if tag == "p")
    assert "evict" not in cards and "induction" not in cards


def test_only_what_is_there_goes_onto_the_page() -> None:
    """The DOM writes a null as the word: nothing but `fill`, which leaves it out, may replace children."""
    scripts = [path.read_text() for path in Path(report.__file__).parent.glob("*.js")]
    assert sum(script.count("replaceChildren(") for script in scripts) == 1
    assert any("node.replaceChildren(...present(children))" in script for script in scripts)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("causal", [True, False])
def test_in_a_browser(planted: Inspection, tmp_path: Path, causal: bool) -> None:
    """A head without findings, one with them, and the heads of one finding, each chosen by a click."""
    clicks = ("[data-layer='2'][data-head='2']", "[data-layer='0'][data-head='1']", "[data-kind='sink']")
    assert {(2, 2), (0, 1)} & {(found.layer, found.head) for found in planted.findings} == {(0, 1)}
    act = "".join(
        f'document.querySelector("{place}").click();'
        'document.body.append(Object.assign(document.createElement("pre"), '
        '{textContent: document.getElementById("head").textContent}));'
        for place in clicks
    )
    made = replace(planted, layers=[replace(layer, causal=causal) for layer in planted.layers])
    page = tmp_path / "page.html"
    page.write_text(made.to_html().replace("</body>", f"<script>{act}</script></body>"), "utf-8", "replace")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    plain, sink, _ = map(html.unescape, re.findall("<pre>(.*?)</pre>", done.stdout))
    assert plain.startswith("Layer 2, head 2") and "null" not in plain
    assert plain.endswith("No token view: rerun with --heads 2.2 (in Python heads=[(2, 2)]).")
    assert "Each point is a query." in plain
    assert sink.startswith("Layer 0, head 1") and "null" not in sink and "Sink head. mean weight" in sink
    assert ("Never evict" in sink) is causal and ("a [CLS] token" in sink) is not causal
    text = [text for _, text in Outline(done.stdout).texts]
    assert "Every sink head; others are dimmed." in text and "entropy ratio" in text and "visible keys" not in text


def test_accessible_names(planted: Inspection) -> None:
    outline = Outline(planted.to_html())
    assert dict(outline.tags)["html"] == {"lang": "en"}
    identifiers = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    for _, attrs in outline.tags:
        assert attrs.get("aria-labelledby", identifiers[0]) in identifiers
        if attrs.get("role") in ("grid", "listbox", "radiogroup"):
            assert attrs.get("aria-label")


def test_size_at_4096_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of 30 × 9 heads with 16 token views over 4,096 tokens, by what its parts weigh."""
    queries, heads, views = 4096, 270, 16
    curves = len(packed(torch.rand(heads, 512))["data"])
    view = len(packed_keys(torch.randint(0, queries, (queries, 8)), queries)["data"]) + len(
        packed(torch.rand(queries, 8))["data"]
    )
    assert curves + views * view < 6_000_000
    monkeypatch.setattr(page_data_module, "VIEW_BUDGET", 96 * 3 * 2)
    small = page_data(inspection([["sink", "local", "previous"]], 96))
    assert {view["shown"] for view in small["views"]} == {2}


def test_curves_get_coarser_before_the_page_gets_too_large(
    planted: Inspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_data_module, "CURVE_BUDGET", 9 * 96 // 2)
    data = page_data(planted)
    assert len(data["axes"][0]["positions"]) == 48 and data["rowsPerPoint"] == 2


def test_packing() -> None:
    values = torch.tensor([1.0, float("nan"), 3.0, float("inf")])
    found = packed(values)
    assert (found["low"], found["high"]) == (1.0, 3.0)
    assert list(memoryview(base64.b64decode(found["data"])).cast("H")) == [0, MISSING, MISSING - 1, MISSING]
    assert list(memoryview(base64.b64decode(packed_keys(torch.tensor([5, -1]), 100)["data"])).cast("H")) == [5, 65535]
    assert packed_keys(torch.tensor([70000, -1]), 80000)["width"] == 4
    assert packed(torch.full((3,), float("nan")))["low"] == 0.0


def test_in_a_notebook(planted: Inspection) -> None:
    shown = planted._repr_html_()
    (tag, attrs), *rest = Outline(shown).tags
    assert tag == "iframe" and rest == [] and attrs["sandbox"] == "allow-scripts"
    assert attrs["srcdoc"] == planted.to_html()
