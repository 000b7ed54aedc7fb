"""Laws of attention among points: in every engine it is its definition, it goes with isometries, and small ones are flat."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import softlookup as sl
from softlookup import manifolds
from softlookup.manifolds import Distance, Euclidean, Lorentz, Manifold, Poincare, Product, Sphere

from .test_laws import CURVED, MANIFOLDS, D, flat, moved

H, KV, L, S = 4, 2, 7, 11


def tangents(dtype=torch.float64, kv: int = KV, size: float = 0.6) -> list[Tensor]:
    make = torch.Generator().manual_seed(3)
    shapes = (2, H, L, D), (2, kv, S, D), (2, kv, S, D)
    return [(torch.randn(shape, generator=make, dtype=torch.float64) * size).to(dtype) for shape in shapes]


def by_definition(q: Tensor, k: Tensor, v: Tensor, manifold: Manifold, power: int, temperature: float) -> Tensor:
    """Causal attention."""
    k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    s = -(manifold.distances(q, k) ** power) / temperature
    hidden = torch.ones(L, S, dtype=torch.bool).triu(S - L + 1)
    return manifold.midpoint(v, s.masked_fill(hidden, -math.inf).softmax(-1))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("shape", [(), (H,)])
@pytest.mark.parametrize("name", MANIFOLDS)
def test_is_its_definition_with_gradients_in_every_engine(name, shape, power, any_engine):
    c = (torch.rand(shape, dtype=torch.float64) + 0.5).requires_grad_()
    if name == "euclidean" and shape:
        return
    manifold, leaves = MANIFOLDS[name](c), [t.requires_grad_() for t in tangents()]
    q, k, v = leaves
    if shape:  # points of a head's own geometry; keys and values of as many heads, as points depend on the curvature here
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    q, k, v = (manifold.point(t) for t in (q, k, v))
    got = manifolds.attend(q, k, v, manifold=manifold, power=power, mask=sl.Causal(), normalizer=sl.Softmax(0.7))
    want = by_definition(q, k, v, manifold, power, 0.7)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    leaves += [c] if manifold.tensors() else []
    grads = [torch.autograd.grad(x.cos().sum(), leaves, retain_graph=True) for x in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-9)


def test_a_curvature_for_each_head_with_fewer_heads_of_keys():
    c = torch.rand(H, dtype=torch.float64) + 0.5
    q, k, v = tangents()
    got = manifolds.attend(q, k, v, manifold=Lorentz(c), mask=sl.Causal())
    torch.testing.assert_close(got, by_definition(q, k, v, Lorentz(c), 1, 1.0))
    for h in range(H):
        one = q[:, h : h + 1], k[:, h // 2, None], v[:, h // 2, None]
        alone = manifolds.attend(*one, manifold=Lorentz(float(c[h])), mask=sl.Causal())
        torch.testing.assert_close(got[:, h : h + 1], alone)


@pytest.mark.parametrize(
    ("manifold", "power", "engine", "far"),
    [
        (Euclidean(), 2, "native", 1e-5),
        (Lorentz(), 1, "streaming", 1e-5),
        (Euclidean(), 1, "streaming", 1e-5),
        (Lorentz(), 2, "streaming", 1e-5),
        (Lorentz(1.01), 1, "streaming", 1e-5),
        (Lorentz(torch.tensor(1.0)), 1, "streaming", 1e-5),
        (Poincare(), 1, "streaming", 1e-5),
        (Sphere(), 1, "streaming", 1e-5),
        (Product((Lorentz(), 2), (Sphere(), 2)), 2, "streaming", 1e-5),
    ],
    ids=str,
)
def test_engines_in_single_precision(manifold, power, engine, far):
    """Queries are keys, so that some distances are 0."""
    if engine == "native" and sl.engines.library.load()[0] is None:
        pytest.skip("no native engine")
    x = manifold.point(tangents(torch.float32)[0][..., : manifold.widths(D)[0]])
    score = Distance(manifold, power)
    assert sl.explain(x, x, x, score=score).engine == engine
    y, stats = sl.attend(x, x, x, score=score, stats=("logsumexp", "max_logit"))
    s = -(manifold.distances(x.double(), x.double()) ** power)
    wanted = s.softmax(-1) @ x.double(), s.logsumexp(-1), s.amax(-1)
    for got, want in zip((y, stats.logsumexp, stats.max_logit), wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=far, atol=far)


@pytest.mark.parametrize(("r", "engine"), [(0.1, "native"), (1.0, "native"), *((r, "streaming") for r in (3.0, 8.0, 12.0))])
@pytest.mark.parametrize("c", [1.0, torch.tensor(1.0)], ids=["fixed", "learned"])
def test_points_are_near_themselves(c, r, engine):
    """By the native engine to 1e-3, by the streaming engine to the rounding of coordinates in single precision, eps cosh(r)."""
    if engine == "native" and (isinstance(c, Tensor) or sl.engines.library.load()[0] is None):
        engine = "streaming"
    x = Lorentz().point(r * torch.nn.functional.normalize(tangents(torch.float32)[0], dim=-1))
    score = Distance(Lorentz(c))
    assert sl.explain(x, x, x, score=score).engine == engine
    _, stats = sl.attend(x, x, x, score=score, mask=torch.eye(L, dtype=torch.bool), stats="max_logit")
    allowed = 1e-3 if engine == "native" else torch.finfo(torch.float32).eps * math.cosh(r)
    assert stats.max_logit.abs().max() <= allowed
    _, stats = sl.attend(x, x, x, score=score, stats="logsumexp")
    want = (-Lorentz().distances(x.double(), x.double())).logsumexp(-1)
    assert (stats.logsumexp - want).abs().max() <= allowed + 5e-7  # that of single precision itself


@pytest.mark.parametrize("name", ["lorentz", "poincare"])
@pytest.mark.parametrize("r", [1.0, 7.0, 12.0])
def test_one_far_value_is_handed_over_as_it_is(name, r):
    q, k, v = tangents(torch.float32, kv=H)
    manifold = MANIFOLDS[name](1.0)
    v = manifold.point(r * torch.nn.functional.normalize(v, dim=-1))
    q, k = manifold.point(q), manifold.point(k)
    got, stats = manifolds.attend(q, k, v, manifold=manifold, mask=sl.Causal() & sl.Window(1), stats=("entropy", "argmax"))
    torch.testing.assert_close(got, v[:, :, S - L :], rtol=5e-7, atol=0)
    assert got.dtype == stats.entropy.dtype == torch.float32 and stats.argmax.dtype == torch.int64
    both = manifolds.attend(q, k, v, manifold=manifold, mask=sl.Causal() & sl.Window(2))
    exact = manifolds.attend(q.double(), k.double(), v.double(), manifold=manifold, mask=sl.Causal() & sl.Window(2))
    assert manifold.distance(both.double(), exact).max() <= 1e-5 * math.cosh(r) / 10


@pytest.mark.parametrize("name", MANIFOLDS)
def test_moves_with_all_points_and_not_with_the_order_of_keys(name):
    manifold = MANIFOLDS[name](0.7)
    q, k, v = (manifold.point(t) for t in tangents(kv=H))
    got = manifolds.attend(q, k, v, manifold=manifold)
    torch.manual_seed(5)
    *points, want = moved(manifold, torch.cat([q, k, v, got], 2)).split([L, S, S, L], 2)
    torch.testing.assert_close(manifolds.attend(*points, manifold=manifold), want)
    order = torch.randperm(S)
    torch.testing.assert_close(manifolds.attend(q, k[:, :, order], v[:, :, order], manifold=manifold), got)


@pytest.mark.parametrize("name", CURVED)
def test_small_curvatures_are_flat(name):
    want = manifolds.attend(*tangents(), manifold=Euclidean())
    errors = []
    for c, dtype in ((1e-2, torch.float64), (1e-3, torch.float64), (1e-6, torch.float32)):
        manifold = MANIFOLDS[name](c)
        got = manifolds.attend(*(manifold.point(t) for t in tangents(dtype)), manifold=manifold)
        errors.append(float((flat(manifold, got).double() - want).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05) and errors[2] < 1e-5


@pytest.mark.parametrize("name", MANIFOLDS)
def test_masks_normalizers_and_statistics(name):
    manifold = MANIFOLDS[name](0.7)
    q, k, v = (manifold.point(t) for t in tangents())
    for normalizer in (sl.Softmax(sink=0.5), sl.Entmax(1.5), sl.TopK(3), sl.Sigmoid()):
        mask = sl.Causal() & sl.Lengths(torch.tensor([6, S]))
        arguments = {"mask": mask, "normalizer": normalizer}
        got, stats = manifolds.attend(q, k, v, manifold=manifold, **arguments, stats=("entropy", "visible"))
        arguments["score"] = Distance(manifold)
        _, want = sl.attend(q, k, v, **arguments, stats="entropy")
        assert torch.equal(stats.entropy, want.entropy)
        p = sl.operator.weights_of(q, k, v, **arguments)
        torch.testing.assert_close(got, manifold.midpoint(v.repeat_interleave(2, 1), p))
    dark = manifolds.attend(q, k, v, manifold=manifold, mask=sl.Lengths(torch.tensor([0, S])))
    assert dark.isfinite().all()
    if not isinstance(manifold, Sphere | Product):
        assert not dark[0].any() and dark[1].all()


@pytest.mark.parametrize("name", MANIFOLDS)
def test_what_is_hidden_has_no_effect(name):
    manifold = MANIFOLDS[name](torch.tensor(0.7, dtype=torch.float64, requires_grad=True))
    leaves = [manifold.point(t).detach().requires_grad_() for t in tangents()]
    seen = []
    for garbage in (0.0, math.nan, math.inf):
        q, k, v = leaves
        k, v = (torch.cat([x[:, :, :9], torch.full_like(x[:, :, 9:], garbage)], 2) for x in (k, v))
        y = manifolds.attend(q, k, v, manifold=manifold, mask=sl.Lengths(9))
        seen.append([y, *torch.autograd.grad(y.cos().sum(), [*leaves, *manifold.tensors()])])
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0])


def test_half_precision_and_autocast():
    q, k, v = tangents(torch.float32)
    want = manifolds.attend(q, k, v, manifold=Lorentz(0.5))
    half = manifolds.attend(*(x.bfloat16() for x in (q, k, v)), manifold=Lorentz(0.5))
    assert half.dtype == torch.bfloat16
    rounded = manifolds.attend(*(x.bfloat16().float() for x in (q, k, v)), manifold=Lorentz(0.5))
    torch.testing.assert_close(half, rounded.bfloat16())
    with torch.autocast("cpu"):
        torch.testing.assert_close(manifolds.attend(q, k, v, manifold=Lorentz(0.5)), want)


def test_values_may_be_of_another_geometry():
    q, k, v = tangents()
    v = Sphere().point(v)
    got = manifolds.attend(q, k, v, manifold=Lorentz(), values=Sphere())
    p = sl.operator.weights_of(q, k, v, score=Distance(Lorentz()))
    torch.testing.assert_close(got, Sphere().midpoint(v.repeat_interleave(2, 1), p))
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(2, H, L).double())


class Stretched(Manifold):
    """A geometry of one's own: flat, one unit of length for each coordinate."""

    def __init__(self, lengths: Tensor):
        self.lengths = lengths

    def squared(self, x, y):
        return ((x - y) / self.lengths).square().sum(-1)

    def lift(self, x):
        return Euclidean().lift(x / self.lengths)

    def project(self, sums):
        return Euclidean().project(sums) * self.lengths


