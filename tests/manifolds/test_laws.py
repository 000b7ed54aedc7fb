"""Laws of geometries: distances against their definition in many digits, isometries, limits, middles, derivatives."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import Tensor

from softlookup import SoftlookupError
from softlookup.manifolds import Euclidean, Lorentz, Manifold, Poincare, Product, Sphere, attend, series

D = 4
MANIFOLDS = {
    "euclidean": lambda c: Euclidean(),
    "sphere": Sphere,
    "lorentz": Lorentz,
    "poincare": Poincare,
    "product": lambda c: Product((Lorentz(c), 2), (Euclidean(), 1), (Sphere(c), 2)),
}
CURVED = ["sphere", "lorentz", "poincare", "product"]


@pytest.fixture(params=MANIFOLDS)
def manifold(request) -> Manifold:
    return MANIFOLDS[request.param](0.7)


def tangents(*shape: int, size: float = 0.6, seed: int = 0, dtype=torch.float64) -> Tensor:
    return (torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size).to(dtype)


def weights(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


# ---- distances -------------------------------------------------------------------------------------------------------


def exactly(name: str, c: float, x: Tensor, y: Tensor) -> float:
    """The textbook's formula for these very coordinates, in 60 digits."""
    with mpmath.workdps(60):
        c, x, y = mpmath.mpf(c), [mpmath.mpf(a) for a in x.tolist()], [mpmath.mpf(a) for a in y.tolist()]
        dot = lambda a, b: mpmath.fsum(s * t for s, t in zip(a, b, strict=True))  # noqa: E731
        if name == "sphere":
            return float(mpmath.acos(dot(x, y) / mpmath.sqrt(dot(x, x) * dot(y, y))) / mpmath.sqrt(c))
        if name == "lorentz":
            cosh = mpmath.sqrt((1 + c * dot(x, x)) * (1 + c * dot(y, y))) - c * dot(x, y)
        else:
            apart = [a - b for a, b in zip(x, y, strict=True)]
            cosh = 1 + 2 * c * dot(apart, apart) / ((1 - c * dot(x, x)) * (1 - c * dot(y, y)))
        return float(mpmath.acosh(cosh) / mpmath.sqrt(c))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apart", [1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("c", [1e-6, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("name", ["sphere", "lorentz", "poincare"])
def test_distances_keep_their_digits(name, c, apart, dtype):
    """Near points and small curvatures too. Far from the origin by the rounding of t = cosh, or of the ball's border, and on a
    sphere by that of unit vectors beside the angle."""
    manifold, eps = MANIFOLDS[name](c), torch.finfo(dtype).eps
    v = tangents(20, dtype=dtype)
    u = v + apart * tangents(20, seed=1, dtype=dtype)
    x, y = manifold.point(v), manifold.point(u)
    want = torch.tensor([exactly(name, c, a, b) for a, b in zip(x, y, strict=True)], dtype=torch.float64)
    error = (manifold.distance(x, y).double() - want).abs()
    t = (c**0.5 * torch.maximum(v.norm(dim=-1), u.norm(dim=-1)).double()).cosh()
    allowed = 4 * eps * t * want
    if name == "sphere":
        allowed = allowed + 2 * eps / c**0.5
    assert (error <= allowed).all()


def test_distances_of_far_points():
    """On a line through the origin of a hyperboloid, up to t = 1e4, where products of coordinates have lost all digits."""
    r = torch.tensor([0.0, 3.0, 9.0, 9.001, 9.5])
    v = torch.stack([r, torch.zeros(5)], -1)
    points = Lorentz().point(v)
    want = [[exactly("lorentz", 1.0, a, b) for b in points] for a in points]
    torch.testing.assert_close(Lorentz().distances(points, points), torch.tensor(want), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["lorentz", "poincare"])
def test_points_are_as_far_away_as_coordinates_can_say(name):
    """Those of the ball end where 1 - |p| is the rounding of p: e^d times that is what they can say of d."""
    far, eps = torch.tensor([0.1, 1.0, 7.0, 12.0, 15.0, 20.0, 30.0]), torch.finfo(torch.float32).eps
    if name == "poincare":
        far = far[far < 14]
    along = torch.nn.functional.normalize(tangents(len(far), dtype=torch.float32), dim=-1)
    points, origin = MANIFOLDS[name](1.0).point(along * far[:, None]), torch.zeros(D)
    allowed = 4 * eps * (far if name == "lorentz" else far.cosh())
    for got in (MANIFOLDS[name](1.0).distance(points, origin), MANIFOLDS[name](1.0).distance(origin, points)):
        assert ((got - far).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [1e-6, 1.0, 50.0])
