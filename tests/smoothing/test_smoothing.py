"""The smoother against its formula written out, and what theory says of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsRegressor
from sklearn.utils.estimator_checks import check_estimator

import softlookup as sl
from softlookup.smoothing import NadarayaWatson, NadarayaWatsonClassifier, leave_one_out, smooth


def data(rng, n=60, d=3, m=2):
    x = torch.randn(n, d, generator=rng, dtype=torch.float64)
    return x, torch.stack([x.sin().sum(1), x.square().sum(1)][:m], 1) + 5


def weights(places, observed, h):
    """Written out: kernel values over their sum."""
    k = torch.exp(-((places[:, None] - observed) / h).square().sum(-1) / 2)
    return k / k.sum(1, keepdim=True), k.sum(1)


@pytest.mark.parametrize("h", [0.3, 1.0, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)], ids=["0.3", "1", "each"])
def test_means_variances_and_effective_samples(h, rng):
    (x, y), (at, _) = data(rng), data(rng, 17)
    width = h[None] if isinstance(h, torch.Tensor) else h
    got = smooth(at, x, y, sl.Gaussian(width))
    p, total = weights(at, x, h)
    mean = p @ y
    torch.testing.assert_close(got.mean, mean)
    torch.testing.assert_close(got.variance, p @ y.square() - mean.square(), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(got.effective_samples, 1 / p.square().sum(1))
    torch.testing.assert_close(got.log_sum, total.log())


def test_a_local_line_is_weighted_least_squares(rng):
    (x, y), (at, _) = data(rng), data(rng, 9)
    got = smooth(at + 100, x + 100, y, linear=True).mean
    p, _ = weights(at, x, 1.0)
    for n in range(9):
        design = torch.cat([torch.ones(len(x), 1, dtype=torch.float64), x - at[n]], 1)
        root = p[n].sqrt()[:, None]
        want = torch.linalg.lstsq(design * root, y * root).solution[0]
        torch.testing.assert_close(got[n], want, rtol=1e-6, atol=1e-6)


def test_a_local_line_reproduces_planes_also_at_borders_and_on_a_line(rng):
    x, _ = data(rng)
    y = x @ torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64) + 3
    torch.testing.assert_close(
        smooth(3 * x, x, y, sl.Gaussian(2.0), linear=True).mean, smooth_plane(3 * x), rtol=1e-6, atol=1e-6
    )
    flat = x.clone()
    flat[:, 1:] = 7.0  # along one direction only
    y = flat @ torch.tensor([[2.0], [0.0], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(smooth(flat, flat, y, linear=True).mean, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_line_far_from_all_observations_is_level(dtype, rng):
    """Where a single observation counts, no slope is to be had, and none is made of rounding errors."""
    x, y = (z.to(dtype) for z in data(rng))
    at = torch.full((1, 3), 60.0, dtype=dtype)
    nearest = y[torch.cdist(at, x).argmin(1)]
    torch.testing.assert_close(smooth(at, x, y, sl.Gaussian(0.1), linear=True).mean, nearest, rtol=1e-3, atol=1e-3)


def smooth_plane(x):
    return x @ torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64) + 3


@pytest.mark.parametrize("each", [False, True])
def test_leave_one_out_is_what_leaving_one_out_gives(each, rng):
    x, y = data(rng, 25)
    h = torch.tensor([0.2, 0.7, 3.0], dtype=torch.float64)
    h = (h[:, None] * torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64) if each else h).requires_grad_()
    want = []
    for width in h:
        errors = []
        for n in range(25):
            rest = torch.arange(25) != n
            p, _ = weights(x[n : n + 1], x[rest], width)
            errors.append((p @ y[rest] - y[n]).square().mean())
        want.append(torch.stack(errors).mean())
    want = torch.stack(want)
    got = leave_one_out(x, y, h)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(e.sum(), h)[0] for e in (got, want)))


def test_bandwidth_to_zero_is_the_nearest_and_to_infinity_the_mean(rng):
    (x, y), (at, _) = data(rng), data(rng, 17)
    nearest = y[torch.cdist(at, x).argmin(1)]
    torch.testing.assert_close(smooth(at, x, y, sl.Gaussian(1e-3)).mean, nearest)
    torch.testing.assert_close(smooth(at, x, y, sl.Gaussian(1e6)).mean, y.mean(0).expand(17, -1))


def test_a_softmax_of_scaled_products_is_a_smoother_under_a_prior(rng):
    """SEMANTICS §4: h^2 = sqrt(d) and the prior exp(|k|^2 / 2 sqrt(d)); without a prior where all keys are as long."""
    (k, v), (q, _) = data(rng, d=4), data(rng, 17, d=4)
    attended = sl.attend(q[None], k[None], v[None])[0]
    prior = (k.square().sum(1) / (2 * 4**0.5))[None, None]
    torch.testing.assert_close(sl.attend(q[None], k[None], v[None], score=sl.Gaussian(4**0.25), bias=prior)[0], attended)
    unit = torch.nn.functional.normalize(k, dim=1)
    torch.testing.assert_close(smooth(q, unit, v, sl.Gaussian(4**0.25)).mean, sl.attend(q[None], unit[None], v[None])[0])


ESTIMATORS = [
    NadarayaWatson(),
    NadarayaWatson(1.0),
    NadarayaWatson("loo-each"),
    NadarayaWatson(1.0, linear=True),
    NadarayaWatson(0.3, neighbors=5),
    NadarayaWatson(1.0, kernel=sl.Gaussian(0.7)),
    NadarayaWatson(1.0, dtype="float32"),
    NadarayaWatsonClassifier(),
    NadarayaWatsonClassifier(0.5, neighbors=3),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=range(len(ESTIMATORS)))
def test_scikit_learns_own_checks(estimator):
    failed = [x for x in check_estimator(estimator, on_fail=None, on_skip=None) if x["status"] not in ("passed", "skipped")]
    assert not failed, failed


def test_errors_are_as_large_as_told(rng):
    """Of noise around 0, 500 times: the mean lies within two standard errors as often as a normal variable does."""
    x, noise = torch.rand(2000, 1, generator=rng), torch.randn(2000, 500, generator=rng)
    mean, error = NadarayaWatson(0.05).fit(x.numpy(), noise.numpy()).predict([[0.2], [0.5], [0.9]], return_std=True)
    within = np.mean(np.abs(mean) < 2 * error, 1)
    assert np.all(np.abs(within - 0.954) < 0.04), within  # four standard deviations of a share of 500


def test_bandwidths_that_are_sought(rng):
    """A feature that tells nothing gets a wide one."""
    x = torch.rand(300, 2, generator=rng).numpy() * 6
    y = np.sin(x[:, 0])
    one, each = (NadarayaWatson(how).fit(x, y) for how in ("loo", "loo-each"))
    assert each.bandwidth_[1] > 5 * each.bandwidth_[0]
    assert each.loo_error_ < 0.5 * one.loo_error_
    around = [
        float(leave_one_out(*(torch.tensor(z) for z in (x, y[:, None])), torch.tensor([one.bandwidth_ * f])))
        for f in (0.8, 1, 1.25)
    ]
    assert around[1] < min(around[0], around[2])


def test_a_learned_metric_finds_the_directions_that_matter(rng):
    """Of ten features the values depend on two combinations: those span what is learned, and errors fall tenfold."""
    x, hidden = torch.randn(400, 10, generator=rng, dtype=torch.float64), torch.randn(10, 2, generator=rng, dtype=torch.float64)
    z = x @ hidden / 10**0.5
    y = torch.sin(2 * z[:, 0]) + z[:, 1].square()
    plain, learned = NadarayaWatson().fit(x[:300], y[:300]), NadarayaWatson(directions=2).fit(x[:300], y[:300])
    found, want = (torch.linalg.qr(w).Q for w in (learned.metric_, hidden))
    assert float(torch.linalg.svdvals(found.mT @ want).min()) > 0.97
    errors = [float((torch.tensor(m.predict(x[300:])) - y[300:]).square().mean()) for m in (plain, learned)]
    assert errors[1] < errors[0] / 10 and learned.loo_error_ < plain.loo_error_ / 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"bandwidth": -1.0}, "bandwidth: expected a finite number > 0"),
        ({"bandwidth": [1.0, 2.0, 3.0]}, "or 2 of them"),
        ({"bandwidth": "scott"}, "'loo' or 'loo-each', got 'scott'"),
        ({"bandwidth": "loo", "neighbors": 3}, "expected a number with a kernel"),
        ({"bandwidth": [1.0, 2.0], "neighbors": 3}, "got one per feature"),
        ({"bandwidth": 1.0, "kernel": "rbf"}, "expected a softlookup Score or None for a Gaussian, got 'rbf'"),
        ({"directions": 1, "neighbors": 3}, "directions: expected bandwidth='loo'"),
        ({"directions": 3}, "directions from 1 to 2, got 3"),
        ({"dtype": "float16"}, "'float64' or 'float32'"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        NadarayaWatson(**arguments).fit(np.eye(4)[:, :2], np.arange(4.0))


def test_shapes_are_checked():
    with pytest.raises(sl.SoftlookupError, match=r"smooth: expected places \(n, d\)"):
        smooth(torch.zeros(3), torch.zeros(3, 1), torch.zeros(3, 1))
    with pytest.raises(sl.SoftlookupError, match="S of at least 2"):
        leave_one_out(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1))
    with pytest.raises(sl.SoftlookupError, match=r"bandwidths \(C,\)"):
        leave_one_out(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor(1.0))


def scattered(rng, d):
    """Observations, their two values and places inside and outside of them."""
    (x, y), at = data(rng, 200, d), 3 * torch.randn(300, d, generator=rng, dtype=torch.float64)
    return x.numpy() + 5, y.numpy() + 100, at.numpy() + 5


@pytest.mark.parametrize("dtype, within", [("float64", 1e-12), ("float32", 1e-6)])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("d", [2, 3])
def test_a_tiny_bandwidth_is_the_nearest_neighbour(d, linear, dtype, within, rng):
    x, y, at = scattered(rng, d)
    model = NadarayaWatson(1e-6, linear=linear, dtype=dtype).fit(x, y)
    nearest = KNeighborsRegressor(1).fit(x, y)
    np.testing.assert_allclose(model.predict(at), nearest.predict(at), rtol=within)
    np.testing.assert_allclose(model.predict(x), y, rtol=within)


@pytest.mark.parametrize("dtype, within", [("float64", 1e-12), ("float32", 1e-6)])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_huge_bandwidth_is_the_mean(d, dtype, within, rng):
    x, y, at = scattered(rng, d)
    found = NadarayaWatson(1e8, dtype=dtype).fit(x, y).predict(at)
    np.testing.assert_allclose(found, np.broadcast_to(y.mean(0), found.shape), rtol=within)


@pytest.mark.parametrize("dtype, within", [("float64", 1e-12), ("float32", 1e-4)])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_local_line_of_a_huge_bandwidth_is_least_squares(d, dtype, within, rng):
    x, y, at = scattered(rng, d)
    design, places = (np.concatenate([np.ones((len(z), 1)), z], 1) for z in (x, at))
    want = places @ np.linalg.lstsq(design, y)[0]
    found = NadarayaWatson(1e8, linear=True, dtype=dtype).fit(x, y).predict(at)
    np.testing.assert_allclose(found, want, rtol=within)


@pytest.mark.parametrize(
    "dtype, h, beyond",
    [
        ("float64", 1e-6, [0.01, 1, 1e3, 1e6]),
        ("float32", 1e-6, [0.01, 1, 10]),
        ("float64", 0.1, [1e3]),
        ("float32", 0.1, [300]),
    ],
)
def test_beyond_the_data_a_constant_repeats_the_nearest(dtype, h, beyond, rng):
    """A wide one from far enough away; in float32 only as far as neighbours can be told apart."""
    x = torch.rand(200, 1, generator=rng, dtype=torch.float64).sort(0).values.numpy()
    y = np.sin(6 * x[:, 0]) + 5
    model = NadarayaWatson(h, dtype=dtype).fit(x, y)
    for end, sign in ((-1, 1), (0, -1)):
        found = model.predict(x[end] + sign * np.array(beyond)[:, None])
        np.testing.assert_allclose(found, np.full(len(beyond), y[end]), rtol=1e-6)
