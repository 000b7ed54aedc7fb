"""The benchmark of hierarchies: its tree is the library's on disk, its measures are their definitions, its models learn."""

from __future__ import annotations

import torch

from benchmarks import hierarchy
from softlookup.lab.hyperbolic import trees


def test_the_tree_is_what_lies_on_disk():
    parents = trees.tree(("json",))
    assert parents == trees.tree(("json",)) and list(parents)[0] == ""
    assert parents["json"] == "" and parents["json:dumps"] == "json" and parents["json.decoder"] == "json"
    assert parents["json.decoder:JSONDecoder:decode"] == "json.decoder:JSONDecoder"
    names = list(parents)
    assert all(names.index(parent) < i for i, parent in enumerate(parents.values()) if parent is not None)
    steps = trees.above(parents)
    node = names.index("json.decoder:JSONDecoder:decode")
    chain = ["json.decoder:JSONDecoder", "json.decoder", "json", ""]
    assert [float(steps[node, names.index(name)]) for name in chain] == [1, 2, 3, 4] and (steps[node] > 0).sum() == 4


def test_measures_are_their_definitions():
    steps, model = trees.above(trees.tree(("json",))), trees.Model("dot", 1, 1, 0)
    s = torch.randn(len(steps), len(steps)).masked_fill(torch.eye(len(steps)).bool(), -torch.inf)
    model.scores = lambda rows: s[rows]
    precisions, first = [], []
    for i in range(1, len(steps)):
        order = sorted(range(len(steps)), key=lambda j: -float(s[i, j]))  # noqa: B023
        ranks = [r for r, j in enumerate(order, 1) if steps[i, j] > 0]
        precisions.append(sum(n / r for n, r in enumerate(ranks, 1)) / len(ranks))
        first.append(float(steps[i, order[0]] == 1))
    want = sum(precisions) / len(precisions), sum(first) / len(first)
    torch.testing.assert_close(torch.tensor(trees.measured(model, steps)), torch.tensor(want))


def test_every_score_learns():
    steps = trees.above(trees.tree(("json",)))
    for width, kind, rate, found, model in hierarchy.compared(steps, (3,), (0.03, 0.1), seeds=1, count=60):
        before = trees.measured(trees.Model(kind, len(steps), 3, 0), steps)
        assert width == 3 and rate == 0.1 and found[0][0] > 2 * before[0] and model.log_b.item() != 0
    assert kind == "hyperbolic" and model.log_c.item() != 0
