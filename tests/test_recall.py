"""Associative recall: the data's laws, a short real run, and that a run goes on as if it had not been stopped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.recall import MIXERS, SETTINGS, Model, Setting, Table, Training, sequences

SMALL = Setting(16, 2, (32,), batch=16, steps=200)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("setting", [SMALL, *SETTINGS], ids=str)
def test_each_key_is_asked_once_after_its_pair(setting):
    vocabulary, n = setting.vocabularies[-1], setting.pairs
    tokens, at, values = sequences(setting, vocabulary, 50, seed=3)
    keys, held = tokens[:, : 2 * n].unflatten(1, (n, 2)).unbind(2)
    assert ((keys > 0) & (keys < vocabulary // 2)).all() and ((held >= vocabulary // 2) & (held < vocabulary)).all()
    assert all(len(row.unique()) == n for part in (keys, held, at) for row in part)
    assert (at >= 2 * n).all() and (at < setting.length).all()
    asked = tokens.gather(1, at)
    same = asked[:, :, None] == keys[:, None]
    assert (same.sum(2) == 1).all() and (values == (same * held[:, None]).sum(2)).all()
    assert ((tokens[:, 2 * n :] > 0).sum(1) == n).all()  # the rest is blank


def test_seeds_alone_decide_and_gaps_are_of_a_power_law():
    torch.manual_seed(1)
    first, other = (sequences(SMALL, 32, 20_000, seed)[1] for seed in (5, 6))
    torch.manual_seed(2)
    assert (sequences(SMALL, 32, 20_000, 5)[1] == first).all() and (first != other).any()
    share = torch.bincount((first[:, 0] - 4) // 2) / len(first)
    law = torch.arange(1, 7) ** (0.01 - 1)
    torch.testing.assert_close(share, law / law.sum(), atol=4 * (0.25 / len(first)) ** 0.5, rtol=0)  # four deviations


@pytest.mark.parametrize("mixer", MIXERS)
def test_no_answer_depends_on_what_comes_after(mixer):
    tokens, at, _ = sequences(SMALL, 32, 4, 0)
    model, last = Model(mixer, 32).double(), at.max(1, keepdim=True).values
    after = torch.arange(16) > last
    got, want = model(torch.where(after, 7, tokens), at), model(tokens, at)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert after.any()


@pytest.mark.parametrize(("mixer", "steps"), [("exact", 100), ("delta", 200)])
def test_two_pairs_are_learned(mixer, steps, tmp_path):
    training = Training(replace(SMALL, steps=steps), mixer, 32, 3e-3, tmp_path / "run.pt")
    assert training.held_out()[1] < 0.2
    training.go()
    assert training.curve[-1][2] > 0.95


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_run_that_was_stopped_goes_on_the_same(mixer, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.recall.EVERY", 4)
    whole, parts = (tmp_path / f"{name}.pt" for name in ("whole", "parts"))
    want = Training(SMALL, mixer, 32, 3e-3, whole)
    want.go(10)
    for steps in (3, 1, 6):
        got = Training(SMALL, mixer, 32, 3e-3, parts)
        got.go(steps)
    assert got.step == want.step == 10 and got.curve == want.curve and len(got.curve) == 2
    torch.testing.assert_close(got.model.state_dict(), want.model.state_dict(), rtol=0, atol=0)


def test_a_smaller_vocabulary_begins_with_the_weights_of_a_larger_one(tmp_path):
    large = Training(SMALL, "exact", 64, 3e-3, tmp_path / "large.pt")
    large.go(1)
    small = Training(SMALL, "exact", 32, 3e-3, tmp_path / "small.pt", tmp_path / "large.pt")
    tokens, at, _ = sequences(SMALL, 32, 4, 0)
    logits = large.model(torch.where(tokens < 16, tokens, tokens + 16), at)
    torch.testing.assert_close(small.model(tokens, at), torch.cat([logits[..., :16], logits[..., 32:48]], -1))
    assert small.step == 0


def test_what_is_known_is_not_trained_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.recall.SETTINGS", (SMALL,))
    table = Table(tmp_path / "recall.json", tmp_path)
    table.rates = {mixer: {"rate": 3e-3} for mixer in MIXERS}
    for mixer, recall in zip(MIXERS, (0.995, 0.3, 0.92, 0.5), strict=True):
        run = {"length": 16, "pairs": 2, "mixer": mixer, "vocabulary": 32, "rate": 3e-3, "steps": 9, "seconds": 1}
        table.runs.append({**run, "recall": recall, "curve": []})
    table.save()
    again = Table(tmp_path / "recall.json", tmp_path)
    again.fill()
    assert (again.rates, again.runs) == (table.rates, table.runs) and not list(tmp_path.glob("*.pt"))
    again.report()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "| exact | 99.5% of V = 32 | none | none | hit |"
    assert lines[2] == "| linear | 30.0% of V = 32 | (16, 2) | (256, 16) | miss |"
