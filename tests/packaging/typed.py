"""The public face under `mypy --strict`, as a user's own program sees it: `make lint` checks this file, nothing runs it."""

from __future__ import annotations

from typing import assert_type

import torch
from torch import Tensor

import softlookup as sl
from softlookup import linear, manifolds, memory, nn, remedies, seq2seq, smoothing, sparse, training, watching


def operator(q: Tensor) -> None:
    assert_type(sl.attend(q, q, q), Tensor)
    y, stats = sl.attend(q, q, q, score=sl.Gaussian(2.0), normalizer=sl.Entmax(1.5), stats=("entropy",))
    assert_type(y, Tensor)
    assert_type(stats.entropy, Tensor)
    mask = (sl.Causal() & sl.Window(3)) | ~sl.Prefix(2)
    part = sl.merge(sl.lookup(q, q, q, mask=mask, total_keys=16), sl.lookup(q, q, q, key_offset=8, total_keys=16))
    assert_type(part.value, Tensor)
    assert_type(part.stats("entropy"), Tensor)
    assert_type(part.stats("entropy", "distance"), sl.Stats)
    assert_type(sl.divergence((q, q), (q, q)), Tensor)
    assert_type(sl.received(q, q), Tensor)
    assert_type(sl.explain(q, q, q).engine, str)
    assert_type(sl.scaled_dot_product_attention(q, q, q, is_causal=True), Tensor)
    assert_type(sl.error_against_exact(lambda q, k, v: linear.attend(q, k, v), q, q, q), linear.Error)


class Own(sl.Score):
    def block(self, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return -(q.unsqueeze(-2) - k.unsqueeze(-3)).abs().sum(-1)


def watched(model: torch.nn.Module, x: Tensor) -> None:
    alarms = watching.Alarms()
    with sl.watch(model) as seen, watching.JSONLines("run.jsonl") as record:
        model(x)
        assert_type(seen.table(), watching.Table)
        for alarm in alarms(0, seen):
            assert_type(alarm, watching.Alarm)
        record(0, seen, loss=1.0)
        assert_type(remedies.entropy_penalty(seen), Tensor)
    for layer in seen.layers.values():
        assert_type(layer.mean("entropy"), Tensor)
    assert_type(sl.look(model, x).to_json(), str)


def others(q: Tensor) -> None:
    found = sparse.attend(q, q, q, tolerance=0.01)
    assert_type(found.value, Tensor)
    assert_type(linear.attend(q, q, q), Tensor)
    assert_type(manifolds.Lorentz().distance(q, q), Tensor)
    nn.MultiHeadAttention(8, 2)(q)  # torch types no call of a module
    with memory.SoftTable.create("rows", key_width=3, value_width=2) as table:
        assert_type(table.lookup(q), memory.Found)
    model = seq2seq.Attentive(30, 45)
    assert_type(seq2seq.search(model, q, q, begin=1, end=2), list[list[seq2seq.Hypothesis]])
    assert_type(smoothing.smooth(q, q, q), smoothing.Smoothed)
    assert_type(training.load("runs/g2p"), training.Run)
