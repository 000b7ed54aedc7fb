"""The page that compares what lies beyond softmax over all pairs, of what `beyond.py` and `recall.py` have measured."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import recall

Part = dict[str, Any]


def page(kept: dict[str, Part]) -> str:
    """Markdown of the parts that are there."""
    lines = [
        "# What each gives up",
        prose("""`python benchmarks/beyond.py` measures what can stand in for softmax over all pairs in a model as it is, side
            by side, and writes this page, figures and all; parts that are kept in its JSON it measures again where `--only`
            names them. Nothing is trained or fitted to the model: one that was trained with a mechanism may lose little by it,
            and what is called an error here is a distance from the softmax that this one was trained with. What has to be
            learned first is measured where it was: gated and delta recurrences by associative recall, learned geometries by a
            hierarchy."""),
    ]
    for name, lines_of in (("error", of_error), ("cost", of_cost), ("cost_of_all", of_cost_of_all)):
        if name in kept:
            lines += lines_of(kept[name])
    lines += of_recall()
    if "hierarchy" in kept:
        lines += of_hierarchy(kept["hierarchy"])
    return "\n\n".join(lines) + "\n"


def of_error(part: Part) -> list[str]:
    rows = part["rows"]
    lines = [
        "## Error on a real model",
        prose(f"""{len(rows[0]["relative"])} heads of SmolLM2, of six of its layers, read {part["tokens"]:,} tokens of Python's
            documentation. Relative error is |value − exact| over |exact|, all queries of a head together; explained is the
            share of the variance of exact values over queries that is there, below 0 where their mean would be nearer. Medians
            over heads, with quartiles."""),
    ]
    for causal, what in ((True, "causal"), (False, "over all keys, beside exact attention to all")):
        found = [row for row in rows if row["causal"] == causal]
        cells = [[row["kind"], row["name"], spread(row["relative"], ".2f"), spread(row["explained"], ".0%")] for row in found]
        lines.append(table([what, "", "relative error", "explained"], cells))
    return lines


def of_cost(part: Part) -> list[str]:
    return [
        "## Time",
        prose(f"""Seconds of a causal forward of one layer, 9 heads of 64, on {part["threads"]} cores ({part["machine"]}).
            Beyond {part["tokens"]:,} tokens the same queries, keys and values are repeated (synthetic). What was expected to
            take over a minute is left out. An eighth of the blocks is one of all pairs: about a quarter of those that a causal
            mask leaves."""),
        seconds(part["rows"]),
    ]


def of_cost_of_all(part: Part) -> list[str]:
    return [
        prose(f"""The same over all keys, on {part["threads"]} cores ({part["machine"]}), measured another day."""),
        seconds(part["rows"]),
    ]


def seconds(rows: list[dict[str, Any]]) -> str:
    """A table of seconds by length."""
    lengths = sorted({int(n) for row in rows for n in row["seconds"]})
    told = [[f"{row['seconds'][str(n)]:.3g}" if str(n) in row["seconds"] else "" for n in lengths] for row in rows]
    cells = [[row["kind"], row["name"], *times] for row, times in zip(rows, told, strict=True)]
    return table(["tokens", "", *(f"{n:,}" for n in lengths)], cells)


def of_recall() -> list[str]:
    head, *rows = recall.Table(recall.RESULTS, Path()).summary()
    return [
        "## Associative recall",
        prose("""Models of two layers of width 64 read pairs of a key and a value, then keys again, and are asked for their
            values (Arora et al. 2023): the share that is right by (length, pairs), and where it falls below 90 % first, beside
            what was predicted before any was trained. `python benchmarks/recall.py` trains them, an hour each at most, and has
            the predictions' sources; an empty cell is not trained yet. A run begins with the weights of the setting before, and
            ends once it has answered 95 % twice (98 or 99 % in some), or after an hour."""),
        table(head, rows),
        prose("""Misses are on the hopeful side: sums of outer products were expected to fail where keys overlap. But a value
            need not be read exactly, it only has to be told apart from V / 2 others, and then a state of 64 x 64 numbers is
            full at some 64² / (2 log(V / 2)) pairs, 246 for V = 8,192 and 422 for V = 256, as the argument beside the
            predictions has it. Nothing here comes near that."""),
    ]


def of_hierarchy(part: Part) -> list[str]:
    found = {(row["width"], row["score"]): row for row in part["rows"]}
    scores, widths = (list(dict.fromkeys(x)) for x in ((score for _, score in found), (width for width, _ in found)))
    cells = [
        [str(width), *(f"{found[width, s]['precision']:.3f}, {found[width, s]['parent']:.0%}" for s in scores)]
        for width in widths
    ]
    return [
        "## A hierarchy",
        prose("""How well attention from the nodes of a tree, Python's standard library, finds their ancestors: mean average
            precision, and how often the highest score is the parent's. More in
            [Other geometries](manifolds.md#what-a-hierarchy-gains)."""),
        table(["width", *scores], cells),
    ]


def prose(text: str) -> str:
    return " ".join(text.split())


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spread(values: list[float], form: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"
