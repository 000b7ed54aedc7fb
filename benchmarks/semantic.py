"""Semantic search in a table, and whether low entropy means right.

    python benchmarks/semantic.py [--rows 6000] [--ask "shortest path between two nodes of a graph"]

Rows are docstrings of Python's library and of packages that are installed with softlookup, read as text and never imported. A
query is the first sentence of a docstring, the right row is what follows it: its first 64 tokens, without that sentence and
without the name. A docstring whose first sentence or whose rest occurs twice is left out, and of the others as many as --rows
are drawn. Both are embedded by MiniLM (mean over tokens, length 1) and the rows put into a SoftTable on the disk.

The temperature is the one under which the right rows are likeliest, for the first fifth of the queries. All that is told is of
the others: the share right (the best row is the right one) by entropy and by largest weight, the expected calibration error of
the largest weight over ten bins of as many queries each, and, of all that could say whether the best row is right, the area
under the ROC curve (0.5: nothing, 1: all). Entropy and largest weight are judged a second time at temperatures of their own,
which tell best by the first fifth, too. Intervals are of 95 %, by 1,000 bootstraps over queries.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import sysconfig
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score
from torch import Tensor

from softlookup.inspection.loading import load
from softlookup.memory import SoftTable

PACKAGES = ("networkx", "numpy", "scipy", "sklearn", "torch")
SKIPPED = {"site-packages", "test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "ensurepip", "_vendor"}
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
WORDS, REST = range(5, 41), 20
"""Words of a first sentence, and of what follows it at least."""
TOKENS, BATCH = 64, 64
TEMPERATURES = (0.005, 1.0)
OWN = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1)
"""Temperatures that are tried for what says whether a row is right."""
BINS, BOOTSTRAPS = 10, 1000


@dataclass(frozen=True)
class Entry:
    """A docstring: the first sentence, and what follows it."""

    name: str
    query: str
    rest: str


def files() -> Iterator[tuple[str, Path]]:
    """Modules by name."""
    folders = {"": Path(sysconfig.get_path("stdlib"))}
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        folders[f"{package}."] = Path(next(iter(spec.submodule_search_locations)))
    for prefix, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder)
            if not SKIPPED & set(inside.parts):
                yield prefix + ".".join(inside.with_suffix("").parts), path


def definitions(body: list[ast.stmt], name: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings of what a module or class defines."""
    for node in body:
        if isinstance(node, DEFINITIONS):
            if doc := ast.get_docstring(node, clean=False):
                yield f"{name}.{node.name}", doc
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{name}.{node.name}")


def entry(name: str, doc: str) -> Entry | None:
    """The two halves of a docstring, None where one of them is too short or too long."""
    text = re.sub(r"\s+", " ", re.sub(r"[-=~^*]{3,}", " ", re.sub(r"\n\s*\n", " \0 ", cleandoc(doc)))).strip()
    parts = re.split(r" ?\0 ?|(?<=[.!?]) (?=[A-Z`:])", text, maxsplit=1)
    query, rest = parts[0].strip(), re.sub(r"[\0\s]+", " ", parts[1]).strip() if len(parts) > 1 else ""
    rest = rest.replace(query, "")
    return Entry(name, query, rest) if len(query.split()) in WORDS and len(rest.split()) >= REST else None


def corpus(rows: int) -> list[Entry]:
    found = []
    for module, path in files():
        for name, doc in definitions(ast.parse(path.read_bytes()).body, module):
            if (one := entry(name, doc)) is not None:
                found.append(one)
    queries, rests = Counter(e.query.lower() for e in found), Counter(e.rest[:200].lower() for e in found)
    once = [e for e in found if queries[e.query.lower()] == rests[e.rest[:200].lower()] == 1]
    print(f"{len(found):,} docstrings, {len(once):,} unlike the others", flush=True)
    return random.Random(0).sample(once, min(rows, len(once)))


