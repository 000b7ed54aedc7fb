"""softlookup against its peers on the CPU, side by side in one process.

    python benchmarks/peers.py [--rounds 7] [--threads 2] [--only TEXT] [--peer NAME …] [--engine NAME] [--curves]
                               [--json PATH] [--markdown]

Outputs, statistics and gradients are checked equal first. Then each round times every contender once, in turn; a figure is
the median over rounds of (peer's time / softlookup's), with quartiles, so that drifting clocks cancel: above 1 means that
softlookup is faster. softlookup computes the whole cheap set, in the backward with a gradient for each of its statistics,
unless a row says otherwise; what the peers compute, their docstrings say (contenders.py, runtimes.py).

The share of the peak is what softlookup's useful operations amount to of the fused multiply-adds that the machine does at
best, measured in the same rounds. `--curves` measures time against length instead.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec

import machine
import torch
from contenders import SDPA, ByHand, Compiled, Contender, Eager, Flex, Plain, Refused, Softlookup, Streaming, Trick
from runtimes import JAX, ONNX, KeOps
from shapes import CURVES, TABLE, Inputs, Shape
from torch import Tensor

PEERS: dict[str, type[Contender]] = {
    "plain": Plain,
    "streaming": Streaming,
    "sdpa": SDPA,
    "byhand": ByHand,
    "flex": Flex,
    "jax": JAX,
    "onnx": ONNX,
    "keops": KeOps,
    "eager": Eager,
    "compiled": Compiled,
    "trick": Trick,
}
ON_CURVES = ("sdpa", "byhand")

SAMPLE = 0.03
"""Seconds that a sample takes at least: short calls are repeated."""
PATIENCE = 4.0
"""Seconds that a contender may take in a row, or three times what softlookup takes: slower ones run in fewer rounds."""
PAUSE = 0.025
"""Seconds before a sample: idle threads of libgomp spin for some milliseconds and would take the next one's cores."""


@dataclass
class Timing:
    """A contender in a row: its median time, and the quartiles of its time over softlookup's."""

    ms: float
    ratio: float
    q1: float
    q3: float
    rounds: int
    how: str


@dataclass
class Row:
    shape: Shape
    backward: bool
    timings: dict[str, Timing] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    differing: list[str] = field(default_factory=list)
    roofline: float | None = None

    @property
    def name(self) -> str:
        return f"{'backward' if self.backward else 'forward'} {self.shape.name}"


