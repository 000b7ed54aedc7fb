"""Whisper hears two sentences: does the cross attention of a token look at the moment at which it is said?"""

from __future__ import annotations

import wave
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from softlookup.inspection.loading import Loaded, load

from ..run import Given
from .looking import looked

RATE, FRAME = 16_000, 0.02  # samples in a second, seconds for each key
SENTENCES = {
    "not_an_ill_disposed.wav": " He was not an ill-disposed young man.",
    "made_amiable.wav": " He might even have been made amiable himself.",
}


@cache
def loaded() -> Loaded:
    return load("whisper", text=False)


def heard(seed: int) -> tuple[np.ndarray, str]:
    """Both sentences, in an order and with a pause that the seed draws."""
    drawn = np.random.default_rng(seed)
    names = drawn.permutation(list(SENTENCES)).tolist()
    pause = np.zeros(drawn.integers(RATE // 5, RATE), np.float32)
    first, second = (samples(Path(__file__).with_name(name)) for name in names)
    return np.concatenate([first, pause, second]), "".join(SENTENCES[name] for name in names)


def samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 2**15


def in_order(times: list[float]) -> float:
    """Spearman's rank correlation with 0, 1, 2, …; 0 where all are equal."""
    from scipy.stats import spearmanr

    return float(spearmanr(range(len(times)), times).statistic) if len(set(times)) > 1 else 0.0


def measure(given: Given) -> dict[str, Any]:
    from transformers import WhisperFeatureExtractor

    model, tokenizer, config = loaded().model, loaded().tokenizer, cast(Any, loaded().model.config)
    sound, said = heard(given.seed)
    features = WhisperFeatureExtractor()(sound, sampling_rate=RATE, return_tensors="pt").input_features
    start = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    tokens = tokenizer.encode(said, add_special_tokens=False)
    layers = looked(model, given, input_features=features, decoder_input_ids=torch.tensor([start + tokens]))
    cross = [layer.rows("argmax")[0, :, 1:-1] * FRAME for layer in layers if layer.cross]  # each query asks for the next token
    times = [cross[layer][head].tolist() for layer, head in config.alignment_heads]
    best = max(times, key=in_order)
    return {"time": in_order(best), "times": [round(time, 2) for time in best]}
