"""All that a training depends on, written into its run folder."""

from __future__ import annotations

import inspect
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import SoftlookupError
from ..seq2seq import Attentive, FixedVector, Model, Transformer
from .tasks import Corpus
from .vocabulary import Vocabulary

MODELS: dict[str, type[Model]] = {"fixed": FixedVector, "attentive": Attentive, "transformer": Transformer}
TASKS = ("g2p", "pairs")


@dataclass(frozen=True)
class Config:
    """task: "g2p" or "pairs", with the file and its units. model: of MODELS, made with `options`.

    epochs, batch: over the training part, in examples. rate: the highest learning rate, reached after `warmup` of all steps
    and lowered to 0 along a cosine. smoothing: of the labels (Szegedy et al. 2016). clip: of the gradient's norm.
    decay: of weights (AdamW). average: of the weights that are used for prediction, an exponential moving average of this
    decay; 0 for none. words: take only so many of the training pairs, evenly spread. dev: how many pairs choose the best epoch.
    """

    task: str = "g2p"
    pairs: str | None = None
    source_units: str = "characters"
    target_units: str = "characters"
    model: str = "attentive"
    options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 20
    batch: int = 256
    rate: float = 2e-3
    warmup: float = 0.05
    smoothing: float = 0.1
    clip: float = 1.0
    decay: float = 0.01
    average: float = 0.999
    words: int | None = None
    dev: int = 2000
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        for name, known in (("task", TASKS), ("model", tuple(MODELS))):
            if getattr(self, name) not in known:
                raise SoftlookupError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if (self.task == "pairs") != (self.pairs is not None):
            got = "none" if self.pairs is None else repr(self.pairs)
            raise SoftlookupError(f"--pairs: expected a file with the task pairs, and only with it, got {got}")
        for name, units in (("--source", self.source_units), ("--target", self.target_units)):
            if self.task != "pairs" and units != "characters":
                raise SoftlookupError(f"{name}: expected characters with the task {self.task}, got {units!r}")
        for name in ("epochs", "batch", "dev", "threads", *(["words"] if self.words is not None else [])):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise SoftlookupError(f"{name}: expected a number of at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise SoftlookupError(f"seed: expected a number of at least 0 and below 2^63, got {self.seed}")
        for name in ("rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise SoftlookupError(f"{name}: expected a finite number above 0, got {getattr(self, name)}")
        for name in ("warmup", "smoothing", "average", "decay"):
            if not 0 <= getattr(self, name) < 1:
                raise SoftlookupError(f"{name}: expected a number of at least 0 and below 1, got {getattr(self, name)}")

    def corpus(self) -> Corpus:
        """The pairs of the task."""
        from . import g2p, pairs

        if self.pairs is not None:
            return pairs.read(self.pairs, self.source_units, self.target_units)
        return g2p.read()

    def build(self, source: Vocabulary, target: Vocabulary) -> Model:
        """The model, with fresh weights."""
        kind = MODELS[self.model]
        known = [name for name, x in inspect.signature(kind).parameters.items() if x.kind is x.KEYWORD_ONLY]
        if strange := [name for name in self.options if name not in known]:
            raise SoftlookupError(f"--option: expected of {self.model} {', '.join(known)}, got {', '.join(strange)}")
        for name, value in self.options.items():
            wanted = str(inspect.signature(kind).parameters[name].annotation)
            for word, kinds, what in (("int", (int,), "a whole number"), ("float", (int, float), "a number")):
                if wanted == word and (isinstance(value, bool) or not isinstance(value, kinds)):
                    raise SoftlookupError(f"--option {name}: expected {what}, got {value!r}")
        try:
            return kind(len(source), len(target), **self.options)
        except TypeError as error:
            raise SoftlookupError(f"--option: expected values that fit {self.model}, got {self.options} ({error})") from None

    def as_dict(self) -> dict[str, Any]:
        """What goes into a run folder."""
        return asdict(self)

    @classmethod
    def from_dict(cls, said: dict[str, Any]) -> Config:
        """Of what was in a run folder."""
        known = {each.name for each in fields(cls)}
        if strange := sorted(set(said) - known):
            raise SoftlookupError(f"config: expected the names of Config, got also {', '.join(strange)}")
        return cls(**said)
