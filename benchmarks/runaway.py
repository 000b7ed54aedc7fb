"""A small language model whose learning rate is too high: when does who warn, and which remedies bring it back?

    python benchmarks/runaway.py run --folder DIR            # a file per run; what is there is not made again
    python benchmarks/runaway.py run --folder DIR --kind plain --rate 0.003 [--size large]
    python benchmarks/runaway.py report --folder DIR

The text is that of Python's own help (`pydoc_data.topics`), in bytes; the model a decoder with 4 heads a layer; all runs of a
seed see the same batches. A run is plain, or has a remedy; it has a seed, a rate and a size.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import softlookup as sl
from softlookup.files import write_text
from softlookup.nn import RoPE, TransformerBlock
from softlookup.remedies import entropy_penalty, qk_clip_, qk_norm_, sigma_reparam_, soft_cap_, ssmax_
from softlookup.watching import Alarms

LENGTH, BATCH, STEPS, SMOOTH = 128, 16, 1000, 50
SIZES = {"small": (3, 64), "large": (4, 96), "other": (2, 48), "wide": (3, 128)}
HIGH, HEALTHY = 0.03, 0.003
REMEDIES = ("qk_norm", "qk_clip", "entropy_penalty", "sigma_reparam", "soft_cap", "ssmax")
STATS = ("entropy_ratio", "max_logit", "jacobian_trace", "sink_mass")


@dataclass(frozen=True)
class Run:
    """One training. kind: "plain" or a remedy."""

    kind: str
    seed: int
    rate: float
    size: str

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.size}-{self.rate:g}-{self.seed}"


class GPT(nn.Module):
    """Bytes in, the logits of the next byte out."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, 4, positions=RoPE()) for _ in range(layers))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x, _ = block(x, mask=sl.Causal())
        return self.out(self.norm(x))


def text() -> Tensor:
    """All topics, one after the other, as bytes."""
    topics = pydoc_data.topics.topics
    return torch.tensor(list("\n".join(topics[name] for name in sorted(topics)).encode()))


def batches(seed: int, steps: int, length: int = LENGTH) -> Iterator[Tensor]:
    """(B, L + 1) pieces from anywhere in the text."""
    data, random = text(), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        start = torch.randint(len(data) - length - 1, (BATCH,), generator=random)
        yield data[start[:, None] + torch.arange(length + 1)]


def train(run: Run, steps: int = STEPS) -> dict[str, Any]:
    """Loss, gradient norm and largest logit of every step, and at which step each kind of alarm rang first."""
    torch.manual_seed(run.seed)
    model = GPT(*SIZES[run.size])
    before = {"qk_norm": qk_norm_, "sigma_reparam": sigma_reparam_, "soft_cap": soft_cap_}
    if run.kind in before:
        before[run.kind](model)
    if run.kind == "ssmax":
        ssmax_(model, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), run.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    alarms, first, record = Alarms(), {}, {"loss": [], "norm": [], "max_logit": [], "entropy_ratio": []}
    penalized = run.kind == "entropy_penalty"
    with sl.watch(model, stats=STATS, keep="graph" if penalized else "heads") as seen:
        for step, batch in enumerate(batches(run.seed, steps)):
            for group in optimizer.param_groups:
                group["lr"] = run.rate * min(1.0, (step + 1) / 20)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            (loss + entropy_penalty(seen, 0.3) if penalized else loss).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
            optimizer.step()
            if run.kind == "qk_clip":
                qk_clip_(model, seen)
            for alarm in alarms(step, seen):
                if not alarm.cleared:
                    first.setdefault(alarm.kind, [step, alarm.layer, alarm.head, alarm.value])
            layers = list(seen.layers.values())
            record["loss"].append(loss.item())
            record["norm"].append(norm.item())
            record["max_logit"].append(max(float(x.max("max_logit").max()) for x in layers))
            record["entropy_ratio"].append(min(float(x.mean("entropy_ratio").min()) for x in layers))
            seen.clear()
    return {"alarms": first, **record}


def trailing(losses: list[float]) -> np.ndarray:
    """Mean over the last `SMOOTH` steps, from step SMOOTH - 1 on."""
    sums = np.cumsum(np.insert(np.array(losses), 0, 0.0))
    return (sums[SMOOTH:] - sums[:-SMOOTH]) / SMOOTH