@pytest.mark.parametrize("name", ["lorentz", "poincare"])
def test_beyond_the_end_of_coordinates_everything_stays_finite(name, c, dtype):
    c = torch.tensor(c, dtype=dtype, requires_grad=True)
    manifold = MANIFOLDS[name](c)
    v = torch.nn.functional.normalize(tangents(1, 1, 6, dtype=dtype), dim=-1) / c.detach().sqrt()
    origin, ends = manifold.point(torch.zeros(1, 1, 1, D, dtype=dtype)), []
    for far in (39.0, 45.0, 89.0, 400.0, 1e6, 1e18):
        leaf = (far * v).requires_grad_()
        x = manifold.point(leaf)
        torch.testing.assert_close(torch.nn.functional.cosine_similarity(x, v, -1), torch.ones_like(x[..., 0]))
        ends.append((manifold.distances(origin, x).detach() * c.detach().sqrt()).max().item())
        out = manifold.distance(x[..., :3, :], x[..., 3:, :]), attend(x, x, x, manifold=manifold), manifold.midpoint(x)
        grads = torch.autograd.grad(sum((y / y.detach().abs().amax()).sum() for y in out), [leaf, c])
        assert all(each.isfinite().all() for each in (*out, *grads)) and (out[0] > 0).all()
    assert ends[-2:] == pytest.approx([ends[-3]] * 2, rel=0.05 if name == "poincare" else 1e-5), "the end moves"
    assert ends[-1] > (14 if name == "poincare" else 34)


def test_opposite_points_of_a_sphere():
    turn = torch.tensor([3.14, 3.1415, 3.14159])
    x, y = torch.tensor([[1.0, 0.0]]), torch.stack([turn.cos(), turn.sin()], -1)
    want = torch.tensor([exactly("sphere", 1.0, x[0], b) for b in y])
    torch.testing.assert_close(Sphere().distance(x, y), want, rtol=3e-7, atol=0)


def test_a_metric(manifold):
    x, y, z = (manifold.point(tangents(50, seed=seed)) for seed in (1, 2, 3))
    d = manifold.distance
    assert (d(x, x) == 0).all() and (d(x, y) > 0).all()
    torch.testing.assert_close(d(x, y), d(y, x))
    assert (d(x, z) <= d(x, y) + d(y, z) + 1e-12).all()
    assert torch.equal(manifold.distances(x, y).diagonal(), d(x, y))


def test_points_are_as_far_from_the_origin_as_their_tangents_are_long(manifold):
    v = tangents(50)
    origin = manifold.point(torch.zeros(D, dtype=v.dtype))
    if not isinstance(manifold, Product):  # whose parts have an origin each; there the length is that of all together
        torch.testing.assert_close(manifold.distance(origin, manifold.point(3 * v[:5] / 4)), 3 * v[:5].norm(dim=-1) / 4)
    torch.testing.assert_close(manifold.distance(origin, manifold.point(v)), v.norm(dim=-1))
    assert manifold.widths(origin.shape[-1]) == (D, manifold.lift(origin).shape[-1])


def test_the_hyperbolic_models_are_one():
    ball, plain = Poincare(0.7), Lorentz(0.7)
    x, y, w = plain.point(tangents(6)), plain.point(tangents(6, seed=1)), weights(3, 6)
    p, q = ball.project(plain.lift(x)), ball.project(plain.lift(y))
    torch.testing.assert_close(p, ball.point(tangents(6)))
    torch.testing.assert_close(plain.project(ball.lift(p)), x)
    torch.testing.assert_close(ball.distance(p, q), plain.distance(x, y))
    torch.testing.assert_close(ball.project(plain.lift(plain.midpoint(x, w))), ball.midpoint(p, w))


# ---- isometries ------------------------------------------------------------------------------------------------------


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q


