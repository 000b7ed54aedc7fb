"""A table that is asked softly, against what reads or multiplies the same numbers: a million rows, keys and values of 128.

    python benchmarks/table.py [--rows 1000000] [--rounds 7] [--threads 2] [--queries 10000] [--only exact cells …]

exact: every row is read, with statistics; one query against torch's sum over keys and values, which only reads them, 64 queries
against torch's softmax(Q K^T / t) V, in turn; told are the medians of the ratios and their range. The table lies once in memory
and once in a folder whose pages are cached.
cells: 1,000 unit centres, rows within 0.3 of them, temperature 0.02, tolerance 1e-3; time against reading every row.
certificates: the true share of what was not read beside what was certified, in float64; then warmer, and on hard rows.
open: how long a table of 10 GB takes to open, to answer for the first time, and to be verified.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from softlookup.memory import SoftTable

WIDTH, TEMPERATURE, TOLERANCE, CENTRES, RADIUS = 128, 0.02, 1e-3, 1000, 0.3
ROUNDING = 1e-11
PARTS = ["exact", "cells", "certificates", "open"]


def seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def ratios(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> str:
    """Times of the first and second in turn, and of their ratio second / first the median and range."""
    first(), second()
    pairs = [(seconds(first), seconds(second)) for _ in range(rounds)]
    each = sorted(b / a for a, b in pairs)
    a, b = (statistics.median(x) for x in zip(*pairs, strict=True))
    return f"{a * 1e3:9.2f} ms  {b * 1e3:9.2f} ms  {statistics.median(each):6.2f} ({each[0]:.2f} to {each[-1]:.2f})"


def clustered(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys within RADIUS of CENTRES unit vectors, and the centres."""
    draw = torch.Generator().manual_seed(seed)
    centres = normalize(torch.randn(CENTRES, WIDTH, generator=draw), dim=1)
    away = normalize(torch.randn(rows, WIDTH, generator=draw), dim=1) * (RADIUS * torch.rand(rows, 1, generator=draw))
    return away.add_(centres[torch.randint(CENTRES, (rows,), generator=draw)]), centres


def exact(keys: Tensor, values: Tensor, folder: Path, rounds: int) -> None:
    one, many = normalize(torch.randn(1, WIDTH), dim=1), normalize(torch.randn(64, WIDTH), dim=1)
    with SoftTable.create(folder, WIDTH, WIDTH) as stored:
        stored.add(keys, values)
        for name, table in (("in memory", SoftTable.of(keys, values)), ("in a folder", stored)):
            parts = table.state().parts
            print(f"{name:12s}             softlookup         torch    torch / softlookup")
            read = ratios(
                lambda t=table: t.lookup(one, TEMPERATURE), lambda p=parts: [(x.keys.sum(), x.values.sum()) for x in p], rounds
            )
            print(f"  1 query, sum      {read}")
            plain = ratios(
                lambda t=table: t.lookup(many, TEMPERATURE),
                lambda: (many @ keys.T).div_(TEMPERATURE).softmax(1) @ values,
                rounds,
            )
            print(f"  64 queries        {plain}", flush=True)


