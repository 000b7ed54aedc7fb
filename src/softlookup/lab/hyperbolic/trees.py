"""Nodes that attend to their ancestors: the standard library's tree, and points that are trained to find them."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import softlookup as sl

from ...manifolds import Distance, Euclidean, Lorentz, Manifold, Sphere

PACKAGES = ("concurrent", "http", "json", "logging", "urllib")


def tree(packages: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Names of nodes and of their parents, parents first; the root has none."""
    library = Path(sysconfig.get_path("stdlib"))
    parents: dict[str, str | None] = {"": None}
    for package in packages:
        parents[package] = ""
        parents.update(below(library / package, package))
    return parents


def below(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """What a package holds."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "__init__.py").exists() and not path.name.startswith("_"):
            yield f"{name}.{path.name}", name
            yield from below(path, f"{name}.{path.name}")
        elif path.name == "__init__.py":
            yield from inside(ast.parse(path.read_text("utf-8")), name)
        elif path.suffix == ".py" and not path.name.startswith("_"):
            yield f"{name}.{path.stem}", name
            yield from inside(ast.parse(path.read_text("utf-8")), f"{name}.{path.stem}")


def inside(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    """What a module or a class defines."""
    for part in node.body:
        if isinstance(part, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not part.name.startswith("_"):
            yield f"{name}:{part.name}", name
            if isinstance(part, ast.ClassDef):
                yield from inside(part, f"{name}:{part.name}")


def above(parents: dict[str, str | None]) -> Tensor:
    """(N, N) how many steps above node i its ancestor j is; 0 if it is none."""
    names = {name: i for i, name in enumerate(parents)}
    steps = torch.zeros(len(names), len(names))
    for name, parent in parents.items():
        count = 0
        while parent is not None:
            count += 1
            steps[names[name], names[parent]] = count
            parent = parents[parent]
    return steps


class Model:
    """Points of queries and keys, and the score between them."""

    def __init__(self, kind: str, nodes: int, width: int, seed: int):
        start = 0.1 * torch.randn(2, nodes, width, generator=torch.Generator().manual_seed(seed))
        if kind == "sphere":
            start = torch.cat([torch.ones(2, nodes, 1), start], -1)
        self.kind, self.points = kind, start.requires_grad_()
        self.log_b, self.log_c = (torch.zeros((), requires_grad=True) for _ in range(2))
        self.learned = [self.points, self.log_b] + [self.log_c] * (kind == "hyperbolic")

    def scores(self, rows: Tensor) -> Tensor:
        """(R, N) of some nodes to all; -inf to themselves."""
        (q, k), b = self.points, self.log_b.exp()
        others = rows[:, None] != torch.arange(len(k))
        if self.kind == "dot":
            return sl.operator.scores_of(q[rows], k, k, score=sl.Dot(), scale=b, mask=others)
        manifold: Manifold = Sphere() if self.kind == "sphere" else Euclidean()
        if self.kind == "hyperbolic":
            manifold = Lorentz(self.log_c.exp())
            q, k = manifold.point(q), manifold.point(k)
        return sl.operator.scores_of(q[rows], k, k, score=Distance(manifold), normalizer=sl.Softmax(1 / b), mask=others)


def trained(
    kind: str, steps: Tensor, width: int, seed: int, rate: float, count: int, rows: int = 128
) -> tuple[Model, float]:
    """A model after `count` steps on so many nodes, and its loss over all nodes."""
    model, order = Model(kind, len(steps), width, seed), torch.Generator().manual_seed(seed)
    wanted = torch.where(steps > 0, 0.5**steps, 0)
    wanted = wanted / wanted.sum(-1, keepdim=True)  # NaN for the root, which has no ancestor
    optimizer = torch.optim.Adam(model.learned, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)

    def loss(rows: Tensor) -> Tensor:
        s = model.scores(rows)
        return (s.logsumexp(-1) - (wanted[rows] * s.masked_fill(s.isinf(), 0)).sum(-1)).mean()

    for _ in range(count):
        optimizer.zero_grad()
        loss(torch.randint(1, len(steps), (rows,), generator=order)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return model, float(loss(torch.arange(1, len(steps))))


@torch.no_grad()
def measured(model: Model, steps: Tensor) -> tuple[float, float]:
    """Mean average precision of ancestors, and the share of nodes whose highest score is the parent's."""
    order = model.scores(torch.arange(1, len(steps))).argsort(-1, descending=True)
    found = steps[1:].gather(1, order)
    hits = found > 0
    precision = hits.cumsum(-1) / torch.arange(1, len(steps) + 1)
    average = (precision * hits).sum(-1) / hits.sum(-1)
    return float(average.mean()), float((found[:, 0] == 1).float().mean())