def close(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    """Raise unless the difference is at most `tolerance` of the largest entry (of 0.1 where all are smaller)."""
    apart, largest = (got - want).abs().max().item(), want.abs().max().item()
    assert apart <= tolerance * max(largest, 0.1), f"{what} differs by {apart:.1e}, the largest is {largest:.1e}"


def check(contender: Contender, ours: Contender, plain: Contender, backward: bool) -> None:
    """Raise unless what is to be timed, output and statistics or gradients, is equal to softlookup's."""
    if backward:
        reference = ours if contender.whole_set else plain
        grads = contender.gradients(contender.prepare()())
        for name, a, b in zip("query key value".split(), grads, reference.gradients(reference.prepare()()), strict=True):
            close(a, b, 1e-4, f"the gradient of {name}")
        return
    with torch.no_grad():
        got, want = contender.forward(), ours.forward()
    close(contender.value(got), ours.value(want), 1e-5, "the output")
    statistics_of_ours = ours.statistics(want)
    for name, x in contender.statistics(got).items():
        if name == "argmax":  # where two keys are equal but for the last digit, either is right
            apart = (x != statistics_of_ours[name]).double().mean().item()
            assert apart < 1e-3, f"argmax differs in {apart:.1%} of the queries"
        else:
            close(x, statistics_of_ours[name], 5e-5, name)


def build(row: Row, inputs: Inputs, peers: Sequence[str]) -> dict[str, Contender]:
    """Those that can do the row and agree with softlookup; why others cannot is noted in the row."""
    plain = Plain(inputs)
    ours = Softlookup(inputs) if row.shape.statistics else plain
    built: dict[str, Contender] = {"softlookup": ours}
    for name in peers:
        try:
            wanted = PEERS[name].memory(row.shape, row.backward)
            if wanted > machine.spare_memory():
                raise Refused(f"it would hold some {wanted / 2**30:.0f} GiB")
            if name == "plain" and not row.shape.statistics:
                raise Refused("nothing else is timed here")
            contender = PEERS[name](inputs)
            check(contender, ours, plain, row.backward)
            built[name] = contender
        except Refused as reason:
            row.refused[name] = str(reason)
        except AssertionError as difference:
            row.refused[name] = str(difference)
            row.differing.append(name)
        except Exception as error:  # a peer that fails is not to end the run of the others
            row.refused[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return built


class Timed:
    """A contender's samples, how many calls each averages, and the seconds that one takes with what is not timed."""

    def __init__(self, contender: Contender, backward: bool):
        self.contender, self.backward, self.calls = contender, backward, 1
        self.samples: list[float] = []
        start = time.perf_counter()
        once = self.sample()
        self.cost = time.perf_counter() - start
        if once < SAMPLE:
            once = min(self.sample() for _ in range(3))
            self.calls = math.ceil(SAMPLE / once)
            self.cost += self.calls * once

    def sample(self) -> float:
        """Seconds of a call."""
        with torch.set_grad_enabled(self.backward):
            run = self.contender.prepare() if self.backward else self.contender.forward
            start = time.perf_counter()
            for _ in range(self.calls):
                run()
            return (time.perf_counter() - start) / self.calls


def measure(row: Row, contenders: Mapping[str, Contender], peak: machine.Peak | None, rounds: int) -> None:
    timed = {name: Timed(each, row.backward) for name, each in contenders.items()}
    ours, names, peaks = timed["softlookup"], list(timed), []
    patience = max(PATIENCE, 3 * rounds * ours.cost)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:  # nobody always runs behind the same one
            if turn < max(2, patience / timed[name].cost):
                time.sleep(PAUSE)
                timed[name].samples.append(timed[name].sample())
        if peak is not None:
            time.sleep(PAUSE)
            peaks.append(peak())
    for name, each in timed.items():
        ratios = [a / b for a, b in zip(each.samples, ours.samples, strict=False)]
        q1, ratio, q3 = statistics.quantiles(ratios, n=4, method="inclusive")
        ms = 1e3 * statistics.median(each.samples)
        row.timings[name] = Timing(ms, ratio, q1, q3, len(ratios), each.contender.how)
    flops = row.shape.flops(row.backward)
    if peaks and flops is not None:
        row.roofline = flops / statistics.median(ours.samples) / (1e9 * max(peaks))


def rounded(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def said(row: Row) -> str:
    """The row in lines, a peer each."""
    ours = row.timings["softlookup"]
    roofline = "" if row.roofline is None else f", {row.roofline:.0%} of the peak"
    lines = [f"{row.name}: {rounded(ours.ms)} ms ({ours.how} engine{roofline})"]
    for name, t in row.timings.items():
        if name != "softlookup":
            how = f"   {t.how}" if t.how and not issubclass(PEERS[name], Softlookup) else ""
            spread = f"{t.q1:.2f} – {t.q3:.2f}"
            lines.append(f"    {PEERS[name].title:24s}{t.ratio:8.2f}  {spread:>15s} {rounded(t.ms):>10s} ms{how}")
    lines += [f"    {PEERS[name].title:24s}  not run: {why}" for name, why in row.refused.items()]
    return "\n".join(lines)


def markdown(rows: Sequence[Row], peers: Sequence[str]) -> str:
    """A table of ratios with their quartiles."""
    shown = [name for name in peers if any(name in row.timings for row in rows)]
    lines = [
        "| | softlookup, ms | of the peak | " + " | ".join(PEERS[name].title for name in shown) + " |",
        "|---" * (len(shown) + 3) + "|",
    ]
    for row in rows:
        roofline = "" if row.roofline is None else f"{row.roofline:.0%}"
        cells = [row.name, rounded(row.timings["softlookup"].ms), roofline]
        for name in shown:
            t = row.timings.get(name)
            cells.append("" if t is None else f"{t.ratio:.2f} ({t.q1:.2f} – {t.q3:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="run only the rows whose name contains this")
    parser.add_argument("--peer", action="append", choices=PEERS, help="run only this peer; may be given several times")
    parser.add_argument("--engine", choices=("native", "streaming"), help="softlookup's; without it the one it chooses")
    parser.add_argument("--without-statistics", action="store_true", help="softlookup computes the output only, in every row")
    parser.add_argument("--curves", action="store_true", help="time against length instead, to 65,536 tokens")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table for docs/benchmarks.md at the end")
    args = parser.parse_args()
    machine.limit(args.threads)
    Softlookup.engine = args.engine

    peers = args.peer or (ON_CURVES if args.curves else list(PEERS))
    missing = {name: absent for name in peers if (absent := [x for x in PEERS[name].packages if find_spec(x) is None])}
    peers = [name for name in PEERS if name in peers and name not in missing]
    here = machine.describe(args.threads)
    print(f"{here['cpu']}, {here['instructions']}, {args.threads} threads, float32; {here['versions']}")
    for name, absent in missing.items():
        print(f"{PEERS[name].title}: not run, as {', '.join(absent)} is not installed (requirements/bench.txt)")
    peak: machine.Peak | None = machine.Peak(args.threads)
    if peak is not None and peak.why:
        print(f"no roofline: {peak.why}")
        peak = None
    print("peer's time over softlookup's, quartiles, peer's time; above 1 softlookup is faster", flush=True)

    rows = []
    for shape in CURVES if args.curves else TABLE:
        if args.without_statistics:
            shape = replace(shape, statistics=False)
        inputs = Inputs(shape)
        for row in (Row(shape, backward) for backward in (False, True)[: 1 + shape.backward]):
            if args.only not in row.name:
                continue
            try:
                measure(row, build(row, inputs, peers), peak, args.rounds)
            except Refused as reason:
                print(f"{row.name}: not run: {reason}")
                continue
            rows.append(row)
            print(said(row), flush=True)
    runtimes = machine.openmp_runtimes()
    if len(runtimes) > 1:
        print(f"more than one OpenMP runtime is loaded, so that idle threads may stand in each other's way: {runtimes}")
    if args.markdown:
        print(markdown(rows, peers))
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": here | {"openmp": runtimes}, "rows": {row.name: asdict(row) for row in rows}}, file, indent=1)
    if differing := [f"{row.name}: {name}" for row in rows for name in row.differing]:
        raise SystemExit(f"not equal to softlookup: {'; '.join(differing)}")


if __name__ == "__main__":
    main()