def cells(keys: Tensor, values: Tensor, queries: int, rounds: int) -> None:
    table = SoftTable.of(keys, values)
    print(f"cells: built in {seconds(lambda: table.index('cells', CENTRES)):.1f} s")
    asked = queries_near(keys, queries)
    for n in (1, 64, 1024):
        some = asked[torch.randperm(len(asked))[:n]]
        both = ratios(
            lambda q=some: table.lookup(q, TEMPERATURE, tolerance=TOLERANCE),
            lambda q=some: table.lookup(q, TEMPERATURE),
            max(3, rounds // 2),
        )
        print(f"  {n:5d} queries: cells, everything, everything / cells  {both}", flush=True)


def queries_near(keys: Tensor, count: int) -> Tensor:
    """Unit vectors at rows, and as many a little away from rows."""
    draw = torch.Generator().manual_seed(1)
    near = keys[torch.randint(len(keys), (count // 2,), generator=draw)]
    away = 0.2 * normalize(torch.randn(near.shape, generator=draw), dim=1)
    return normalize(torch.cat([near, near + away]), dim=1)


def certificates(keys: Tensor, centres: Tensor, queries: int) -> None:
    draw = torch.Generator().manual_seed(2)
    certify("cells", keys, CENTRES, queries_near(keys, queries))
    few = keys[:100_000]
    for temperature in (0.04, 0.06):
        certify(f"100,000 rows, temperature {temperature}", few, CENTRES, queries_near(few, 1000), temperature)
    hard: dict[str, Tensor] = {
        "no clusters": normalize(torch.randn(50_000, WIDTH, generator=draw), dim=1),
        "outliers": torch.randn(50_000, WIDTH, generator=draw).div_(WIDTH**0.5)
        * (1 + 20 * (torch.rand(50_000, 1, generator=draw) < 0.01)),
        "all alike": centres[:1] + 1e-4 * torch.randn(50_000, WIDTH, generator=draw),
        "between two": normalize(centres[:2].sum(0, keepdim=True), dim=1)
        + 0.3 * torch.randn(50_000, WIDTH, generator=draw) / WIDTH**0.5,
    }
    for name, rows in hard.items():
        others = normalize(torch.randn(200, WIDTH, generator=draw), dim=1)
        certify(name, rows, 200, torch.cat([rows[:200], -rows[:200], others]))


def certify(name: str, keys: Tensor, count: int, asked: Tensor, temperature: float = TEMPERATURE) -> None:
    """What was missed in truth, the worst and beside what was certified; all in float64, where rounding is far below it."""
    table, asked = SoftTable.of(keys.double()), asked.double()
    table.index("cells", count)
    names = "logsumexp", "visible"
    say(name, table, asked, temperature, table.lookup(asked, temperature, tolerance=TOLERANCE, stats=names))
    few = asked[:200]
    say(f"{name}, best 100", table, few, temperature, table.lookup(few, temperature, top_k=100, stats=names))


def say(name: str, table: SoftTable, asked: Tensor, temperature: float, found: Any) -> None:
    keys = table.get().keys
    whole = torch.cat([((q @ keys.T) / temperature).logsumexp(1) for q in asked.split(64)])
    true = -torch.expm1(found.stats.logsumexp - whole)
    known = (true > ROUNDING) & (found.missed > 0)
    ratio = (found.missed / true)[known]
    above = int((true > found.missed + ROUNDING).sum())
    rows = found.stats.visible.double()
    told = f"{float(ratio.median()):.1f} (median of {len(ratio):,})" if len(ratio) else "not told: nothing was missed"
    median = float(rows.median())
    print(f"  {name}: {len(asked):,} queries read {float(rows.mean()):,.0f} of {len(keys):,} rows (median {median:,.0f})")
    print(f"    missed at most {float(true.max()):.1e}, certified at most {float(found.missed.max()):.1e}; bound / true {told}")
    print(f"    more than certified: {above}; not certified: {int((found.missed >= 1).sum())}", flush=True)


def opened(folder: Path) -> None:
    """10 GB: 10,000,000 rows, keys and values of 128."""
    with SoftTable.create(folder, WIDTH, WIDTH) as table:
        keys, values = torch.randn(500_000, WIDTH), torch.randn(500_000, WIDTH)
        took = seconds(lambda: [table.add(keys, values) for _ in range(20)])
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"open: {size / 1e9:.1f} GB written in {took:.0f} s")
    times = []
    for _ in range(5):
        start = time.perf_counter()
        table = SoftTable.open(folder)
        len(table)
        times.append(time.perf_counter() - start)
        table.close()
    with SoftTable.open(folder) as table:
        asked = torch.randn(1, WIDTH)
        first = seconds(lambda: table.lookup(asked, 1.0))
        checked = seconds(table.verify)
    print(
        f"  opened in {statistics.median(times) * 1e3:.1f} ms; first query {first:.1f} s; verified in {checked:.0f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    torch.manual_seed(0)
    keys, centres = clustered(said.rows)
    values = torch.randn(said.rows, WIDTH)
    with tempfile.TemporaryDirectory() as place:
        if "exact" in said.only:
            exact(keys, values, Path(place, "exact"), said.rounds)
        if "cells" in said.only:
            cells(keys, values, said.queries, said.rounds)
        if "certificates" in said.only:
            certificates(keys, centres, said.queries)
        if "open" in said.only:
            del keys, values
            opened(Path(place, "large"))


if __name__ == "__main__":
    main()