def test_a_geometry_of_ones_own(any_engine):
    (q, k, v), lengths = tangents(), torch.rand(D, dtype=torch.float64) + 0.5
    got = manifolds.attend(q, k, v, manifold=Stretched(lengths))
    want = manifolds.attend(q / lengths, k / lengths, v / lengths, manifold=Euclidean()) * lengths
    torch.testing.assert_close(got, want)


def attend(manifold, q=0.1, k=0.1, v=0.1, width=D, **more):
    """With good points, every coordinate of which is a number, save for what is replaced."""
    shapes = (2, H, L, D), (2, KV, S, width), (2, KV, S, D)
    points = (torch.full(shape, x, dtype=torch.float64) for shape, x in zip(shapes, (q, k, v), strict=True))
    return manifolds.attend(*points, manifold=manifold, **more)


PER_HEAD = torch.tensor([1.0, 1.0, 1.0, 30.0])
BAD = {
    "no manifold": (lambda: attend("sphere"), "manifold: expected a Manifold"),
    "power": (lambda: attend(Sphere(), power=3), "power: expected 1 or 2, got 3"),
    "power in words": (lambda: attend(Sphere(), power="1"), "power: expected 1 or 2, got '1'"),
    "scale": (lambda: attend(Sphere(), scale=2.0), "scale: expected None"),
    "widths": (lambda: attend(Lorentz(), width=D + 1), "Distance: expected queries and keys of the same width"),
    "no tensor": (lambda: manifolds.attend([1.0], None, None, manifold=Lorentz()), "query: expected a torch tensor"),
    "heads": (lambda: attend(Lorentz(PER_HEAD[:3])), "curvature: expected one for each of 4 heads"),
    "heads of queries": (lambda: attend(Lorentz(PER_HEAD[:3]), values=Sphere()), "curvature: expected a number or a tensor"),
    "query outside": (lambda: attend(Poincare(), q=1.0), "query: expected points in the ball"),
    "key outside": (lambda: attend(Poincare(PER_HEAD), q=0.01, v=0.01), "key: expected points in the ball"),
    "value outside": (lambda: attend(Lorentz(), values=Poincare(2.0), v=1.0), "value: expected points in the ball"),
    "score": (lambda: attend(Lorentz(), score=sl.Dot()), "score: expected none, as the manifold's distance is it, got Dot"),
    "values": (lambda: attend(Lorentz(), values="x"), "values: expected a Manifold, such as Lorentz(), got 'x'"),
    "coordinates": (lambda: attend(Product((Sphere(), 2), (Lorentz(), 3))), "value: expected 5 coordinates"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    call, message = BAD[what]
    with pytest.raises(sl.SoftlookupError) as caught:
        call()
    assert str(caught.value).startswith(message) and "got" in str(caught.value) and "\n" not in str(caught.value)


# ---- graphs ----------------------------------------------------------------------------------------------------------


class Graph(torch.nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, q, k, v, c):
        manifold = self.make(c)
        return manifolds.attend(*(manifold.point(x) for x in (q, k, v)), manifold=manifold, mask=sl.Causal())


def refuses_a_curvature_below_0(call, leaves):
    with pytest.raises(sl.SoftlookupError, match="^curvature: expected finite numbers > 0, got -1$"):
        call(*leaves[:3], torch.full((), -1.0, dtype=torch.float64, requires_grad=leaves[3].requires_grad))


def test_compiled_graphs_are_whole_and_the_same():
    torch.compiler.reset()
    leaves = [x.requires_grad_() for x in (*tangents(), torch.tensor(0.7, dtype=torch.float64))]
    compiled, found = torch.compile(Graph(Poincare), fullgraph=True, backend="aot_eager"), []
    for call in (Graph(Poincare), compiled):
        y = call(*leaves)
        found.append([y, *torch.autograd.grad(y.cos().sum(), leaves)])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    refuses_a_curvature_below_0(compiled, leaves)


def test_compiled_middles_are_the_same_and_refuse_weights_below_0():
    torch.compiler.reset()
    x, w = torch.rand(2, 5, 3, dtype=torch.float64).requires_grad_(), torch.rand(2, 1, 5, dtype=torch.float64).requires_grad_()
    compiled, found = torch.compile(Sphere().frechet_mean, fullgraph=True, backend="aot_eager"), []
    for call in (Sphere().frechet_mean, compiled):
        y = call(x, w, 2)
        found.append([y, *torch.autograd.grad(y.cos().sum(), (x, w))])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    with pytest.raises(sl.SoftlookupError, match="^weights: expected numbers >= 0, got -1[.]"):
        compiled(x, w - 2, 2)


def test_exported_graphs_are_the_same():
    inputs = *tangents(), torch.tensor(0.7, dtype=torch.float64)
    graph = Graph(lambda c: Product((Lorentz(c), 2), (Sphere(), 2), (Euclidean(), 1)))
    exported = torch.export.export(graph, inputs).module()
    torch.testing.assert_close(exported(*inputs), graph(*inputs), rtol=1e-12, atol=1e-12)
    refuses_a_curvature_below_0(exported, inputs)


# ---- Mahalanobis -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, D), (H, 3, D), (1, 3, D)])
def test_mahalanobis_is_its_definition(shape, any_engine):
    q, k, v, a = (t.requires_grad_() for t in (*tangents(), torch.randn(shape, dtype=torch.float64)))
    apart = (q[:, :, :, None] - k.repeat_interleave(2, 1)[:, :, None]) @ (a[:, None] if a.ndim == 3 else a).mT
    want = (-apart.square().sum(-1) / 2).softmax(-1) @ v.repeat_interleave(2, 1)
    got = sl.attend(q, k, v, score=sl.Mahalanobis(a))
    torch.testing.assert_close(got, want)
    leaves = [q, k, v, a]
    torch.testing.assert_close(torch.autograd.grad(got.cos().sum(), leaves), torch.autograd.grad(want.cos().sum(), leaves))


def test_mahalanobis_of_the_identity_is_gaussian_and_far_away_loses_no_digits():
    q, k, v = tangents(torch.float32)
    eye = torch.eye(D)
    torch.testing.assert_close(sl.attend(q, k, v, score=sl.Mahalanobis(eye)), sl.attend(q, k, v, score=sl.Gaussian()))
    a = torch.randn(3, D)
    q, k = ((x * 64).round() / 64 for x in (q, k))  # so that adding 1000 rounds nothing
    want = sl.attend(q.double(), k.double(), v.double(), score=sl.Mahalanobis(a.double()))
    got = sl.attend(q + 1000, k + 1000, v, score=sl.Mahalanobis(a))
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(D,), (3, D + 1), (3, 2, D)])
def test_mahalanobis_of_a_wrong_shape(shape):
    with pytest.raises(sl.SoftlookupError, match="^Mahalanobis: expected a of shape .*, got"):
        sl.attend(*tangents(), score=sl.Mahalanobis(torch.ones(shape).double()))


@pytest.mark.parametrize("a", ["x", [[1.0]], None, torch.ones(3, dtype=torch.int64), torch.ones(0, D), torch.ones(2, 0)])
def test_mahalanobis_of_no_matrix(a):
    with pytest.raises(sl.SoftlookupError, match="^Mahalanobis: expected a of shape [^\n]*, got [^\n]*$"):
        sl.Mahalanobis(a)
