"""A real training, of a minute: 2,000 words of the dictionary."""

from __future__ import annotations

import time

import pytest

from softlookup.training import Config, fit

PER = 0.35
"""What the test set's phones may be wrong by: 0.3 was measured."""


@pytest.mark.slow
def test_two_thousand_words_in_a_minute(tmp_path):
    config = Config(words=2000, epochs=40, batch=32, rate=3e-3, average=0.99, options={"width": 96, "embedding": 48, "dropout": 0.2})
    start = time.monotonic()
    run = fit(config, tmp_path / "run")
    seconds = time.monotonic() - start
    scores = run.evaluate(run.record.config.corpus().test[::6], beam=3)
    print(f"{seconds:.0f} s, WER {scores.wer:.1%}, PER {scores.per:.1%}")
    assert scores.per <= PER
