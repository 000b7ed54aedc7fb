"""The geometry of a whole model: the heads that stand out, the screen, the numbers in JSON."""

from __future__ import annotations

import html
import json
import re
import subprocess

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

import softlookup as sl
from softlookup.errors import SoftlookupError
from softlookup.geometry import MEANINGS, measure
from softlookup.inspection.findings import grouped
from softlookup.inspection.geometry import ModelGeometry, screen
from softlookup.inspection.terminal import _plain
from softlookup.integrations.projections import projections

from .test_report import CHROMIUM


@pytest.fixture
def model():
    """Two layers of four heads; in the second, head 1 matches alike and copies, 2 is of rank 1, 3 does what 0 does."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=128, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=16
    )
    model = LlamaModel(config)
    attention = model.layers[1].self_attn
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
        q, k, v = (x.weight.view(4, 16, 128) for x in (attention.q_proj, attention.k_proj, attention.v_proj))
        k[1] = q[1]
        attention.o_proj.weight[:, 16:32] = v[1].T
        q[2] = q[2, :1]
        q[3], k[3] = q[0], k[0]
    return model


def test_heads_that_stand_out_are_named(model):
    found = ModelGeometry.of(model, "planted")
    named = {group.title: [each.label for each in group.findings] for group in grouped(found.findings)}
    assert named == {
        "1 rank-starved head": ["1.2"],
        "2 heads that repeat another": ["1.0", "1.3"],
        "1 symmetric head": ["1.1"],
        "1 copying head": ["1.1"],
    }
    assert found.layers[1].most_alike(0) == (3, pytest.approx(1))
    text = _plain(screen(found))
    assert all(line == line.rstrip() and len(line) <= 80 for line in text.splitlines())
    assert "2 layers, 8 heads of width 16" in text and all(x.title in text for x in MEANINGS.values())
    assert "1 symmetric head  " in text and "2 heads that repeat another" in text


def test_distance_matters_where_positions_are_rotary(model):
    near, far = (ModelGeometry.of(model, "planted", distance) for distance in (0.0, 9.0))
    assert near.distance == 0 and far.distance == 9
    assert float(near.all("symmetric_share")[0][5]) > 0.99 > float(far.all("symmetric_share")[0][5])


def test_distance_is_that_of_compositions_and_pairs_too(model):
    near, far = (ModelGeometry.of(model, "planted", distance).compositions for distance in (0.0, 9.0))
    for kind, same in (("query", False), ("key", False), ("value", True)):
        a, b = ([x.strength for x in some if x.kind == kind] for some in (near, far))
        assert (a == pytest.approx(b)) is same


def test_a_head_of_zeros_spoils_no_other_heads_numbers(model):
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.weight[:16] = 0
    assert "nan" not in _plain(screen(ModelGeometry.of(model, "planted")))


def test_encoders_and_decoders_do_not_write_to_one_stream():
    from ..integrations.architectures import BY_NAME

    assert ModelGeometry.of(BY_NAME["bart"].build(), "bart").compositions == ()


def test_numbers_in_json(model, tmp_path):
    found = ModelGeometry.of(model, "planted")
    found.save_json(tmp_path / "a.json")
    said = json.loads((tmp_path / "a.json").read_text())
    assert said["model"] == "planted" and len(said["layers"]) == 2 and set(said["measures"]) == set(MEANINGS)
    assert said["layers"][1]["copying"]["value"][1] == pytest.approx(1, abs=0.01)
    assert said["layers"][0]["overlap"]["chance"] == pytest.approx([16 / 128] * 4)


def test_numbers_never_replace_somebody_elses_file(model, tmp_path):
    found = ModelGeometry.of(model, "planted")
    path = tmp_path / "notes.json"
    path.write_text("mine")
    with pytest.raises(SoftlookupError, match="was not written by softlookup"):
        found.save_json(path)
    assert path.read_text() == "mine"
    found.save_json(tmp_path / "own.json")
    found.save_json(tmp_path / "own.json")  # over its own


def looked_at(model):
    return sl.look(model, input_ids=torch.randint(0, 32, (2, 40), generator=torch.Generator().manual_seed(0)), name="planted")


def test_an_inspection_reads_weights_and_what_goes_through_them(model):
    found, alone = looked_at(model), ModelGeometry.of(model, "planted")
    read = []
    for layer in model.layers:
        layer.self_attn.q_proj.register_forward_pre_hook(lambda _, args: read.append(args[0].flatten(0, 1).detach()))
    with torch.no_grad():
        model(torch.randint(0, 32, (2, 40), generator=torch.Generator().manual_seed(0)))
    for layer, other, each, inputs in zip(found.layers, alone.layers, projections(model), read, strict=True):
        want = measure(each.weights, inputs)
        for name in MEANINGS:
            torch.testing.assert_close(layer.geometry.measures[name].value, other.measures[name].value)
            torch.testing.assert_close(layer.geometry.read[name].value, want[name].value, rtol=1e-5, atol=1e-6)
    kinds = {(x.kind, x.label) for x in found.findings}
    assert {("rank_starved", "1.2"), ("symmetric", "1.1"), ("copying", "1.1"), ("duplicate", "1.0")} <= kinds
    rows = found.as_dict()["heads"]
    assert rows[5]["weights_symmetric_share"] > 0.99 and "symmetric" in rows[5]["findings"]
    assert "symmetric share, layer by head" in str(found.table("symmetric_share"))


def test_models_whose_weights_cannot_be_read_say_so():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 24)

        def forward(self, x):
            q, k, v = self.inner(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    found = sl.look(Own(), torch.randn(1, 20, 8))
    assert any("the weights were not read: geometry: expected attention" in note for note in found.notes)
    assert found.measures == [] and found.layers[0].geometry is None and found.as_dict()["heads"][0]["entropy"] is not None


def test_cross_attention_is_read_by_its_weights_alone():
    from transformers import T5Config, T5Model

    torch.manual_seed(0)
    model = T5Model(T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4))
    found = sl.look(model, input_ids=torch.arange(20)[None], decoder_input_ids=torch.arange(18)[None])
    kinds = {layer.cross: layer.geometry.read is None for layer in found.layers}
    assert kinds == {True: True, False: False}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_tab_and_the_page_in_a_browser(model, tmp_path):
    for name, page, clicks in (
        ("both", looked_at(model).to_html(), ["[data-tab=weights]", "[data-layer='1'][data-head='1']", "[data-kind=copying]"]),
        ("weights", ModelGeometry.of(model, "planted").to_html(), ["[data-layer='1'][data-head='1']"]),
    ):
        act = "".join(f'document.querySelector("{place}").click();' for place in clicks) + (
            'document.body.append(Object.assign(document.createElement("pre"), '
            '{textContent: document.getElementById("head").textContent}));'
        )
        path = tmp_path / f"{name}.html"
        path.write_text(page.replace("</body>", f"<script>{act}</script></body>"), "utf-8", "replace")
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120)
        (panel,) = map(html.unescape, re.findall("<pre>(.*?)</pre>", done.stdout, re.DOTALL))
        assert panel.startswith("Layer 1, head 1") and "Symmetric head." in panel and "null" not in panel
        assert all(meaning.title in panel and meaning.sentence in panel for meaning in MEANINGS.values())
        assert ("in this text" in panel) is (name == "both") and "Most alike in its layer: 1." in panel


def test_the_report_of_weights_is_written_whole_and_over_its_own_only(model, tmp_path):
    found = ModelGeometry.of(model, "<planted>")
    found.save_html(tmp_path / "a.html")
    found.save_html(tmp_path / "a.html")
    assert "&lt;planted&gt;" in (tmp_path / "a.html").read_text()
    (tmp_path / "b.html").write_text("mine")
    with pytest.raises(SoftlookupError, match="was not written by softlookup"):
        found.save_html(tmp_path / "b.html")