def moved(manifold: Manifold, x: Tensor) -> Tensor:
    """x under an isometry: a rotation and, except on the sphere, a translation."""
    match manifold:
        case Product():
            return torch.cat([moved(part, a) for part, a in manifold._split(x)], -1)
        case Sphere():
            return x @ rotation(x.shape[-1])
        case Euclidean():
            return x @ rotation(x.shape[-1]) + torch.arange(x.shape[-1])
        case Poincare(curvature=c):  # Möbius addition a + x (Ganea et al. 2018)
            x = x @ rotation(x.shape[-1])
            a = torch.full_like(x, 0.3)
            ax, aa, xx = ((s * t).sum(-1, keepdim=True) for s, t in ((a, x), (a, a), (x, x)))
            return ((1 + 2 * c * ax + c * xx) * a + (1 - c * aa) * x) / (1 + 2 * c * ax + c * c * aa * xx)
        case Lorentz():  # a boost along the first axis, of t and sqrt(c) x
            x = x @ rotation(x.shape[-1])
            speed, scale = torch.tensor(0.8, dtype=x.dtype), manifold.curvature**0.5
            first = speed.cosh() * x[..., :1] + speed.sinh() * manifold.time(x) / scale
            return torch.cat([first, x[..., 1:]], -1)
    raise AssertionError


