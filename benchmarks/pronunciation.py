"""The bottleneck: an encoder-decoder whose decoder gets one vector, against soft alignment and the transformer, on the
pronunciation of words, at equal numbers of parameters.

    python benchmarks/pronunciation.py search [--only fixed …]      # four learning rates for each model, on 20,000 words
    python benchmarks/pronunciation.py train  [--only fixed-0 …]    # the runs, each at its model's best rate
    python benchmarks/pronunciation.py scores [--only dot …]        # ways to score and orders, on 20,000 words
    python benchmarks/pronunciation.py report                       # errors by length of the word, ratios, the ensemble
    python benchmarks/pronunciation.py figure                       # of what the report found

Runs lie in --folder (runs/pronunciation); one that was stopped goes on, one that is done is not run again. All are trained on
one thread, with the same number of epochs, batches, smoothing and averaging of weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from softlookup.files import write_text
from softlookup.training import Config, Scores, fit, g2p, load
from softlookup.training.runs import METRICS

OPTIONS: dict[str, dict[str, Any]] = {  # 3.04 M parameters each
    "attentive": {"layers": 2, "dropout": 0.25},
    "fixed": {"layers": 2, "dropout": 0.25, "width": 264, "embedding": 136},
    "transformer": {"layers": 3, "dropout": 0.1, "width": 192, "inner": 728},
}
RATES = (0.00075, 0.0015, 0.003, 0.006)
RUNS = ("attentive-0", "fixed-0", "transformer-0", "attentive-1", "fixed-1", "attentive-2", "fixed-2")
OTHERS = ("transformer-0-half",)
"""Runs at half the rate that the search found."""
ENSEMBLES = (
    ("attentive-0", "attentive-1", "attentive-2"),
    ("models/g2p", "attentive-0", "attentive-1", "transformer-0"),
)
"""Names of runs, or folders of the repository."""
BINS = ((1, 5), (6, 7), (8, 10), (11, 99))
"""Letters of a word, from and to."""
SHORT, LONG = BINS[0][1], BINS[-1][0]
"""Letters of short words, at most, and of long ones, at least."""

SCORES: dict[str, dict[str, Any]] = {  # in Bahdanau's order 3.04 M parameters each
    "additive": {},
    "bilinear": {"width": 259},
    "scaled": {"width": 218},
    "dot": {"width": 218},
}


def trial(model: str, rate: float, options: dict[str, Any] | None = None) -> Config:
    """A run of the search: three quarters of an epoch of the whole dictionary."""
    return Config(
        model=model, options=options or OPTIONS[model], rate=rate, words=20_000, epochs=4, batch=128, average=0.99, threads=1
    )


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
    for name in only or RUNS + OTHERS:
        model, seed, *other = name.split("-")
        rate = best(folder, model) / (2 if other == ["half"] else 1)
        config = Config(model=model, options=OPTIONS[model], rate=rate, epochs=10, batch=128, seed=int(seed), threads=1)
        print(f"{name:14s} rate {rate}  dev WER {error(folder / name, config):.2%}", flush=True)


def scores(folder: Path, only: list[str]) -> None:
    """Dev errors of the attentive model with other scores, at equal numbers of parameters, in both orders."""
    rate = best(folder, "attentive")
    for score in only or SCORES:
        for order in ("bahdanau", "luong"):
            options = OPTIONS["attentive"] | SCORES[score] | {"score": score, "order": order}
            run = folder / "scores" / f"{score}-{order}"
            print(f"{score:9s} {order:9s} dev WER {error(run, trial('attentive', rate, options)):.2%}", flush=True)


def report(folder: Path, path: Path) -> None:
    """All numbers of the comparison, on the test part with a beam of 5."""
    words = g2p.read().test
    tested = {name: load(folder / name).evaluate(words) for name in RUNS}
    source = next(iter(tested.values())).source
    groups = [(source >= low) & (source <= high) for low, high in BINS]
    print("run                 WER      PER     PER of words of " + "  ".join(f"{low}-{high}".rjust(6) for low, high in BINS))
    rows = {}
    for name, each in tested.items():
        by_length = [each.take(group).per for group in groups]
        print(f"{name:18s} {each.wer:6.2%}  {each.per:6.2%}" + " " * 18 + "  ".join(f"{x:6.2%}" for x in by_length))
        rows[name] = {"wer": each.wer, "per": each.per, "by_length": by_length}
    worse, low, high = ratio_of_ratios([tested[n] for n in RUNS if "fixed" in n], [tested[n] for n in RUNS if "attentive" in n])
    print(f"(PER fixed / PER attentive at >= {LONG} letters) / (at <= {SHORT}): {worse:.2f}, 95 % {low:.2f} to {high:.2f}")
    ensembles = {}
    for members in ENSEMBLES:
        each = load(*(name if "/" in name else folder / name for name in members)).evaluate(words)
        bounds = each.interval("wer")
        print(f"ensemble of {', '.join(members)}: WER {each.wer:.2%} ({bounds[0]:.2%} to {bounds[1]:.2%}), PER {each.per:.2%}")
        ensembles[" ".join(members)] = {"wer": each.wer, "per": each.per}
    found = {"bins": BINS, "runs": rows, "ratio": [worse, low, high], "ensembles": ensembles}
    write_text(path, json.dumps(found, indent=1))


def ratio_of_ratios(fixed: list[Scores], attentive: list[Scores], samples: int = 2000) -> tuple[float, float, float]:
    """How much worse the fixed vector gets from short words to long ones, with the 95 % bootstrap interval over words; errors
    are those of all seeds together."""
    source = fixed[0].source

    def of(chosen: np.ndarray) -> float:
        def per(runs: list[Scores]) -> float:
            return float(sum(x.edits[chosen].sum() for x in runs) / sum(x.length[chosen].sum() for x in runs))

        return per(fixed) / per(attentive)

    long, short = np.flatnonzero(source >= LONG), np.flatnonzero(source <= SHORT)
    random = np.random.default_rng(0)
    drawn = [of(random.choice(long, len(long))) / of(random.choice(short, len(short))) for _ in range(samples)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return of(long) / of(short), float(low), float(high)


def figure(source: Path, out: Path) -> None:
    """Error against length, a line per model, seeds as bands."""
    import matplotlib.pyplot as plt

    found = json.loads(source.read_text())
    names = [f"{low}" + (f"–{high}" if high < 99 else "+") for low, high in found["bins"]]
    names[0] = f"≤ {found['bins'][0][1]}"
    fig, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for model, color in (("fixed", "#b5532c"), ("attentive", "#1f6f78"), ("transformer", "#6a5d9e")):
        lines = 100 * np.array([row["by_length"] for name, row in found["runs"].items() if name[:-2] == model])
        axes.fill_between(range(len(names)), lines.min(0), lines.max(0), color=color, alpha=0.2, lw=0)
        axes.plot(
            range(len(names)),
            lines.mean(0),
            "o-",
            color=color,
            label=f"{model} ({len(lines)} seeds)" if len(lines) > 1 else model,
        )
    axes.set(
        xticks=range(len(names)), xticklabels=names, xlabel="letters of the word", ylabel="phones wrong, %", ylim=(0, None)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    fig.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["search", "train", "scores", "report", "figure"])
    parser.add_argument("--folder", type=Path, default=Path("runs/pronunciation"))
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/pronunciation.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/bottleneck.svg"))
    said = parser.parse_args()
    if said.what == "report":
        report(said.folder, said.json)
    elif said.what == "figure":
        figure(said.json, said.out)
    else:
        {"search": search, "train": train, "scores": scores}[said.what](said.folder, said.only)


if __name__ == "__main__":
    main()
