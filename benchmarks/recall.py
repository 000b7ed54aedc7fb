"""Multi-query associative recall (Arora et al. 2023, "Zoology"): which mechanism remembers how many pairs.

    python benchmarks/recall.py              # trains what benchmarks/recall.json lacks; what was stopped goes on
    python benchmarks/recall.py --report     # recall by setting and mechanism beside the predictions

A sequence begins with pairs of a key and a value, no key and no value twice. Then each key stands once more, alone, at gaps of
a power law between blanks; there its value is to be said, and only there is a loss (as the configuration of Zoology's Figure 2
has it: power_a 0.01, blanks, not random tokens). Half of the vocabulary are keys, half are values; each step draws its own.

The model: two blocks x + mixer(RMSNorm(x)) of width 64 without feed-forward layers, as in Zoology, and a head that is the
embedding. Each mixer has one head of width 64, so that each recurrent one has a state of 64 x 64 numbers (elu + 1: 64 more).
Queries, keys and values of every mixer, exact attention included, are mixed with those of the token before, each dimension by
itself: the short convolution of Mamba-2, DeltaNet and Gated DeltaNet, of width 2, which is what it takes to bind a value to the
key before it. So none needs positions. (Zoology's attention has learned positions instead; its hybrids have a convolution.)

Predictions, written before any training: the first setting (length, pairs) where recall falls below 90 %.

    exact    none          Zoology, Figure 2: attention solves all four settings at every width from 64 on.
    linear   (256, 16)     Theory first (Schlag, Irie & Schmidhuber 2021, sec. 4.1): d features hold d keys without error, and
                           only if they are orthogonal. elu + 1 is positive: keys overlap, each value comes with a share of all
                           others, and blanks, which weigh more than nothing, dilute them. Measured there: elu + 1 is the worst
                           map. Based (Arora et al. 2024, sec. 3 and Figure 2): recall is bought with state.
    gated    (512, 64)     DeltaNet (Yang et al. 2024, Figure 4) trains gated recurrences at (512, 64): at width 64 all but
                           DeltaNet fall short. Up to 16 pairs a sum of 16 nearly orthogonal keys of 64 dimensions is read well:
                           the noise of a sum of n is sqrt(n / 64) of the signal, in all 64 dimensions together.
    delta    none          DeltaNet, sec. 4.1 of the same: "performs perfectly (even without convolution) in the hardest
                           setting", 64 pairs in 512 tokens. What a key had is taken away before it is written: up to 64 keys
                           that are independent are kept without error.

Read for this were Zoology's configuration and the sentence of DeltaNet; the other papers are cited from memory, none for its
exact numbers.

An argument for more than is predicted: values need not be read exactly, only be told apart from V / 2 others. Then a sum of n
pairs fails only where n is about 64^2 / (2 log(V / 2)), above 200, and a failure at 64 pairs is one of learning the keys.

Vocabularies are 8,192, or 512 where exact attention does not learn 8,192 in 60 minutes of one thread, and 256 for 64 pairs.
Training: Adam, a warm-up, then a constant rate that goes down to 0 over the last fifth of the steps; it ends once recall of
held-out sequences was 95 % twice (99 % in the first runs, 98 % in some). The rate is the best of three on 300 steps of the
smallest setting. A run begins with the weights of the same mechanism in the setting before; of its embedding with as many keys
and values as there are. None takes more than 60 minutes of the processor.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, pad, silu, softplus

import softlookup as sl
from softlookup import linear
from softlookup.files import write, write_text

WIDTH, POWER = 64, 0.01
RATES, PROBE = (1e-3, 3e-3, 1e-2), 300
WARMUP, EVERY, HELD_OUT = 100, 100, 512
LEARNED, ENOUGH = 0.9, 0.95
"""Recall below which a mechanism has failed, and twice which a run ends."""
SECONDS, SAVED = 3600.0, 60.0
"""Of a run at most, the processor's, and between checkpoints, the clock's."""
RESULTS = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Setting:
    """length: of sequences. vocabularies: the first that exact attention learns is used. steps: of a run at most."""

    length: int
    pairs: int
    vocabularies: tuple[int, ...]
    batch: int
    steps: int = 8000

    def __str__(self) -> str:
        return f"({self.length}, {self.pairs})"


SETTINGS = (
    Setting(64, 4, (8192, 512), 64),
    Setting(128, 8, (8192, 512), 64, 7000),
    Setting(256, 16, (8192, 512), 32),
    Setting(512, 64, (256,), 16),
)
FIRST_BELOW = {"exact": "none", "linear": "(256, 16)", "gated": "(512, 64)", "delta": "none"}
"""The predictions."""


def sequences(setting: Setting, vocabulary: int, many: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """tokens (B, L), where queries stand (B, pairs), and what is to be said there (B, pairs). 0 is blank, keys are below
    vocabulary / 2, values are not."""
    random, pairs, half = torch.Generator().manual_seed(seed), setting.pairs, vocabulary // 2

    def drawn(weights: Tensor) -> Tensor:
        return torch.multinomial(weights.expand(many, -1), pairs, generator=random)

    keys, values = 1 + drawn(torch.ones(half - 1)), half + drawn(torch.ones(half))
    gaps = drawn(torch.arange(1, setting.length // 2 - pairs + 1) ** (POWER - 1))
    tokens, at = torch.zeros(many, setting.length, dtype=torch.long), 2 * (pairs + gaps)
    tokens[:, : 2 * pairs] = torch.stack([keys, values], 2).flatten(1)
    return tokens.scatter_(1, at, keys), at, values


class WithBefore(nn.Module):
    """(B, L, E) -> (B, L, E): each dimension of a token and of the one before, a causal convolution of width 2."""

    def __init__(self, width: int):
        super().__init__()
        self.now, self.before = (nn.Parameter(torch.empty(width).uniform_(-1, 1) * 2**-0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.now * x + self.before * pad(x, (0, 0, 1, -1))


class Exact(sl.nn.MultiHeadAttention):
    """Causal attention."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        out = super().forward(x, mask=sl.Causal())
        assert isinstance(out, Tensor)
        return out


