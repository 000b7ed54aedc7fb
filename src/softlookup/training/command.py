"""What the commands train, evaluate and predict do; cli.py only says how they are called."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import SoftlookupError
from ..files import expanded, write_text
from .config import Config
from .fit import Progress, fit
from .picture import Picture, in_html, in_terminal
from .runs import Record, load
from .scoring import Scores


def config_of(said: dict[str, Any], given: set[str], folder: str | None) -> Config:
    """The config of these values; of a run that goes on in `folder` it is the run's own, with the values that were given."""
    if folder is None:
        return Config(**said)
    before = Record.read(expanded(folder)).config
    if before.task != said["task"]:
        raise SoftlookupError(f"{folder}: expected task {before.task}, which the run there has, got {said['task']}")
    return replace(before, **{name: said[name] for name in given})


def train(config: Config, folder: str, resume: bool) -> None:
    """Train with a bar on standard error, a line per epoch on standard output."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(file=sys.stderr, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def say(now: Progress) -> None:
            if now.scores is not None:
                print(_line(now.scores), flush=True)
                return
            done = now.epoch * now.steps + now.step
            text = f"epoch {now.epoch + 1}/{now.epochs}  loss {now.loss:.3f}  rate {now.rate:.1e}"
            bar.update(task, description=text, completed=done, total=now.epochs * now.steps)

        run = fit(config, folder, resume=resume, say=say)
    parameters = sum(x.numel() for x in run.models[0].parameters())
    print(f"Model: {Path(folder, 'model.safetensors')} ({parameters:,} parameters)")


def _line(scores: dict[str, Any]) -> str:
    return (
        f"epoch {scores['epoch']:>3}  loss {scores['loss']:.3f}  dev WER {scores['wer']:6.2%}  PER {scores['per']:6.2%}  "
        f"{scores['words_per_second']:,.0f} words/s"
    )


def evaluate(folders: Sequence[str], part: str, beam: int, pairs: str | None = None) -> None:
    """Errors on a part of the data, with 95 % bootstrap intervals. pairs: where the file of pairs lies now."""
    _at_least_one("--beam", beam)
    run = load(*map(found, _each(folders)))
    config = run.record.config
    corpus = (config if pairs is None else replace(config, pairs=pairs)).corpus()
    if corpus.checksum != run.record.checksum:
        raise SoftlookupError(f"evaluate: expected the data that the run was trained on, got other data in {corpus.origin}")
    scores = run.evaluate(corpus.part(part), beam)
    names = ("WER", "PER") if config.task == "g2p" else ("outputs wrong", "symbols wrong")
    print(f"{len(scores.wrong):,} of {part}, beam {beam}, closest reference")
    for name, what in zip(names, ("wer", "per"), strict=True):
        print(_rate(name, what, scores))


def _rate(name: str, what: str, scores: Scores) -> str:
    low, high = scores.interval(what)
    return f"{name} {getattr(scores, what):.2%}  (95 % of resamples: {low:.2%} to {high:.2%})"


def predict(
    folders: Sequence[str], words: Sequence[str], beam: int, best: int, align: bool, page: str | None
) -> list[str]:
    """Print the outputs of the words that can be read; what was wrong with the others."""
    _at_least_one("--beam", beam)
    _at_least_one("--best", best)
    run = load(*map(found, _each(folders)))
    if (align or page) and not any(model.attends for model in run.models):
        name = "--align" if align else "--html"
        raise SoftlookupError(f"{name}: expected a model with attention, got one without")
    good, wrong = [], []
    for word in words:
        try:
            good.append((word.strip() if run.record.config.task == "g2p" else word, run.symbols(word)))
        except SoftlookupError as error:
            wrong.append(str(error))
    outputs = run.predict([source for _, source in good], max(beam, best))
    pictures = []
    for (word, source), hypotheses in zip(good, outputs, strict=True):
        for output, _ in hypotheses[:best]:
            print(f"{word}\t{run.text(output)}")
        output = hypotheses[0][0]
        if align or page:
            title = f"{word} → {run.text(output)}"
            pictures.append(Picture(title, source, output, run.alignment(source, output)))
        if align:
            print(in_terminal(pictures[-1], shutil.get_terminal_size().columns) + "\n")
    if page and not pictures:
        wrong.append(f"--html: {page} was not written, as no word could be read")
    if page and pictures:
        write_text(page, in_html(pictures))
        print(f"Picture: {page}", file=sys.stderr)
    return wrong


def found(name: str) -> Path:
    """A run's folder: a path, or the name of a model that the repository holds."""
    if expanded(name).is_dir():
        return expanded(name)
    for folder in (Path("models"), Path(__file__).parents[3] / "models"):
        if "/" not in name and (folder / name).is_dir():
            return folder / name
    raise SoftlookupError(f"model: expected the folder of a run, or the name of one in the repository's models/, got {name}")


def _each(said: Sequence[str]) -> list[str]:
    """The folders of an ensemble, by commas or one by one."""
    names = [name for each in said for name in each.split(",")]
    if not all(names):
        raise SoftlookupError(f"model: expected folders with commas between, got {','.join(said)!r}")
    return names


def _at_least_one(option: str, number: int) -> None:
    if number < 1:
        raise SoftlookupError(f"{option}: expected a number of at least 1, got {number}")