@torch.no_grad()
def embedded(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """(n, d) of length 1."""
    tokens = tokenizer(texts, truncation=True, max_length=TOKENS)["input_ids"]
    found = torch.empty(len(texts), model.config.hidden_size)
    for some in torch.tensor([len(t) for t in tokens]).argsort().split(BATCH):
        batch = tokenizer.pad({"input_ids": [tokens[n] for n in some]}, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        found[some] = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(found, dim=1)


def tuned(table: SoftTable, queries: Tensor, scores: Tensor) -> float:
    """The temperature under which rows of these scores (n,) are likeliest."""

    def loss(log: float) -> float:
        t = float(np.exp(log))
        return float((table.lookup(queries, t, stats="logsumexp").stats.logsumexp - scores / t).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


def signals(table: SoftTable, queries: Tensor, temperature: float) -> dict[str, np.ndarray]:
    """Entropy and largest weight (n,), the larger the likelier right."""
    stats = table.lookup(queries, temperature, stats=("entropy", "max_weight")).stats
    return {"entropy": -stats.entropy.double().numpy(), "largest weight": stats.max_weight.double().numpy()}


def suited(table: SoftTable, ids: Tensor, queries: Tensor) -> dict[str, float]:
    """The temperatures at which signals tell best whether the best row is right."""
    right = (table.lookup(queries, top_k=1).ids[:, 0] == ids).numpy()
    tried = {t: signals(table, queries, t) for t in OWN}
    return {name: max(OWN, key=lambda t: roc_auc_score(right, tried[t][name])) for name in tried[OWN[0]]}


def calibration_error(weight: np.ndarray, right: np.ndarray) -> float:
    """The mean over bins of |share right - mean weight|."""
    bins = np.array_split(np.argsort(weight), BINS)
    return float(sum(len(b) * abs(right[b].mean() - weight[b].mean()) for b in bins) / len(weight))


def interval(measure: Callable[[np.ndarray], Any], n: int) -> np.ndarray:
    """(2, ...): from where to where 95 % of the bootstraps of a measure of some queries lie."""
    draw = np.random.default_rng(0)
    return np.percentile([measure(draw.integers(0, n, n)) for _ in range(BOOTSTRAPS)], [2.5, 97.5], axis=0)


def curve(title: str, by: np.ndarray, columns: dict[str, np.ndarray], right: np.ndarray) -> None:
    """A row for each bin of as many queries, in the order of `by`."""
    print(f"\n| {title} | " + " | ".join(columns) + " | share right |")
    print("|---|" + "---|" * (len(columns) + 1))
    for some in np.array_split(np.argsort(by, kind="stable"), BINS):
        low, high = interval(lambda again, r=right[some]: r[again].mean(), len(some))
        middle = " | ".join(f"{column[some].mean():.2f}" for column in columns.values())
        span = f"{abs(by[some[0]]):.2f} to {abs(by[some[-1]]):.2f}"
        print(f"| {span} | {middle} | {right[some].mean():.1%} [{low:.1%}, {high:.1%}] |")


def told(table: SoftTable, ids: Tensor, queries: Tensor, temperature: float, own: dict[str, float]) -> None:
    """The tables, of queries whose right rows have these ids. own: other temperatures of signals."""
    found = signals(table, queries, temperature)
    entropy, weight = -found["entropy"], found["largest weight"]
    effective = table.lookup(queries, temperature, stats="effective_keys").stats.effective_keys.double().numpy()
    best = table.lookup(queries, temperature, top_k=5)
    hits = (best.ids == ids[:, None]).numpy()
    right, n = hits[:, 0], len(hits)
    for k in (1, 5):
        hit = hits[:, :k].any(1)
        low, high = interval(lambda some, hit=hit: hit[some].mean(), n)
        print(f"right row among the {k} best: {hit.mean():.1%} [{low:.1%}, {high:.1%}]")
    scores = best.scores.double().numpy()
    low, high = interval(lambda some: calibration_error(weight[some], right[some]), n)
    print(f"calibration error {calibration_error(weight, right):.3f} [{low:.3f}, {high:.3f}]; mean weight {weight.mean():.3f}")
    columns = {"effective rows": effective, "largest weight": weight}
    curve("entropy, nats", entropy, columns, right)
    curve("largest weight", -weight, {"its mean": weight, "entropy": entropy}, right)
    found |= {"margin": scores[:, 0] - scores[:, 1], "best score": scores[:, 0]}
    found |= {f"{name} at {t}": signals(table, queries, t)[name] for name, t in own.items()}

    def areas(some: np.ndarray) -> list[float]:
        return [float(roc_auc_score(right[some], signal[some])) for signal in found.values()]

    def beside(some: np.ndarray) -> list[list[float]]:
        all_of = areas(some)
        return [all_of, [area - all_of[0] for area in all_of]]

    whole, (low, high) = np.array(beside(np.arange(n))), interval(beside, n)
    print("\n| what says that it is right | area under the curve | less that of entropy |\n|---|---|---|")
    for at, name in enumerate(found):
        area, less = (f"{whole[k, at]:.3f} [{low[k, at]:.3f}, {high[k, at]:.3f}]" for k in (0, 1))
        print(f"| {name} | {area} | {less if at else ''} |")


def answer(table: SoftTable, asked: str, query: Tensor, temperature: float) -> None:
    """A question, and the best rows with their weights among all."""
    whole = table.lookup(query, temperature).stats
    print(f"\n{asked}: entropy {whole.entropy:.2f} nats, {whole.effective_keys:.1f} effective rows")
    best = table.lookup(query, temperature, top_k=5)
    weights = (best.scores / temperature - whole.logsumexp).exp()
    for weight, score, row in zip(weights, best.scores, table.get(best.ids).payloads, strict=True):
        print(f"  {weight:6.1%}  {score:.3f}  {row['name']}: {row['text'][:60]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--ask", default="shortest path between two nodes of a graph")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", SyntaxWarning)
    begun = time.perf_counter()
    entries = corpus(arguments.rows)
    loaded = load("minilm")
    keys = embedded(loaded.model, loaded.tokenizer, [e.rest for e in entries])
    queries = embedded(loaded.model, loaded.tokenizer, [e.query for e in entries])
    asked = embedded(loaded.model, loaded.tokenizer, [arguments.ask])[0]
    print(f"{2 * len(entries):,} texts embedded after {time.perf_counter() - begun:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder, SoftTable.create(Path(folder) / "table", keys.shape[1]) as table:
        ids = table.add(keys, payloads=[{"name": e.name, "text": e.rest} for e in entries])
        fifth = len(entries) // 5
        temperature = tuned(table, queries[:fifth], (queries[:fifth] * keys[:fifth]).sum(1))
        print(f"{table!r}\ntemperature {temperature:.4f} by {fifth:,} queries; told of {len(entries) - fifth:,} others\n")
        told(table, ids[fifth:], queries[fifth:], temperature, suited(table, ids[:fifth], queries[:fifth]))
        answer(table, arguments.ask, asked, temperature)
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
