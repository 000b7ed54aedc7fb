"""The loop: it learns, it goes on after any death to the same bits, and refuses what would not be the same run."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import softlookup as sl
from softlookup.training import Config, fit, load
from softlookup.training import checkpoint as checkpoints
from softlookup.training.pack import pack


def small(path, **changes) -> Config:
    said = {"task": "pairs", "pairs": str(path), "target_units": "words", "epochs": 3, "batch": 32, "rate": 0.01, "threads": 1}
    return Config(**(said | {"options": {"width": 24, "embedding": 12, "dropout": 0.1}} | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoints.load(folder / "checkpoint.safetensors")[0]


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "words_per_second")} for line in lines]


def same(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        assert torch.equal(x, theirs[name]), name
    assert metrics(a) == metrics(b)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def test_a_packed_model_is_not_trained_over(reversals, tmp_path):
    """A folder with a trained model and no checkpoint: going on would begin anew and keep a worse one."""
    config = small(reversals)
    fit(config, tmp_path / "run")
    pack(tmp_path / "run", tmp_path / "packed")
    before = (tmp_path / "packed" / "model.safetensors").read_bytes()
    with pytest.raises(sl.SoftlookupError, match="without one; left as it is"):
        fit(config, tmp_path / "packed", resume=True)
    assert (tmp_path / "packed" / "model.safetensors").read_bytes() == before


def test_another_checkpoint_is_told(reversals, tmp_path):
    fit(small(reversals, epochs=1), tmp_path / "run")
    for other in ("model.safetensors", "checkpoint.safetensors"):
        fit(small(reversals, epochs=1, options={"width": 8, "embedding": 4}), tmp_path / other)
        (tmp_path / "run" / "checkpoint.safetensors").write_bytes((tmp_path / other / other).read_bytes())
        with pytest.raises(sl.SoftlookupError, match=r"checkpoint.safetensors: expected the checkpoint of this run"):
            fit(small(reversals, epochs=1), tmp_path / "run", resume=True)


def test_a_run_of_a_larger_machine_can_be_asked(reversals, tmp_path):
    fit(small(reversals, epochs=1), tmp_path / "run")
    said = json.loads((tmp_path / "run" / "run.json").read_text())
    said["config"]["threads"] = 10**6
    (tmp_path / "run" / "run.json").write_text(json.dumps(said))
    run = load(tmp_path / "run")
    assert run.predict([run.symbols("ab")])
    with pytest.raises(sl.SoftlookupError, match="threads: expected at most"):
        fit(run.record.config, tmp_path / "run", resume=True)


def test_an_ensemble_is_of_one_task(tmp_path):
    """Targets with as many symbols, which are not the same ones."""
    lines = [f"{a}{b}{c}\t{b}{a}" for a in "abcd" for b in "abcd" for c in "abcd"]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    for units in ("characters", "words"):
        fit(small(tmp_path / "pairs.tsv", target_units=units, epochs=1), tmp_path / units)
    with pytest.raises(sl.SoftlookupError, match="the data and the units of"):
        load(tmp_path / "characters", tmp_path / "words")


class Killed(Exception):
    pass


@pytest.mark.parametrize("model", ["attentive", "fixed", "transformer"])
def test_a_run_that_died_goes_on_to_the_same_bits(reversals, tmp_path, model):
    options = {"width": 16, "dropout": 0.1} | ({"heads": 2, "layers": 1} if model == "transformer" else {"embedding": 8})
    config = small(reversals, model=model, options=options)
    fit(config, tmp_path / "whole")
    steps = 0

    def die(progress):
        nonlocal steps
        steps += 1
        if steps in (4, 13, 17):
            raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            fit(config, tmp_path / "parts", resume=True, say=die, every=0)
    fit(config, tmp_path / "parts", resume=True, say=die, every=0)
    same(tmp_path / "whole", tmp_path / "parts")


def test_killed_processes_go_on_too(reversals, tmp_path):
    config = small(reversals, epochs=6)
    fit(config, tmp_path / "whole")
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    context, deaths = multiprocessing.get_context("forkserver"), 0
    context.set_forkserver_preload(["softlookup.training"])  # imported once, not by each process
    for _ in range(20):
        process = context.Process(target=fit, args=(config, tmp_path / "killed"), kwargs={"resume": True, "every": 0.0})
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process.start()
        while process.is_alive() and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(0.05 * (deaths % 3))
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        deaths += 1
    else:
        fit(config, tmp_path / "killed", resume=True)
    assert deaths >= 2
    same(tmp_path / "whole", tmp_path / "killed")


def test_it_learns_and_is_asked_from_its_folder(reversals, tmp_path):
    run = fit(small(reversals, epochs=30, options={"width": 48, "embedding": 24}), tmp_path / "run")
    corpus = run.record.config.corpus()
    assert run.evaluate(corpus.test).wer < 0.25
    again = load(tmp_path / "run")
    sources = [pair.source for pair in corpus.test]
    assert [x[0][0] for x in again.predict(sources)] == [x[0][0] for x in run.predict(sources)]
    lines = metrics(tmp_path / "run")
    assert [line["epoch"] for line in lines] == list(range(1, 31)) and lines[-1]["loss"] < lines[0]["loss"]
    assert 0 < lines[-1]["attention_entropy"] < 1.4 and any((tmp_path / "run" / "tensorboard").iterdir())
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["epochs"] == 30 and len(record["data"]["checksum"]) == 64 and "torch" in record["versions"]


def test_another_run_is_refused(reversals, tmp_path):
    config = small(reversals, epochs=1)
    fit(config, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    for changed, resume, message in (
        (config, False, "holds a run already; expected --resume"),
        (replace(config, rate=0.02), True, "rate=0.01, got rate=0.02"),
        (replace(config, seed=1), True, "seed=0, got seed=1"),
    ):
        with pytest.raises(sl.SoftlookupError, match=message):
            fit(changed, tmp_path / "run", resume=resume)
    reversals.write_text(reversals.read_text() + "dddd\tx\n")
    with pytest.raises(sl.SoftlookupError, match="got other data"):
        fit(config, tmp_path / "run", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(sl.SoftlookupError, match="expected a new or an empty folder"):
        fit(config, tmp_path / "other")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}


def test_a_full_disk_loses_nothing(reversals, tmp_path, monkeypatch):
    import errno

    config = small(reversals)
    fit(config, tmp_path / "whole")
    from softlookup import files

    replaced, written = os.replace, 0

    def full(*names):
        nonlocal written
        written += 1
        if written == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replaced(*names)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(sl.SoftlookupError, match="the disk is full"):
        fit(config, tmp_path / "parts", every=0)
    fit(config, tmp_path / "parts", resume=True, every=0)
    same(tmp_path / "whole", tmp_path / "parts")
    assert not list((tmp_path / "parts").glob(".*"))


def test_a_damaged_checkpoint_is_told(reversals, tmp_path):
    config = small(reversals, epochs=1)
    fit(config, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(sl.SoftlookupError, match="checkpoint.safetensors: expected a file that softlookup train wrote"):
        fit(config, tmp_path / "run", resume=True)
    with pytest.raises(sl.SoftlookupError, match="expected the folder of a run"):
        load(tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run(reversals, tmp_path):
    with pytest.raises(sl.SoftlookupError, match="expected a finite loss"):
        fit(small(reversals, rate=1e30, epochs=5, clip=1e30), tmp_path / "run")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"task": "mt"}, "task: expected one of g2p, pairs"),
        ({"model": "lstm"}, "model: expected one of fixed, attentive, transformer"),
        ({"epochs": 0}, "epochs: expected a number of at least 1"),
        ({"rate": 0.0}, "rate: expected a finite number above 0"),
        ({"smoothing": 1.0}, "smoothing: expected a number of at least 0 and below 1"),
        ({"task": "pairs"}, "--pairs: expected a file .*got none"),
        ({"source_units": "words"}, "--source: expected characters with the task g2p"),
        ({"seed": -1}, "seed: expected a number of at least 0"),
        ({"seed": 2**70}, "seed: expected a number of at least 0"),
        ({"pairs": "x.tsv"}, "--pairs: expected a file"),
    ],
)
def test_configs_are_checked(said, message):
    with pytest.raises(sl.SoftlookupError, match=message):
        Config(**said)


def test_options_are_the_models(reversals, tmp_path):
    with pytest.raises(sl.SoftlookupError, match="--option: expected of attentive score, order, .*got depth"):
        fit(small(reversals, options={"depth": 3}), tmp_path / "run")
    for options in ({"width": 0}, {"dropout": math.nan}, {"dropout": 2}, {"layers": -1}):
        with pytest.raises(sl.SoftlookupError, match=f"Attentive: expected .*{next(iter(options))}"):
            fit(small(reversals, options=options), tmp_path / "run")
    with pytest.raises(sl.SoftlookupError, match="TransformerBlock: expected inner"):
        fit(small(reversals, model="transformer", options={"width": 16, "inner": -5}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_start_that_failed_does_not_block_its_folder(reversals, tmp_path):
    with pytest.raises(sl.SoftlookupError, match="expected a finite loss"):
        fit(small(reversals, rate=1e30), tmp_path / "run")
    (tmp_path / "run" / ".run.json-x.part").write_text("{")  # a kill within the first write
    fit(small(reversals, epochs=1), tmp_path / "run")


def test_the_best_epoch_is_the_one_with_fewest_symbol_errors_where_no_output_is_right(reversals, tmp_path):
    run = fit(small(reversals, epochs=3, rate=1e-3), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    _, kept = checkpoints.load(tmp_path / "run" / "model.safetensors")
    least = min((each["wer"], each["per"], -each["epoch"]) for each in lines)
    assert (kept["wer"], kept["per"], -kept["epoch"]) == least and run.models


def test_pairs_may_move(reversals, tmp_path, monkeypatch):
    monkeypatch.chdir(reversals.parent)
    fit(small(reversals.name, epochs=1), tmp_path / "run")
    monkeypatch.chdir("/")
    assert load(tmp_path / "run").record.config.pairs == str(reversals)
    load(tmp_path / "run").record.config.corpus()
    moved = reversals.rename(reversals.with_name("moved.tsv"))
    fit(small(moved, epochs=1), tmp_path / "run", resume=True)
    assert load(tmp_path / "run").record.config.pairs == str(moved)
