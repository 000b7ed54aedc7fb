"""The loop. It may be killed at any moment: what it had reached at its last checkpoint it reaches again, bit for bit."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import SoftlookupError
from ..files import expanded, reason, write_text
from ..seq2seq import Model
from . import checkpoint
from .batches import Batch, Example, count, epoch_of, examples, padded
from .config import Config
from .runs import CHECKPOINT, METRICS, MODEL, RECORD, Record, Run, load
from .tasks import Corpus, Pair
from .vocabulary import PAD

EVERY = 60.0
"""Seconds between checkpoints."""
MEASURED = 500
"""Pairs of those that choose, evenly spread, on which attention is measured after each epoch."""


@dataclass(frozen=True)
class Progress:
    """Where a training stands; loss: the mean of the epoch so far, in nats per symbol."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    rate: float
    scores: dict[str, Any] | None = None


def fit(
    config: Config,
    folder: str | Path,
    *,
    resume: bool = False,
    say: Callable[[Progress], None] = lambda progress: None,
    every: float = EVERY,
) -> Run:
    """Train, and leave in the folder: the record of the run, metrics (JSON lines and TensorBoard) and the model of the best
    epoch, by word errors and then symbol errors on the part that is for choosing.

    Args:
        folder: made if it does not exist.
        resume: go on from its last checkpoint, with the same config and data.
        say: told after every step.
        every: seconds between checkpoints.
    """
    most = 4 * (os.cpu_count() or 1)
    if config.threads > most:
        raise SoftlookupError(f"threads: expected at most {most} on this machine, got {config.threads}")
    corpus = config.corpus()
    record = Record.of(config, corpus)
    folder = expanded(folder)
    torch.set_num_threads(config.threads)  # of the whole process, as everything in torch depends on it
    training = _Training(record, corpus, folder)
    _enter(folder, record, resume)
    if (folder / CHECKPOINT).exists():
        try:
            training.restore()
        except SoftlookupError:
            raise
        except (RuntimeError, KeyError, ValueError):
            raise SoftlookupError(f"{folder / CHECKPOINT}: expected the checkpoint of this run, got another") from None
    training.go(say, every)
    return training.run()


def _enter(folder: Path, record: Record, resume: bool) -> None:
    """Make the folder a run's, or see that it is this run's."""
    begun = any((folder / name).exists() for name in (CHECKPOINT, MODEL))
    exists = begun or (resume and (folder / RECORD).exists())
    if exists and not resume:
        raise SoftlookupError(f"{folder}: holds a run already; expected --resume to go on with it, or another folder")
    if not exists:
        if folder.exists() and (not folder.is_dir() or any(map(_is_other, folder.iterdir()))):
            raise SoftlookupError(f"{folder}: expected a new or an empty folder, or a run's")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SoftlookupError(f"cannot make {folder}: {reason(error)}") from None
        record.write(folder)
        return
    epochs = len((folder / METRICS).read_text().splitlines()) if (folder / METRICS).exists() else 0
    if epochs > 1 and not (folder / CHECKPOINT).exists():  # as `pack` leaves it
        raise SoftlookupError(f"{folder}: expected a checkpoint to go on from, got a trained model without one; left as it is")
    before = Record.read(folder)
    was, now = before.config.as_dict(), record.config.as_dict()
    for name in now:
        if name != "pairs" and was[name] != now[name]:
            raise SoftlookupError(f"{folder}: expected the run's own config, {name}={was[name]}, got {name}={now[name]}")
    if before.checksum != record.checksum:
        raise SoftlookupError(f"{folder}: expected the data that the run began with, got other data in {record.origin}")
    if before.versions != record.versions:
        then, today = (", ".join(f"{n} {v}" for n, v in each.versions.items()) for each in (before, record))
        raise SoftlookupError(f"{folder}: expected the versions that the run began with, {then}, got {today}")
    record.write(folder)  # the file of pairs may have moved: its content is the same


def _is_other(path: Path) -> bool:
    """Whether a file in a folder is none that a run leaves which ended before its first checkpoint."""
    return path.name not in (RECORD, "tensorboard") and not path.name.endswith(".part")


