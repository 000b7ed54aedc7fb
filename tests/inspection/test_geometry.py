"""The geometry of a whole model: the heads that stand out, the screen, the numbers in JSON."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from softlookup.errors import SoftlookupError
from softlookup.geometry import MEANINGS
from softlookup.inspection.geometry import ModelGeometry, screen
from softlookup.inspection.terminal import _plain


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
    named = {each.title: [label for label, _ in each.heads] for each in found.standing}
    assert named == {
        "symmetric heads": ["1.1"],
        "copying heads": ["1.1"],
        "rank-starved heads": ["1.2"],
        "duplicate pairs of heads": ["1.0=1.3"],
    }
    text = _plain(screen(found))
    assert all(line == line.rstrip() and len(line) <= 80 for line in text.splitlines())
    assert "2 layers, 8 heads of width 16" in text and all(x.title in text for x in MEANINGS.values())
    assert "1 symmetric head  " in text and "1 duplicate pair of heads" in text


def test_distance_matters_where_positions_are_rotary(model):
    near, far = (ModelGeometry.of(model, "planted", distance) for distance in (0.0, 9.0))
    assert near.distance == 0 and far.distance == 9
    assert float(near.all("symmetric_share")[0][5]) > 0.99 > float(far.all("symmetric_share")[0][5])


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
