"""The scores of one block, and the way back: from a block of score gradients to everything the scores came from.

The streaming engine's forward and backward, `received` and `divergence` all walk the same blocks with these two steps.
Blocks are (n, R, S') with n pairs of batch entry and key-value head and R = G L' query rows: the query heads that share
a key-value head lie side by side as rows, so grouped-query attention copies nothing.

A hidden key must have no effect whatever it holds, and 0 * NaN is NaN in a matrix product. So non-finite rows enter
products as zeros, and the scores of the pairs that see them are set to NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..problem import Problem, row_norms
from ..scores import AdditiveForm, Pairwise, Product
from ..tile import Tile
from .tiling import Block, Queries, Tiling, rows_of
from .workspace import Workspace

FLOOR = {torch.float32: -43.0, torch.float64: -350.0}
"""Where t = s - m is cut off. e^t is then too small to change any sum, but its square is not yet a denormal number, on which
processors (and the exponential itself) are a hundred times slower."""


@dataclass(eq=False)
class QueryBlock:
    """A block of queries, ready for products: rows (n, R, E), scaled; bad rows (n, R, 1) or None."""

    at: Queries
    rows: Tensor
    bad: Tensor | None


@dataclass(eq=False)
class ScoreBlock:
    """A block of final scores (n, R, S'), something finite where hidden, with what the way back needs.

    key: (n, S', E) as it entered the product; product: scale * q . k (+ key bias) before phi where phi is not the identity;
    graph: leaves and scores of a form differentiated by autograd. tame: no score is NaN or infinite; mild: e^(s - m) needs
    no floor.
    """

    at: Block
    scores: Tensor
    key: Tensor
    tame: bool = False
    mild: bool = False
    product: Tensor | None = None
    graph: tuple[Tensor, Tensor, Tensor] | None = None

    def hide(self, x: Tensor) -> Tensor:
        """Set x (n, R, S') to 0 where the block is hidden, in place."""
        visible = self.at.visible
        if visible is None:
            return x
        return x.mul_(visible.one) if self.tame else x.masked_fill_(visible.hidden, 0)


class Blocks:
    """Scores of a problem, block by block."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.tiling = Tiling(problem)
        self.dtype = problem.accumulate
        self.work = Workspace(self.dtype, problem.query.device)
        query, key = largest(problem.query), largest(problem.key)
        self.doubtful_query, self.doubtful_key = not math.isfinite(query), not math.isfinite(key)
        bound = self._bound(query * key)
        self.tame = bound < torch.finfo(self.dtype).max / 1e6
        self.mild = 2 * bound < -FLOOR[self.dtype]
        self._key_views: dict[int, tuple[Queries, Tensor]] = {}
        self._far: dict[tuple[int, int, int], Tensor] = {}
        self._steps: dict[tuple[int, bool], Tensor] = {}
        first = 3 + isinstance(problem.temperature, Tensor) + len(problem.parameters)
        self._own = slice(first, len(problem.tensors()) - len(problem.biases))  # the form's own among its tensors

    def _bound(self, product: float) -> float:
        """A bound on every |score|, hidden ones too, by Cauchy-Schwarz; infinite where there is none.

        Scores that are sure to be finite ("tame") can be hidden by arithmetic, and scores close enough to each other ("mild")
        need no floor under the exponential: both save passes over every block.
        """
        form, temperature = self.problem.form, self.problem.temperature
        if not isinstance(form, Product) or form.key_bias is not None or self.problem.biases:
            return math.inf
        if isinstance(temperature, Tensor) or math.isnan(product):
            return math.inf
        bound = abs(float(form.scale)) * product
        if form.pointwise is not None:
            bound = max(bound, form.pointwise.bound(bound))
        return bound / (temperature or 1.0)

    # ---- blocks of tensors ------------------------------------------------------------------------------------------

    def query_rows(self, q: Queries, x: Tensor) -> Tensor:
        """Rows of a (B, H, L, W) tensor as (n, R, W) in the accumulation dtype."""
        return x[q.place].reshape(q.entries, -1, x.shape[-1]).to(self.dtype)

    def key_rows(self, q: Queries, block: Block, x: Tensor) -> Tensor:
        """Rows of a (B, Hkv, S, W) tensor as (n, S', W) in the accumulation dtype; a view where that is possible."""
        rows = self._key_views.get(id(x))
        if rows is None or rows[0] is not q:
            part = x[q.b0 : q.b1, q.g0 : q.g1]
            flat = part[0] if len(part) == 1 else part[:, 0] if part.shape[1] == 1 else None
            if flat is None and part.is_contiguous():
                flat = part.view(q.entries, *part.shape[2:])
            rows = self._key_views[id(x)] = q, (part if flat is None else flat)
        part = rows[1][..., block.col0 : block.col1, :]
        return part.reshape(q.entries, -1, x.shape[-1]).to(self.dtype) if part.ndim == 4 else part.to(self.dtype)

    def steps(self, count: int, backwards: bool = False) -> Tensor:
        """(count,) 0, 1, 2, … or …, 2, 1, 0, in the accumulation dtype."""
        steps = self._steps.get((count, backwards))
        if steps is None:
            steps = torch.arange(count, device=self.work.device, dtype=self.dtype)
            steps = self._steps[count, backwards] = steps.flip(0) if backwards else steps
        return steps

    def far(self, tile: Tile) -> Tensor:
        """(R, S') |i - j| in the accumulation dtype; blocks along a diagonal share theirs."""
        r = tile.region
        kind = r.row1 - r.row0, r.j1 - r.j0, r.i0 - r.j0
        far = self._far.get(kind)
        if far is None:
            far = (tile.i - tile.j).abs().to(self.dtype).repeat(self.problem.group, 1)
            if isinstance(self.problem.place.queries, int):
                self._far = {**dict(list(self._far.items())[-7:]), kind: far}
        return far

    def put(self, q: Queries, into: Tensor, rows: Tensor) -> None:
        """Write rows (n, R, W) into their place in a (B, H, L, W) tensor."""
        part = into[q.place]
        part.copy_(rows.reshape(part.shape))

    def put_planes(self, q: Queries, into: Tensor, planes: list[Tensor]) -> None:
        """Write planes (n, R) into their place in a (K, B, H, L) tensor."""
        part = into[(slice(None), *q.place)]
        part.copy_(torch.stack(planes).view(part.shape))

    def four(self, q: Queries, x: Tensor) -> Tensor:
        """(n, R, S') as (n, G, L', S')."""
        return x.view(q.entries, self.problem.group, q.row1 - q.row0, x.shape[-1])

    # ---- scores -----------------------------------------------------------------------------------------------------

    def query(self, q: Queries) -> QueryBlock:
        """A block of queries, scaled (or left alone where the form is not a product)."""
        rows, bad = without_bad(self.query_rows(q, self.problem.query), self.doubtful_query)
        form = self.problem.form
        if isinstance(form, Product) and form.scale != 1.0:
            rows = rows * form.scale
        return QueryBlock(q, rows, bad)

    def scores(self, query: QueryBlock, block: Block, graph: bool = False, own: bool = False) -> ScoreBlock:
        """The final scores of a block. graph: keep what `pull` needs of a form that autograd differentiates; own: in memory
        that the next block leaves alone."""
        q, form = query.at, self.problem.form
        columns = block.col1 - block.col0
        key, bad = without_bad(self.key_rows(q, block, self.problem.key), self.doubtful_key)
        out = ScoreBlock(block, key, key, self.tame, self.mild)
        if isinstance(form, Product):
            place = None if own else self.work("scores", q.entries, query.rows.shape[1], columns)
            s = torch.bmm(query.rows, key.mT, out=place)
            if form.key_bias is not None:
                self.four(q, s).add_(self._key_bias(q, block, form.key_bias))
            if form.pointwise is not None:
                out.product = s
                s = form.pointwise(s)
        else:
            s = self._by_autograd(query, block, key, out, graph)
        for bias in self.problem.biases:
            self.four(q, s).add_(bias.block(block.tile).to(self.dtype))
        temperature = self._temperature(q, block)
        if temperature is not None:
            s.div_(temperature)
        if query.bad is not None:
            s.masked_fill_(query.bad, math.nan)
        if bad is not None:
            s.masked_fill_(bad.mT, math.nan)
        if block.visible is not None and not self.tame:
            s.masked_fill_(block.visible.hidden, 0)
        out.scores = s
        return out

    def _key_bias(self, q: Queries, block: Block, key_bias: Tensor) -> Tensor:
        part = key_bias[(*q.heads, slice(block.col0, block.col1))]
        return part.reshape(q.entries, q.group, 1, -1).to(self.dtype)

    def _temperature(self, q: Queries, block: Block) -> Tensor | float | None:
        """What scores are divided by: None for 1 and for hard retrieval, else a float or (n or 1, R or 1, 1)."""
        t = self.problem.temperature
        if isinstance(t, Tensor):
            return rows_of(block.tile.pick(t).to(self.dtype), self.problem.group, q.row1 - q.row0)
        return None if t in (0.0, 1.0) else t

    def _by_autograd(self, query: QueryBlock, block: Block, key: Tensor, out: ScoreBlock, graph: bool) -> Tensor:
        q, form, g = query.at, self.problem.form, self.problem.group
        with torch.set_grad_enabled(graph):
            rows = query.rows.view(q.entries, g, -1, query.rows.shape[-1]).detach().requires_grad_(graph)
            cols = key[:, None].detach().requires_grad_(graph)
            if isinstance(form, AdditiveForm):
                s = (rows.unsqueeze(-2) + cols.unsqueeze(-3)).tanh() @ self._weight(q, form.weight)
                s = s.squeeze(-1)
            else:
                assert isinstance(form, Pairwise)
                s = form.block(rows, cols, block.tile.i, block.tile.j)
                if graph:
                    listed = (*form.score.tensors(), rows, cols)
                    refuse_strangers(f"{type(form.score).__name__}.block", "as attributes of the score", s, listed)
        if graph:
            out.graph = rows, cols, s
        return s.detach().to(self.dtype).reshape(q.entries, query.rows.shape[1], -1).clone()

    def _weight(self, q: Queries, weight: Tensor) -> Tensor:
        """(H or 1, A) as (n or 1, G or 1, 1, A, 1), a view with a graph back to `weight`."""
        weight = weight.to(self.dtype)
        if weight.shape[0] == 1:
            return weight[:, None, None, :, None]
        g = self.problem.group
        part = weight[q.g0 * g : q.g1 * g].view(q.g1 - q.g0, g, -1)
        return part.repeat(q.b1 - q.b0, 1, 1)[:, :, None, :, None]

    # ---- the way back -----------------------------------------------------------------------------------------------

    def zeros(self) -> list[Tensor]:
        """A place to sum gradients in: zeros like `Problem.tensors()`, in the accumulation dtype."""
        like = self.problem.tensors()
        return [torch.zeros_like(t, dtype=self.dtype, memory_format=torch.contiguous_format) for t in like]

    def pull(self, query: QueryBlock, block: ScoreBlock, ds: Tensor, into: list[Tensor], dq: Tensor | None) -> Tensor:
        """Pull the gradient ds (n, R, S') of final scores back, adding to `into`; gives dq + what this block adds, (n, R, E).

        ds is used up, and must be 0 where hidden.
        """
        q, form, at = query.at, self.problem.form, block.at
        temperature = self._temperature(q, at)
        if temperature is not None:
            ds.div_(temperature)
        if isinstance(temperature, Tensor):
            per_row = -(ds * block.scores).sum(-1, keepdim=True)
            part = at.tile.region.cut(into[3])
            part.add_(at.tile.unfold(self.four(q, per_row)).sum_to_size(part.shape))
        for bias, grad in zip(self.problem.biases, into[self._own.stop :], strict=True):
            bias.pull(grad, self.four(q, ds), at.tile)
        if not isinstance(form, Product):
            return self._pull_by_autograd(query, block, ds, into, dq)
        if form.pointwise is not None:
            assert block.product is not None
            block.hide(ds.mul_(form.pointwise.slope(block.product)))
        if form.key_bias is not None:
            grad = into[self._own.start][(*q.heads, slice(at.col0, at.col1))]
            grad.add_(self.four(q, ds).sum(2).reshape(grad.shape))
        self.add_keys(q, at, into[1], ds, query.rows)
        return torch.bmm(ds, block.key) if dq is None else dq.baddbmm_(ds, block.key)

    def _pull_by_autograd(
        self, query: QueryBlock, block: ScoreBlock, ds: Tensor, into: list[Tensor], dq: Tensor | None
    ) -> Tensor:
        q, form = query.at, self.problem.form
        assert block.graph is not None
        rows, cols, s = block.graph
        block.graph = None
        own = [form.weight] if isinstance(form, AdditiveForm) else form.score.tensors()  # type: ignore[union-attr]
        wanted = [k for k, t in enumerate(own) if t.requires_grad]
        leaves = [rows, cols, *(own[k] for k in wanted)]
        grads = torch.autograd.grad(s, leaves, self.four(q, ds).to(s.dtype), allow_unused=True)
        for k, grad in zip(wanted, grads[2:], strict=True):
            if grad is not None:
                into[self._own.start + k].add_(grad)
        if grads[1] is not None:
            self.key_rows(q, block.at, into[1]).add_(grads[1][:, 0])
        step = torch.zeros_like(query.rows) if grads[0] is None else grads[0].reshape(query.rows.shape)
        return step if dq is None else dq.add_(step)

    def add_keys(self, q: Queries, block: Block, into: Tensor, w: Tensor, rows: Tensor) -> None:
        """Add w^T rows, (n, S', W), to the block's rows of a (B, Hkv, S, W) tensor; faster than a product into strided rows."""
        step = torch.bmm(w.mT, rows, out=self.work("step", w.shape[0], w.shape[-1], rows.shape[-1]))
        self.key_rows(q, block, into).add_(step)

    def finish_query(self, dq: Tensor) -> Tensor:
        """The gradient of the query itself from that of the scaled rows."""
        form = self.problem.form
        return dq * form.scale if isinstance(form, Product) and form.scale != 1.0 else dq


def largest(x: Tensor) -> float:
    """The largest norm of a row; not finite if some entry is not (or is beyond the square root of the largest number)."""
    return float(row_norms(x).max())


def without_bad(rows: Tensor, doubtful: bool) -> tuple[Tensor, Tensor | None]:
    """Rows (n, R, W) with those that are not finite set to 0, and which they were (n, R, 1); untouched if not `doubtful`."""
    if not doubtful:
        return rows, None
    bad = ~rows.isfinite().all(-1, keepdim=True)
    return rows.masked_fill(bad, 0), bad


def refuse_strangers(method: str, where: str, result: Tensor, listed: tuple[Tensor, ...]) -> None:
    """Raise if what a method returned depends on a leaf that needs a gradient but is not listed where it should be."""
    stop = {t.grad_fn for t in listed if t.grad_fn is not None}
    leaves = {id(t) for t in listed}
    todo, seen = [result.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen or node in stop:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in leaves:
            raise SoftlookupError(
                f"{method}: expected its parameters {where}, got a tensor of shape {tuple(leaf.shape)} from elsewhere "
                "that would get no gradient"
            )
        todo.extend(fn for fn, _ in node.next_functions)