def leaves(plain: dict[str, Any], healthy: list[dict[str, Any]]) -> tuple[int | None, int | None]:
    """The step at which the plain run's loss is first above the band of the runs with QK-norm at the same rate (their mean at
    that step and three standard deviations over seeds, all smoothed), and that from which it stays there."""
    band = np.stack([trailing(run["loss"]) for run in healthy])
    above = trailing(plain["loss"]) > band.mean(0) + 3 * band.std(0, ddof=1)
    if not above[-1]:
        return None, None
    inside = np.flatnonzero(~above)
    return int(np.argmax(above)) + SMOOTH - 1, (int(inside[-1]) + 1 if len(inside) else 0) + SMOOTH - 1


def loss_alarm(run: dict[str, Any]) -> int | None:
    """The first step whose loss is three standard deviations above the mean of the fifty before it: a spike."""
    losses = np.array(run["loss"])
    for step in range(SMOOTH, len(losses)):
        past = losses[step - SMOOTH : step]
        if losses[step] > past.mean() + 3 * past.std():
            return step
    return None


def norm_alarm(run: dict[str, Any]) -> int | None:
    """The first step whose gradient norm is five times the median of the fifty before it."""
    norms = np.array(run["norm"])
    for step in range(SMOOTH, len(norms)):
        if not norms[step] <= 5 * np.median(norms[step - SMOOTH : step]):
            return step
    return None


def report(folder: Path, seeds: list[int]) -> None:
    """The warning, those remedies that were run with all these seeds, and the peace of healthy runs."""

    def place(kind: str, seed: int, rate: float, size: str) -> Path:
        return folder / f"{Run(kind, seed, rate, size).name}.json"

    def found(*run: Any) -> dict[str, Any]:
        return json.loads(place(*run).read_text())

    def last(run: dict[str, Any]) -> float:
        return float(np.mean(run["loss"][-SMOOTH:]))

    remedies = [kind for kind in REMEDIES if all(place(kind, seed, HIGH, "small").exists() for seed in seeds)]
    high = {(kind, seed): found(kind, seed, HIGH, "small") for kind in ("plain", *remedies) for seed in seeds}
    healthy = [high["qk_norm", seed] for seed in seeds]
    print(f"plain runs at rate {HIGH}: step of the first alarm of each kind, and when the loss leaves the band")
    for seed in seeds:
        run = high["plain", seed]
        kinds = "  ".join(f"{kind} {told[0]}" for kind, told in run["alarms"].items())
        first, for_good = leaves(run, healthy)
        plain = f"loss {loss_alarm(run)}; gradient norm {norm_alarm(run)}"
        print(f"  seed {seed}: {kinds}; leaves the band at {first}, for good at {for_good}; {plain}")
    print("remedies: share of the gap between the plain run and that with QK-norm that is recovered, in the last fifty steps")
    for kind in remedies:
        shares = []
        for seed in seeds:
            plain, best = last(high["plain", seed]), last(high["qk_norm", seed])
            shares.append((plain - last(high[kind, seed])) / (plain - best))
        print(f"  {kind:16s} " + "  ".join(f"{x:6.1%}" for x in shares))
    print(f"healthy runs at rate {HEALTHY}: alarms")
    for size in ("small", "large"):
        for seed in seeds:
            run = found("plain", seed, HEALTHY, size)
            said = ", ".join(f"{kind} {told[0]}" for kind, told in run["alarms"].items()) or "none"
            also = f"loss {loss_alarm(run)}; gradient norm {norm_alarm(run)}"
            print(f"  {size} seed {seed}: {said}; {also}; largest logit {run['max_logit'][-1]:.1f}, loss {last(run):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kind", nargs="*", default=["plain", *REMEDIES])
    parser.add_argument("--seed", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--rate", type=float, default=HIGH)
    parser.add_argument("--size", default="small")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    if args.what == "report":
        report(args.folder, args.seed)
        return
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    for seed in args.seed:
        for kind in args.kind:
            run = Run(kind, seed, args.rate, args.size)
            path = args.folder / f"{run.name}.json"
            if not path.exists():
                start = time.perf_counter()
                found = train(run, args.steps)
                write_text(path, json.dumps(found | {"seconds": time.perf_counter() - start}))
            found = json.loads(path.read_text())
            loss = found["loss"]
            print(
                f"{run.name:30s} {found['seconds']:4.0f} s  loss {sum(loss[-50:]) / 50:.3f}  "
                f"max logit {max(found['max_logit'][-50:]):8.1f}  least entropy ratio {min(found['entropy_ratio'][-50:]):.3f}  "
                + "  ".join(f"{k} {v[0]}" for k, v in found["alarms"].items()),
                flush=True,
            )


if __name__ == "__main__":
    main()