def test_isometries_change_no_distance_and_take_middles_along(manifold):
    x, w = manifold.point(tangents(7)), weights(3, 7)
    mean, frechet = manifold.midpoint(x, w), manifold.frechet_mean(x, w)
    torch.manual_seed(5)
    y, m, f = moved(manifold, torch.cat([x, mean, frechet])).split([7, 3, 3])
    assert (y - x).abs().max() > 0.1
    torch.testing.assert_close(manifold.distances(y, y), manifold.distances(x, x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(manifold.midpoint(y, w), m)
    torch.testing.assert_close(manifold.distance(manifold.frechet_mean(y, w), f), torch.zeros(3).double(), rtol=0, atol=1e-10)


# ---- small curvature is flat -----------------------------------------------------------------------------------------


def flat(manifold: Manifold, points: Tensor) -> Tensor:
    """Tangents at the origin of points whose curvature is nearly 0."""
    match manifold:
        case Product():
            return torch.cat([flat(part, a) for part, a in manifold._split(points)], -1)
        case Sphere(curvature=c):
            return points[..., 1:] / c**0.5
    return 2 * points if isinstance(manifold, Poincare) else points


@pytest.mark.parametrize("name", CURVED)
def test_small_curvatures_are_flat_to_first_order(name):
    v, u, w = tangents(8), tangents(8, seed=1), weights(3, 8)
    errors = []
    for c in (1e-2, 1e-3, 1e-4):
        manifold = MANIFOLDS[name](c)
        x, y = manifold.point(v), manifold.point(u)
        middle = flat(manifold, manifold.midpoint(x, w))
        errors.append(
            [
                (manifold.distances(x, y) - torch.cdist(v, u)).abs().max(),
                (middle - Euclidean().midpoint(v, w)).abs().max(),
                (flat(manifold, manifold.frechet_mean(x, w)) - Euclidean().midpoint(v, w)).abs().max(),
            ]
        )
    errors = torch.tensor(errors, dtype=v.dtype)
    torch.testing.assert_close(errors[:-1] / errors[1:], torch.full((2, 3), 10.0).to(v), rtol=0.05, atol=0)


@pytest.mark.parametrize("name", CURVED)
def test_small_curvatures_in_single_precision(name):
    manifold, v, u, w = MANIFOLDS[name](1e-6), tangents(8), tangents(8, seed=1), weights(3, 8)
    x, y = manifold.point(v.float()), manifold.point(u.float())
    torch.testing.assert_close(manifold.distances(x, y).double(), torch.cdist(v, u), rtol=1e-5, atol=1e-5)
    middle = flat(manifold, manifold.midpoint(x, w.float())).double()
    torch.testing.assert_close(middle, Euclidean().midpoint(v, w), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("c", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("name", ["lorentz", "poincare"])
def test_the_gradient_of_curvature_keeps_digits_in_single_precision(name, c):
    found = []
    for dtype in (torch.float32, torch.float64):
        curvature = torch.tensor(c, dtype=dtype, requires_grad=True)
        manifold = MANIFOLDS[name](curvature)
        x, y = (manifold.point(tangents(8, seed=seed, dtype=dtype)) for seed in (0, 1))
        (grad,) = torch.autograd.grad(manifold.distances(x, y).sum(), curvature)
        found.append(grad.double())
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("ours", "exact"),
    [
        (series.sinc, lambda r: mpmath.sin(r) / r),
        (series.sinhc, lambda r: mpmath.sinh(r) / r),
        (series.arcsinc, lambda r: mpmath.asin(r) / r),
        (series.arsinhc, lambda r: mpmath.asinh(r) / r),
    ],
)
def test_quotients_by_a_root(ours, exact):
    u = torch.tensor([0.0, 1e-12, 1e-4, 0.02, 0.0299999, 0.0300001, 0.2, 0.6], dtype=torch.float64, requires_grad=True)
    got = ours(u)
    (slope,) = torch.autograd.grad(got.sum(), u)
    with mpmath.workdps(50):
        of = lambda x: exact(mpmath.sqrt(x)) if x else mpmath.mpf(1)  # noqa: E731
        want = [float(of(mpmath.mpf(x))) for x in u.tolist()]
        slopes = [float(mpmath.diff(of, mpmath.mpf(x) + (x == 0) * mpmath.mpf(10) ** -15)) for x in u.tolist()]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-15, atol=0)
    torch.testing.assert_close(slope, torch.tensor(slopes, dtype=torch.float64), rtol=1e-12, atol=0)


# ---- middles ---------------------------------------------------------------------------------------------------------


def test_the_middle_of_two_is_half_way(manifold):
    x = manifold.point(tangents(10, 2))
    for mean in (manifold.midpoint(x), manifold.frechet_mean(x)):
        half = manifold.distance(x[:, :1], x[:, 1:]) / 2
        torch.testing.assert_close(manifold.distance(mean, x), half.expand(10, 2), rtol=1e-7, atol=0)


FAR = [0.1, 1.0, 7.0, 8.0, 12.0, 20.0, 30.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["lorentz", "poincare"])
def test_the_middle_of_one_point_is_that_point_however_far_away(name, dtype):
    manifold = MANIFOLDS[name](0.7)
    for r in FAR if dtype != torch.float16 else FAR[:4]:
        x = manifold.point(r * torch.nn.functional.normalize(tangents(20, 1), dim=-1).to(dtype) / 0.7**0.5)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(manifold.midpoint(x, torch.tensor([[0.37]])), x, rtol=4 * eps, atol=0)
        copies = manifold.midpoint(x.expand(-1, 50, -1), weights(1, 50))
        torch.testing.assert_close(copies, x, rtol=16 * eps, atol=0)  # sums of 50
        if dtype != torch.float16:  # in which lifted points are written down
            torch.testing.assert_close(manifold.project(manifold.lift(x)), x, rtol=4 * eps, atol=0)


@pytest.mark.parametrize("apart", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("r", [3.5, 8.0, 12.0])
@pytest.mark.parametrize("name", ["lorentz", "poincare"])
def test_the_middle_of_two_far_points(name, r, apart):
    """At a radius r and an angle 2 a, sinh(apart / 2) = sinh(r) sin(a); their middle is at tanh(m) = tanh(r) cos(a).
    Coordinates in single precision place both to their rounding times e^r."""
    manifold, allowed = MANIFOLDS[name](1.0), 4 * torch.finfo(torch.float32).eps * math.cosh(r)
    a = math.asin(math.sinh(apart / 2) / math.sinh(r))
    x = manifold.point(torch.tensor([[r * math.cos(a), r * math.sin(a)], [r * math.cos(a), -r * math.sin(a)]]))
    want = manifold.point(torch.tensor([[math.atanh(math.tanh(r) * math.cos(a)), 0.0]], dtype=torch.float64))
    for middle in (manifold.midpoint(x), manifold.frechet_mean(x, steps=3)):
        assert middle.dtype == torch.float32 and manifold.distance(middle.double(), want) <= allowed
        assert ((manifold.distance(middle.double(), x.double()) - apart / 2).abs() <= allowed).all()


def test_the_mean_of_two_divides_their_geodesic(manifold):
    x = manifold.point(tangents(10, 2))
    mean = manifold.frechet_mean(x, torch.tensor([[0.25, 0.75]], dtype=x.dtype))
    want = manifold.distance(x[:, :1], x[:, 1:]) * torch.tensor([0.75, 0.25])
    torch.testing.assert_close(manifold.distance(mean, x), want, rtol=1e-7, atol=0)


def test_the_hyperbolic_midpoint_is_einsteins():
    """sum w g k / sum w g of Klein's coordinates k = x / t, with Lorentz factors g = 1 / sqrt(1 - c |k|^2)."""
    c = 0.7
    x, w = Lorentz(c).point(tangents(6)), weights(3, 6)
    k = x / Lorentz(c).time(x)
    g = (1 - c * k.square().sum(-1)).rsqrt()
    want = (w * g) @ k / (w @ g[:, None])
    mean = Lorentz(c).midpoint(x, w)
    torch.testing.assert_close(mean / Lorentz(c).time(mean), want)


@pytest.mark.parametrize(
    ("manifold", "cost"),
    [
        (Lorentz(0.7), lambda d: (0.7**0.5 * d).cosh()),
        (Poincare(0.7), lambda d: (0.7**0.5 * d).cosh()),
        (Sphere(0.7), lambda d: -(0.7**0.5 * d).cos()),
    ],
    ids=["lorentz", "poincare", "sphere"],
)
def test_the_midpoint_is_of_least_cost(manifold, cost):
    x, w = manifold.point(tangents(6)), weights(1, 6)
    mean = manifold.midpoint(x, w).requires_grad_()
    (grad,) = torch.autograd.grad((w * cost(manifold.distances(mean, x))).sum(), mean)
    assert grad.abs().max() < 1e-13


def test_the_frechet_mean_is_of_least_squares(manifold):
    x, w = manifold.point(tangents(6)), weights(1, 6)
    mean = manifold.frechet_mean(x, w).requires_grad_()
    least = (w * manifold.distances(mean, x).square()).sum()
    (grad,) = torch.autograd.grad(least, mean)
    assert grad.abs().max() < 1e-13
    near = mean.detach() + 0.01 * torch.randn(20, mean.shape[-1], dtype=mean.dtype)
    assert ((w * manifold.distances(near, x).square()).sum(-1) > least).all()


@pytest.mark.parametrize("name", CURVED)
def test_midpoint_and_frechet_mean_differ_to_third_order_of_the_spread(name):
    manifold, w = MANIFOLDS[name](1.0), weights(1, 9)
    apart, least = [], []
    for size in (0.2, 0.1, 0.05):
        x = manifold.point(tangents(9, size=size))
        mean, frechet = manifold.midpoint(x, w), manifold.frechet_mean(x, w)
        apart.append(manifold.distance(mean, frechet))
        least.append((w * (manifold.distances(mean, x).square() - manifold.distances(frechet, x).square())).sum())
    assert all(5 < a / b < 12 for a, b in zip(apart, apart[1:], strict=False)) and min(least) > 0


def test_a_common_factor_of_the_weights_and_the_order_of_points_change_nothing(manifold):
    x, w = manifold.point(tangents(6)), weights(3, 6)
    order = torch.randperm(6)
    for middle in (manifold.midpoint, manifold.frechet_mean):
        torch.testing.assert_close(middle(x[order], 7 * w[:, order]), middle(x, w))


# ---- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("name", CURVED)
def test_derivatives(name, shape):
    """Of points, tangents, weights and curvatures, one for each head too; of squared distances where points are the same."""
    c = (torch.rand(shape, dtype=torch.float64) + 0.5).requires_grad_()
    v, u, w = tangents(2, 2).requires_grad_(), tangents(2, 2, seed=1).requires_grad_(), weights(2, 1, 2).requires_grad_()

    def distances(c, v, u):
        manifold = MANIFOLDS[name](c)
        return manifold.distances(manifold.point(v), manifold.point(u))

    def middle(c, v, w):
        manifold = MANIFOLDS[name](c)
        return manifold.midpoint(manifold.point(v), w)

    def squared(c, v):
        manifold = MANIFOLDS[name](c)
        return manifold.squared(manifold.point(v), manifold.point(v.detach()))

    assert torch.autograd.gradcheck(distances, (c, v, u))
    assert torch.autograd.gradcheck(middle, (c, v, w))
    assert torch.autograd.gradcheck(squared, (c, v))
    assert torch.autograd.gradcheck(distances, (c, torch.zeros_like(v).requires_grad_(), u))


def test_points_that_meet_have_finite_gradients(manifold):
    x = manifold.point(tangents(3)).requires_grad_()
    (grad,) = torch.autograd.grad(manifold.distances(x, x).sum(), x)
    assert grad.isfinite().all()
    (grad,) = torch.autograd.grad(manifold.distance(x, x.detach()).sum(), x)
    assert not grad.any()


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [0.0, -1.0, math.nan, math.inf, "1", None, True, *map(torch.tensor, ([1.0, -1.0], [[1.0]], True, 1 + 0j))],
)
@pytest.mark.parametrize("of", [Sphere, Lorentz, Poincare])
def test_curvatures_are_finite_and_positive(of, bad):
    with pytest.raises(SoftlookupError, match=f"^{of.__name__}: expected .*, got [^\n]*$"):
        of(bad)


@pytest.mark.parametrize("of", [Sphere, Lorentz, Poincare])
def test_a_learned_curvature_that_is_no_longer_positive_is_refused(of):
    x = torch.full((1, 2, 5, 3), 0.1)
    for shape in ((), (2,)):
        c = torch.ones(shape)
        manifold, product = of(c), Product((of(c), 3))
        for bad in (0.0, -0.1, math.nan):
            c.fill_(bad)
            for each in (manifold, product):
                for call in (
                    lambda m=each: m.point(x[..., : m.widths(3)[0]]),
                    lambda m=each: m.distance(x, x),
                    lambda m=each: m.distances(x, x),
                    lambda m=each: m.midpoint(x),
                    lambda m=each: m.frechet_mean(x),
                    lambda m=each: attend(x, x, x, manifold=m),
                    lambda m=each: attend(x, x, x, manifold=Euclidean(), values=m),
                ):
                    with pytest.raises(SoftlookupError, match="^curvature: expected finite numbers > 0, got [^\n]*$"):
                        call()


class Unmade(Manifold):
    pass


class Lifted(Manifold):
    def lift(self, x):
        return Euclidean().lift(x)


class Made(Lifted):
    def squared(self, x, y):
        return Euclidean().squared(x, y)

    def project(self, sums):
        return Euclidean().project(sums)


X, W, PER_HEAD = torch.full((1, 2, 5, 3), 0.1), torch.ones(1, 5), torch.ones(2)
REFUSED = {
    "no tensor": (lambda: Lorentz().point([1.0]), "v: expected a tensor of real numbers, got list"),
    "integers": (lambda: Poincare().distance(X, X.long()), "y: expected a tensor of real numbers, got a int64 tensor"),
    "widths of points": (lambda: Sphere().distance(X, X[..., :1]), "y: expected 3 coordinates, as the other points, got 1"),
    "widths of all pairs": (lambda: Lorentz().distances(X[..., :1], X), "y: expected 1 coordinates, as the other points"),
    "points that do not broadcast": (lambda: Poincare().distance(X, X[..., :4, :]), "x, y: expected leading dimensions that"),
    "pairs that do not broadcast": (lambda: Poincare().distances(X, X[:, :1].expand(1, 3, 5, 3)), "x, y: expected leading dim"),
    "one point": (lambda: Euclidean().distances(X[0, 0, 0], X), "x: expected at least 2 dimensions, got"),
    "a middle of nothing": (lambda: Poincare().midpoint(X[0, 0, 0]), "x: expected at least 2 dimensions, got"),
    "no weights": (lambda: Sphere().midpoint(X, "alike"), "weights: expected a tensor (…, M, 5), got str"),
    "number of weights": (lambda: Sphere().midpoint(X, torch.ones(1, 4)), "weights: expected a tensor (…, M, 5), got"),
    "weights in a row": (lambda: Lorentz().frechet_mean(X, torch.ones(5)), "weights: expected a tensor (…, M, 5), got"),
    "heads of weights": (lambda: Lorentz().midpoint(X, torch.ones(3, 1, 5)), "x, weights: expected leading dimensions that"),
    "weights below 0": (lambda: Euclidean().midpoint(X, -W), "weights: expected numbers >= 0, got -1"),
    "weights of a mean below 0": (lambda: Sphere().frechet_mean(X, W - 3), "weights: expected numbers >= 0, got -2"),
    "steps in words": (lambda: Sphere().frechet_mean(X, steps="a"), "steps: expected a whole number, got 'a'"),
    "steps below 0": (lambda: Sphere().frechet_mean(X, steps=-1), "steps: expected at least 0, got -1"),
    "no point": (lambda: Unmade().point(X), "Unmade: expected a Manifold with point(), got none"),
    "no squared": (lambda: Unmade().distance(X, X), "Unmade: expected a Manifold with squared(), got none"),
    "no lift": (lambda: Unmade().midpoint(X), "Unmade: expected a Manifold with lift(), got none"),
    "no project": (lambda: Lifted().midpoint(X), "Lifted: expected a Manifold with project(), got none"),
    "no pull": (lambda: Made().frechet_mean(X), "Made: expected a Manifold with pull(), got none"),
    "sums": (lambda: Lorentz().project(X[..., :2]), "sums: expected at least 3 coordinates of sums, got 2"),
    "sums of a ball": (lambda: Poincare().project(X[..., :1]), "sums: expected at least 3 coordinates of sums, got 1"),
    "tangents of a product": (lambda: Product((Sphere(), 2)).point(X), "v: expected 1 coordinates of tangents, got 3"),
    "points of a product": (lambda: Product((Sphere(), 2)).distance(X, X), "x: expected 2 coordinates of points, got 3"),
    "sums of a product": (lambda: Product((Lorentz(), 2)).project(X), "sums: expected 4 coordinates of sums, got 3"),
    "middles of a product": (lambda: Product((Lorentz(), 2)).midpoint(X), "x: expected 2 coordinates of points, got 3"),
    "heads": (lambda: Lorentz(PER_HEAD).point(X[0, 0]), "v: expected 2 heads, one for each curvature, got"),
    "outside": (lambda: Poincare().distance(X, 10 * X), "y: expected points in the ball, sqrt(curvature) |x| < 1, got 1.73205"),
    "outside, all pairs": (lambda: Poincare().distances(10 * X, X), "x: expected points in the ball"),
    "outside, middle": (lambda: Poincare().midpoint(10 * X), "x: expected points in the ball"),
    "too far": (lambda: Lorentz().distance(X, 1e20 * X), "y: expected points with |x| and sqrt(curvature) |x| up to 1.8e+18"),
    "too far by a curvature": (lambda: Lorentz(PER_HEAD * 400).midpoint(1e18 * X), "x: expected points with |x| and"),
    "outside, lifted": (lambda: Product((Poincare(), 3)).lift(10 * X), "x: expected points in the ball"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_methods_refuse_in_one_line(what):
    call, message = REFUSED[what]
    with pytest.raises(SoftlookupError) as caught:
        call()
    assert str(caught.value).startswith(message) and "got" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(manifold, half):
    v, w = tangents(6, dtype=half), weights(3, 6).to(half)
    x = manifold.point(v)
    pairs = [
        (x, manifold.point(v.float())),
        (manifold.distance(x[:1], x), manifold.distance(x[:1].float(), x.float())),
        (manifold.distances(x, x), manifold.distances(x.float(), x.float())),
        (manifold.midpoint(x, w), manifold.midpoint(x.float(), w.float())),
        (manifold.frechet_mean(x, w, steps=3), manifold.frechet_mean(x.float(), w.float(), steps=3)),
        (manifold.lift(x), manifold.lift(x.float())),
    ]
    for got, want in pairs:
        assert got.dtype == half and torch.equal(got, want.to(half))


def test_products_are_of_manifolds():
    for bad in [(3.0, 2)], [(Sphere(), 0)], [], [Sphere()], [(Sphere(), 2, 3)], [(Sphere(), "2")]:
        with pytest.raises(SoftlookupError, match="^Product: expected .*, got [^\n]*$"):
            Product(*bad)


def test_points_of_the_ball_stay_inside():
    ball = Poincare()
    for far in (5.0, 15.0, 25.0):
        p = ball.point(torch.tensor([far, far]))
        ball.check(p, "point")
        assert ball.distance(p, -p).isfinite()