class Gated(linear.GatedDelta):
    """The same without the delta rule, and values times their step, as Mamba-2 has it. For one head."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        del self.of_rate

    def forward(self, x: Tensor) -> Tensor:
        query, key = (normalize(silu(of(x)), dim=-1)[:, None] for of in (self.of_query, self.of_key))
        step = softplus(self.of_gate(x))
        value = (step * silu(self.of_value(x)))[:, None]
        y, _ = linear.recur(query, key, value, log_gate=(-self.log_decay.exp() * step).mT)
        return self.out(self.norm(y[:, 0]) * silu(self.of_out(x)))


MIXERS: dict[str, Callable[[int, int], nn.Module]] = {
    "exact": Exact,
    "linear": linear.LinearAttention,
    "gated": Gated,
    "delta": linear.GatedDelta,
}


class Model(nn.Module):
    """tokens (B, L), positions (B, n) -> logits (B, n, V) there."""

    def __init__(self, mixer: str, vocabulary: int, width: int = WIDTH, layers: int = 2):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.mixers = nn.ModuleList(MIXERS[mixer](width, 1) for _ in range(layers))
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(layers + 1))
        for each in self.mixers:
            for name in ("of_query", "of_key", "of_value"):
                setattr(each, name, nn.Sequential(getattr(each, name), WithBefore(width)))

    def forward(self, tokens: Tensor, at: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for norm, mixer in zip(self.norms, self.mixers, strict=False):
            x = x + mixer(norm(x))
        x = x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))
        return self.norms[-1](x) @ self.embedding.weight.T


class Training:
    """A run, which goes on where its checkpoint ends, and begins with the weights in `start`, of a vocabulary that is no
    smaller."""

    def __init__(self, setting: Setting, mixer: str, vocabulary: int, rate: float, path: Path, start: Path | None = None):
        self.setting, self.vocabulary, self.rate, self.path = setting, vocabulary, rate, path
        torch.manual_seed(0)
        self.model = Model(mixer, vocabulary)
        self.optimizer = torch.optim.Adam(self.model.parameters(), rate)
        self.step, self.seconds, self.curve = 0, 0.0, list[tuple[int, float, float]]()  # steps, loss and recall, held out
        if path.exists():
            kept = torch.load(path)
            self.model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.step, self.seconds, self.curve = kept["step"], kept["seconds"], kept["curve"]
        elif start is not None:
            begun = torch.load(start)["model"]
            keys, values = begun["embedding.weight"].chunk(2)
            begun["embedding.weight"] = torch.cat([keys[: vocabulary // 2], values[: vocabulary // 2]])
            self.model.load_state_dict(begun)

    def save(self) -> None:
        file = io.BytesIO()
        kept = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**kept, "step": self.step, "seconds": self.seconds, "curve": self.curve}, file)
        write(self.path, file.getvalue())

    @property
    def over(self) -> bool:
        enough = len(self.curve) > 1 and all(recall >= ENOUGH for *_, recall in self.curve[-2:])
        return enough or self.step >= self.setting.steps or self.seconds >= SECONDS

    def go(self, steps: int | None = None) -> None:
        """Until it is over, or so many steps."""
        saved, end = time.monotonic(), None if steps is None else self.step + steps
        while not self.over and self.step != end:
            began = time.process_time()
            self._update()
            if self.step % EVERY == 0 or self.step == self.setting.steps:
                loss, recall = self.held_out()
                self.curve.append((self.step, round(loss, 4), round(recall, 4)))
                print(f"    {self.step:6d}  loss {loss:.3f}  recall {recall:.1%}  {self.seconds:.0f} s", flush=True)
            self.seconds += time.process_time() - began
            if time.monotonic() - saved > SAVED:
                self.save()
                saved = time.monotonic()
        self.save()

    def _update(self) -> None:
        left = (self.setting.steps - self.step) / (0.2 * self.setting.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1, (self.step + 1) / WARMUP, left)
        self.step += 1
        tokens, at, values = sequences(self.setting, self.vocabulary, self.setting.batch, self.step)
        loss = cross_entropy(self.model(tokens, at).flatten(0, 1), values.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def held_out(self) -> tuple[float, float]:
        """Mean loss, and the share of queries that are answered."""
        loss, right = 0.0, 0.0
        tokens, at, values = sequences(self.setting, self.vocabulary, HELD_OUT, 2**32)
        for some in torch.arange(HELD_OUT).split(self.setting.batch):
            logits = self.model(tokens[some], at[some]).flatten(0, 1)
            wanted = values[some].flatten()
            loss += float(cross_entropy(logits, wanted, reduction="sum"))
            right += float((logits.argmax(1) == wanted).sum())
        return loss / values.numel(), right / values.numel()


class Table:
    """What is known, in a file: rates by mechanism with the losses they were chosen by, and runs."""

    def __init__(self, path: Path, folder: Path):
        self.path, self.folder = path, folder
        self.rates: dict[str, dict[str, Any]] = {}
        self.runs: list[dict[str, Any]] = []
        if path.exists():
            kept = json.loads(path.read_text())
            self.rates, self.runs = kept["rates"], kept["runs"]

    def save(self) -> None:
        rates = ",\n".join(f"{json.dumps(mixer)}: {json.dumps(found)}" for mixer, found in self.rates.items())
        runs = ",\n".join(map(json.dumps, self.runs))
        write_text(self.path, f'{{"rates": {{\n{rates}\n}}, "runs": [\n{runs}\n]}}\n')

    def rate(self, mixer: str) -> float:
        """Of RATES the one with the least held-out loss after PROBE steps, rates between warm-up and end."""
        if mixer not in self.rates:
            losses = {}
            for rate in RATES:
                print(f"probe {mixer} at {rate}", flush=True)
                setting = SETTINGS[0]
                probe = Training(setting, mixer, setting.vocabularies[0], rate, self.folder / f"probe-{mixer}-{rate}.pt")
                probe.go(PROBE - probe.step)
                losses[rate] = probe.held_out()[0]
            self.rates[mixer] = {"rate": min(losses, key=losses.__getitem__), "losses": losses}
            self.save()
        return float(self.rates[mixer]["rate"])

    def path_of(self, setting: Setting, mixer: str, vocabulary: int) -> Path:
        """Of the checkpoint of a run."""
        return self.folder / f"{mixer}-{setting.length}-{setting.pairs}-{vocabulary}.pt"

    def found(self, setting: Setting, mixer: str, vocabulary: int | None = None) -> dict[str, Any] | None:
        """The last run of it, of any vocabulary by default."""
        for run in reversed(self.runs):
            if (run["length"], run["pairs"], run["mixer"]) == (setting.length, setting.pairs, mixer):
                if vocabulary in (None, run["vocabulary"]):
                    return run
        return None

    def run(self, setting: Setting, mixer: str, vocabulary: int) -> dict[str, Any]:
        """The run, trained unless it was."""
        if (known := self.found(setting, mixer, vocabulary)) is not None:
            return known
        rate = self.rate(mixer)
        smaller = [(s, v) for s in SETTINGS if s.length < setting.length for v in s.vocabularies if v >= vocabulary]
        before = [path for s, v in smaller if (path := self.path_of(s, mixer, v)).exists()]
        print(f"{mixer} {setting} of {vocabulary} at {rate}", flush=True)
        path = self.path_of(setting, mixer, vocabulary)
        training = Training(setting, mixer, vocabulary, rate, path, before[-1] if before else None)
        training.go()
        self.runs.append(
            {
                "length": setting.length,
                "pairs": setting.pairs,
                "mixer": mixer,
                "vocabulary": vocabulary,
                "rate": rate,
                "steps": training.step,
                "seconds": round(training.seconds),
                "recall": training.curve[-1][2],
                "curve": training.curve,
            }
        )
        self.save()
        return self.runs[-1]

    def fill(self) -> None:
        """Settings from the smallest, in each exact attention first."""
        for setting in SETTINGS:
            for vocabulary in setting.vocabularies:
                if self.run(setting, "exact", vocabulary)["recall"] >= LEARNED:
                    break
            for mixer in MIXERS:
                self.run(setting, mixer, vocabulary)

    def summary(self) -> list[list[str]]:
        """Cells, the head first: recall by setting, where it falls below 90 % first, and what was predicted."""
        rows = [["mechanism", *map(str, SETTINGS), "first below 90 %", "predicted", ""]]
        for mixer in MIXERS:
            runs = [self.found(setting, mixer) for setting in SETTINGS]
            cells = ["" if run is None else f"{run['recall']:.1%} of V = {run['vocabulary']:,}" for run in runs]
            below = [str(s) for s, run in zip(SETTINGS, runs, strict=True) if run is not None and run["recall"] < LEARNED]
            first = below[0] if below else "none" if None not in runs else "not yet known"
            verdict = "" if first == "not yet known" else "hit" if first == FIRST_BELOW[mixer] else "miss"
            rows.append([mixer, *cells, first, FIRST_BELOW[mixer], verdict])
        return rows

    def report(self) -> None:
        for row in self.summary():
            print(f"| {' | '.join(row)} |")
        for run in self.runs:
            said = f"({run['length']}, {run['pairs']}) of {run['vocabulary']:,}"
            print(f"{run['mixer']:7s} {said:20s} rate {run['rate']}  {run['steps']:6d} steps  {run['seconds']:5d} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("runs/recall"), help="of checkpoints")
    said = parser.parse_args()
    table = Table(RESULTS, said.folder)
    if not said.report:
        torch.set_num_threads(1)
        said.folder.mkdir(parents=True, exist_ok=True)
        table.fill()
    table.report()


if __name__ == "__main__":
    main()
