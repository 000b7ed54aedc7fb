"""The callback in a real Trainer: records, alarms, and the model left as it was."""

from __future__ import annotations

import logging

import pytest
import torch

import softlookup as sl
from softlookup.integrations.hf_trainer import WatchCallback
from softlookup.watching import RULES, Alarms, Callback, JSONLines, read_records

from .architectures import BY_NAME

pytest.importorskip("accelerate")


def trained(folder, model, callback, **options):
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    data = [{"input_ids": (ids := torch.randint(3, 96, (12,))), "labels": ids} for _ in range(16)]
    settings = {"max_steps": 6, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": [], "disable_tqdm": True}
    arguments = TrainingArguments(str(folder), save_strategy="no", logging_strategy="no", **settings | options)
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data[:2], callbacks=[callback])
    trainer.train()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}, {"bf16": True}])
def test_records_of_a_trainer(tmp_path, options):
    model = BY_NAME["llama"].build("sdpa")
    with JSONLines(tmp_path / "watch.jsonl") as record:
        trained(tmp_path, model, WatchCallback(record, steps=2, stats=("entropy", "max_logit")), **options)
    records = read_records(tmp_path / "watch.jsonl")
    assert [r["step"] for r in records] == [2, 4, 6]
    queries = 2 * 2 * 12 * options.get("gradient_accumulation_steps", 1)
    assert all(layer["count"] == [queries] * len(layer["count"]) for r in records for layer in r["layers"].values())
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_what_was_seen_before_an_evaluation_is_recorded_and_the_evaluation_is_not(tmp_path):
    with JSONLines(tmp_path / "watch.jsonl") as record:
        callback = WatchCallback(record, steps=4, stats=("entropy",))
        trained(tmp_path, BY_NAME["llama"].build("sdpa"), callback, eval_strategy="steps", eval_steps=3)
    steps = [(r["step"], layer["count"][0]) for r in read_records(tmp_path / "watch.jsonl") for layer in r["layers"].values()]
    assert sorted(set(steps)) == [(3, 3 * 24), (4, 24), (6, 2 * 24)]


@pytest.mark.slow
def test_alarms_of_a_trainer_are_logged(tmp_path, caplog):
    (rule,) = (rule for rule in RULES if rule.kind == "logit level")
    model, numbers = BY_NAME["llama"].build("sdpa"), []
    callback = WatchCallback(Callback(lambda x, step: numbers.append(x)), alarms=Alarms((rule,), {"logit level": -1e3}))
    with caplog.at_level(logging.WARNING, "softlookup"):
        trained(tmp_path, model, callback)
    assert len(numbers) == 6 and all("epoch" in x for x in numbers)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    assert len(caplog.messages) == layers * heads and "logit level" in caplog.messages[0]


@pytest.mark.slow
def test_an_exception_and_close(tmp_path):
    def fails(numbers, step):
        raise RuntimeError("full")

    model = BY_NAME["llama"].build("sdpa")
    callback = WatchCallback(Callback(fails))
    with pytest.raises(RuntimeError, match="full"):
        trained(tmp_path, model, callback)
    callback.close()
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(sl.SoftlookupError, match="steps of at least 1, got 0"):
        WatchCallback(steps=0)
