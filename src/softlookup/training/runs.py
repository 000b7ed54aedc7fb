"""A run's folder: what was trained, on what and with what, and the trained model."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import SoftlookupError
from ..files import expanded, reason, write_text
from ..seq2seq import Ensemble, Hypothesis, Model, search
from ..version import __version__
from . import checkpoint
from .batches import stack
from .config import Config
from .pairs import symbols
from .scoring import Scores, score
from .tasks import Corpus, Pair
from .tasks import Sequence as Symbols
from .vocabulary import BEGIN, END, PAD, Vocabulary

RECORD, CHECKPOINT, METRICS, MODEL = "run.json", "checkpoint.safetensors", "metrics.jsonl", "model.safetensors"

BATCH = 500
"""Sources that are decoded together."""
LONGER = 4
"""A source may be so many times as long as the longest that a model has learned from; an output, as the longest output."""


@dataclass(frozen=True)
class Record:
    """What a run folder says of itself: how the run is made, and on which data; vocabularies and longest sequences."""

    config: Config
    source: Vocabulary
    target: Vocabulary
    longest: tuple[int, int]
    origin: str
    checksum: str
    versions: dict[str, str]

    @property
    def data(self) -> tuple[object, ...]:
        """Equal for runs whose models speak of the same data in the same symbols."""
        return self.checksum, self.source.symbols, self.target.symbols, self.config.source_units, self.config.target_units

    @classmethod
    def of(cls, config: Config, corpus: Corpus) -> Record:
        """Of a new run. Vocabularies are those of all parts: a letter that only a test word has is known, if never learned."""
        every = [*corpus.train, *corpus.dev, *corpus.test]
        targets = [each for pair in every for each in pair.references]
        longest = max(len(pair.source) for pair in every), max(len(each) for each in targets)
        versions = {"softlookup": __version__, "torch": torch.__version__, "python": platform.python_version()}
        sources = Vocabulary.of(pair.source for pair in every)
        return cls(config, sources, Vocabulary.of(targets), longest, corpus.origin, corpus.checksum, versions)

    def write(self, folder: Path) -> None:
        """Into a run's folder; a file of pairs by its absolute path."""
        pairs = self.config.pairs
        said = {
            "generator": "softlookup",
            "config": self.config.as_dict() | {"pairs": None if pairs is None else str(expanded(pairs).resolve())},
            "data": {"origin": self.origin, "checksum": self.checksum},
            "versions": self.versions,
            "longest": self.longest,
            "source": self.source.symbols,
            "target": self.target.symbols,
        }
        write_text(folder / RECORD, json.dumps(said, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Out of a run's folder."""
        path = folder / RECORD
        try:
            said: dict[str, Any] = json.loads(path.read_text("utf-8"))
            data, longest = said["data"], (int(said["longest"][0]), int(said["longest"][1]))
            vocabularies = Vocabulary(said["source"]), Vocabulary(said["target"])
            config = Config.from_dict(said["config"])
            return cls(config, *vocabularies, longest, data["origin"], data["checksum"], said["versions"])
        except FileNotFoundError:
            raise SoftlookupError(f"{folder}: expected the folder of a run, got one without {RECORD}") from None
        except OSError as error:
            raise SoftlookupError(f"cannot read {path}: {reason(error)}") from None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise SoftlookupError(f"{path}: expected the record of a run, got one that cannot be read ({error})") from None


@dataclass(frozen=True)
class Run:
    """One or several trained models of one task, ready to be asked."""

    record: Record
    models: list[Model]

    def symbols(self, text: str) -> Symbols:
        """A source as the models know it; raises for one that they cannot read."""
        config = self.record.config
        said = symbols(text.strip().lower() if config.task == "g2p" else text, config.source_units)
        most = LONGER * self.record.longest[0]
        shown = repr(text if len(text) <= 40 else text[:40] + "…")
        if not said:
            raise SoftlookupError(f"{shown}: expected a word, got an empty one")
        if len(said) > most:
            raise SoftlookupError(f"{shown}: expected at most {most} symbols, got {len(said)}")
        if unknown := self.record.source.unknown(said):
            known = "the letters a to z" if config.task == "g2p" else "symbols of the training data"
            raise SoftlookupError(f"{shown}: expected {known}, got {', '.join(map(repr, unknown[:5]))}")
        return said

    def text(self, output: Symbols) -> str:
        """An output as a user reads it."""
        together = self.record.config.task == "pairs" and self.record.config.target_units == "characters"
        return ("" if together else " ").join(output)

    def predict(self, sources: Sequence[Symbols], beam: int = 5) -> list[list[tuple[Symbols, Hypothesis]]]:
        """Up to `beam` outputs of each source, best first."""
        model = self.models[0] if len(self.models) == 1 else Ensemble(self.models)
        order = sorted(range(len(sources)), key=lambda k: len(sources[k]))
        found: list[list[tuple[Symbols, Hypothesis]]] = [[] for _ in sources]
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            rows = [torch.tensor(self.record.source.numbers(sources[k])) for k in some]
            lengths = torch.tensor([len(row) for row in rows])
            longest = LONGER * self.record.longest[1]
            best = search(model, stack(rows), lengths, begin=BEGIN, end=END, beam=beam, longest=longest, never=(PAD, BEGIN))
            for k, hypotheses in zip(some, best, strict=True):
                found[k] = [(self.record.target.words(each.symbols), each) for each in hypotheses]
        return found

    def evaluate(self, pairs: Sequence[Pair], beam: int = 5) -> Scores:
        """The best outputs against the references."""
        outputs = self.predict([pair.source for pair in pairs], beam)
        return score([best[0][0] for best in outputs], pairs)

    def alignment(self, source: Symbols, output: Symbols) -> torch.Tensor:
        """(T + 1, S) how much each step of the output, its end included, read of each source symbol; the models' mean."""
        numbers = torch.tensor([self.record.source.numbers(source)])
        given = torch.tensor([[BEGIN, *self.record.target.numbers(output)]])
        with torch.no_grad():
            attending = [model for model in self.models if model.attends] or self.models
            each = [model.alignment(numbers, torch.tensor([len(source)]), given)[0] for model in attending]
        return torch.stack(each).mean(0)


def load(*folders: str | Path) -> Run:
    """The trained model of a run's folder, or the ensemble of several of the same data."""
    if not folders:
        raise SoftlookupError("load: expected the folder of a run, got none")
    records = [Record.read(Path(folder)) for folder in folders]
    first = records[0]
    for folder, record in zip(folders, records, strict=True):
        if record.data != first.data:
            raise SoftlookupError(f"{folder}: expected a run with the data and the units of {folders[0]}, got one with others")
    return Run(first, [_model(Path(folder), record) for folder, record in zip(folders, records, strict=True)])


def _model(folder: Path, record: Record) -> Model:
    path = folder / MODEL
    if not path.is_file():
        raise SoftlookupError(f"{folder}: expected a trained model, got a run that has not finished an epoch")
    tensors, _ = checkpoint.load(path)
    model = record.config.build(record.source, record.target)
    try:
        model.load_state_dict({name: x.float() for name, x in tensors.items()})
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise SoftlookupError(f"{path}: expected the weights of {type(model).__name__}, got others: {first}") from None
    return model.eval()