class _Training:
    """A model on its way: all that a checkpoint holds."""

    def __init__(self, record: Record, corpus: Corpus, folder: Path):
        self.record, self.config, self.folder = record, record.config, folder
        torch.manual_seed(self.config.seed)
        self.model = self.config.build(record.source, record.target)
        self.averaged = copy.deepcopy(self.model).eval() if self.config.average else self.model
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.config.rate, betas=(0.9, 0.98), weight_decay=self.config.decay, fused=True
        )
        self.names = [name for name, _ in self.model.named_parameters()]
        self.examples: list[Example] = examples(_spread(corpus.train, self.config.words), record.source, record.target)
        self.dev = _spread(corpus.dev, self.config.dev)
        self.steps = count(len(self.examples), self.config.batch)
        self.epoch, self.step, self.loss, self.symbols = 0, 0, 0.0, 0
        self.best = [math.inf, math.inf]  # word and symbol errors
        self.lines: list[str] = []  # of the metrics file

    def run(self) -> Run:
        """The model of the best epoch."""
        return load(self.folder)

    def go(self, say: Callable[[Progress], None], every: float) -> None:
        """Until all epochs are done."""
        board = _Board(self.folder)
        saved = time.monotonic()
        try:
            while self.epoch < self.config.epochs:
                began, first = time.monotonic(), self.step
                self.model.train()
                for number, batch in enumerate(epoch_of(self.examples, self.config.batch, self.config.seed, self.epoch)):
                    if number < self.step:
                        continue
                    self._update(batch)
                    say(self._progress())
                    if time.monotonic() - saved > every:
                        self.save()
                        saved = time.monotonic()
                scores = self._measure(time.monotonic() - began, self.steps - first)
                self.epoch, self.step, self.loss, self.symbols = self.epoch + 1, 0, 0.0, 0
                self.lines.append(json.dumps(scores))
                write_text(self.folder / METRICS, "\n".join(self.lines) + "\n")
                board.add(scores)
                self.save()
                saved = time.monotonic()
                say(self._progress(scores))
        finally:
            board.close()

    def _update(self, batch: Batch) -> None:
        """One step of the optimizer."""
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(self.model, batch, self.config.smoothing)
        if not bool(loss.isfinite()):
            got = f"{float(loss.detach())} in epoch {self.epoch + 1}"
            raise SoftlookupError(f"training: expected a finite loss, got {got}; a lower --rate may help")
        self.optimizer.zero_grad()
        (loss / batch.symbols).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        self.loss, self.symbols = self.loss + float(loss.detach()), self.symbols + batch.symbols
        if self.averaged is not self.model:
            done = self.epoch * self.steps + self.step
            decay = min(self.config.average, (1 + done) / (10 + done))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)

    def _rate(self) -> float:
        """Up along a line, down along a cosine (Loshchilov & Hutter 2017)."""
        total = self.config.epochs * self.steps
        at, up = self.epoch * self.steps + self.step + 1, max(1, round(self.config.warmup * total))
        if at <= up:
            return self.config.rate * at / up
        return self.config.rate * 0.5 * (1 + math.cos(math.pi * (at - up) / max(1, total - up)))

    def _progress(self, scores: dict[str, Any] | None = None) -> Progress:
        loss = self.loss / max(1, self.symbols)
        return Progress(self.epoch, self.config.epochs, self.step, self.steps, loss, self._rate(), scores)

    @torch.no_grad()
    def _measure(self, seconds: float, steps: int) -> dict[str, Any]:
        """An epoch's line in the metrics; the model is kept if it is the best so far."""
        model = self.averaged.eval()
        run = Run(self.record, [model])
        errors = run.evaluate(self.dev, beam=1)
        scores: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "loss": self.loss / max(1, self.symbols),
            "wer": errors.wer,
            "per": errors.per,
            "words_per_second": steps / self.steps * len(self.examples) / max(seconds, 1e-9),
            "seconds": seconds,
        }
        if model.attends:
            scores |= _attention(model, _spread(self.dev, MEASURED), self.record)
        if [errors.wer, errors.per] <= self.best:
            self.best = [errors.wer, errors.per]
            of = {name: scores[name] for name in ("epoch", "wer", "per")}
            checkpoint.save(self.folder / MODEL, model.state_dict(), of)
        return scores

    def save(self) -> None:
        """A checkpoint."""
        tensors = {f"model.{name}": x for name, x in self.model.state_dict().items()}
        if self.averaged is not self.model:
            tensors |= {f"averaged.{name}": x for name, x in self.averaged.state_dict().items()}
        for k, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{self.names[k]}.{name}": x for name, x in state.items()}
        tensors["random"] = torch.get_rng_state()
        facts = {name: getattr(self, name) for name in ("epoch", "step", "loss", "symbols", "best", "lines")}
        checkpoint.save(self.folder / CHECKPOINT, tensors, facts)

    def restore(self) -> None:
        """The last checkpoint."""
        tensors, facts = checkpoint.load(self.folder / CHECKPOINT)
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "averaged": {}, "optimizer": {}}
        for name, x in tensors.items():
            kind, _, rest = name.partition(".")
            if kind in groups:
                groups[kind][rest] = x
        self.model.load_state_dict(groups["model"])
        if self.averaged is not self.model:
            self.averaged.load_state_dict(groups["averaged"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, x in groups["optimizer"].items():
            parameter, _, part = name.rpartition(".")
            state.setdefault(self.names.index(parameter), {})[part] = x
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        for name, value in facts.items():
            setattr(self, name, value)
        torch.set_rng_state(tensors["random"])


def loss_of(model: Model, batch: Batch, smoothing: float) -> Tensor:
    """Cross-entropy in nats, summed over the symbols of a batch."""
    logits = model(batch.source, batch.lengths, batch.given)
    wanted = batch.wanted
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD, label_smoothing=smoothing, reduction="sum")


def _attention(model: Model, pairs: list[Pair], record: Record) -> dict[str, float]:
    """How a model attends over teacher-forced outputs, the mean over steps and heads."""
    some = padded(examples(pairs, record.source, record.target))
    _, stats = model(some.source, some.lengths, some.given, stats=("entropy", "effective_keys", "max_weight"))
    real = (some.wanted > 0).unsqueeze(1)
    return {
        f"attention_{name}": float((stats[name] * real).sum() / (real.sum() * stats[name].shape[1]))
        for name in ("entropy", "effective_keys", "max_weight")
    }


def _spread(pairs: list[Pair], most: int | None) -> list[Pair]:
    """At most so many of them, evenly spread: the dictionary is in the order of the alphabet."""
    return pairs if most is None or len(pairs) <= most else [pairs[k * len(pairs) // most] for k in range(most)]


class _Board:
    """TensorBoard, where it is installed."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.writer = None
        else:
            self.writer = SummaryWriter(str(folder / "tensorboard"))

    def add(self, scores: dict[str, Any]) -> None:
        for name, value in scores.items():
            if self.writer is not None and name != "epoch":
                self.writer.add_scalar(name, value, scores["epoch"])

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
