"""The bottleneck: an encoder-decoder whose decoder gets one vector, against soft alignment and the transformer, on the
pronunciation of words, at equal numbers of parameters.

    python benchmarks/bottleneck.py search [--only fixed …]      # three learning rates for each model, on 20,000 words
    python benchmarks/bottleneck.py train  [--only fixed-0 …]    # the runs, each at its model's best rate
    python benchmarks/bottleneck.py report [--json PATH]         # errors by length of the word, ratios, the ensemble

Runs lie in --folder (runs/bottleneck); one that was stopped goes on, one that is done is not run again. All are trained on
one thread, with the same number of epochs, batches, smoothing and averaging of weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from softlookup.training import Config, fit
from softlookup.training.runs import METRICS

OPTIONS: dict[str, dict[str, Any]] = {  # 3.04 M parameters each
    "attentive": {"layers": 2, "dropout": 0.25},
    "fixed": {"layers": 2, "dropout": 0.25, "width": 264, "embedding": 136},
    "transformer": {"layers": 3, "dropout": 0.1, "width": 192, "inner": 728},
}
RATES = (0.00075, 0.0015, 0.003)
RUNS = ("attentive-0", "fixed-0", "transformer-0", "attentive-1", "fixed-1", "attentive-2", "fixed-2")
LONG, SHORT = 11, 5
"""Letters of long words, at least, and of short ones, at most."""


def trial(model: str, rate: float) -> Config:
    """A run of the search."""
    return Config(model=model, options=OPTIONS[model], rate=rate, words=20_000, epochs=4, batch=128, average=0.99, threads=1)


def search(folder: Path, only: list[str]) -> None:
    """Dev errors of each model at each rate."""
    for model in only or OPTIONS:
        for rate in RATES:
            run = folder / "search" / f"{model}-{rate}"
            print(f"{model:12s} rate {rate:<8} dev WER {error(run, trial(model, rate)):.2%}", flush=True)


def error(folder: Path, config: Config) -> float:
    """The lowest word error on the choosing part, of a run that is made or finished first."""
    if epochs(folder) < config.epochs:
        fit(config, folder, resume=True)
    return min(json.loads(line)["wer"] for line in (folder / METRICS).read_text().splitlines())


def epochs(folder: Path) -> int:
    """How many are done."""
    return len((folder / METRICS).read_text().splitlines()) if (folder / METRICS).exists() else 0


def best(folder: Path, model: str) -> float:
    """The rate that the search found."""
    return min(RATES, key=lambda rate: error(folder / "search" / f"{model}-{rate}", trial(model, rate)))


def train(folder: Path, only: list[str]) -> None:
    """The runs of the comparison."""
    for name in only or RUNS:
        model, seed = name.split("-")
        rate = best(folder, model)
        config = Config(model=model, options=OPTIONS[model], rate=rate, epochs=16, batch=128, seed=int(seed), threads=1)
        print(f"{name:14s} rate {rate}  dev WER {error(folder / name, config):.2%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["search", "train", "report"])
    parser.add_argument("--folder", type=Path, default=Path("runs/bottleneck"))
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--json", type=Path)
    said = parser.parse_args()
    if said.what == "report":
        raise SystemExit("to come")
    {"search": search, "train": train}[said.what](said.folder, said.only)


if __name__ == "__main__":
    main()
