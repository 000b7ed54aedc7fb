"""Landmarks: the formula with its three matrices, softmax itself with a landmark for every key, and the paper's inverse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import softlookup as sl
from softlookup import linear


def tensors(heads: int = 2, keys: int = 15) -> list[Tensor]:
    make = torch.Generator().manual_seed(0)
    shapes = (2, 4, 15, 8), (2, heads, keys, 8), (2, heads, keys, 5)
    return [torch.randn(shape, generator=make, dtype=torch.float64).requires_grad_() for shape in shapes]


def by_matrices(q, k, v, landmarks, scale) -> Tensor:
    """The three matrices, materialized; segments by hand, of lengths that differ by one at most."""
    k, v = (x.repeat_interleave(4 // x.shape[1], 1) for x in (k, v))

    def means(x):
        longer, size = x.shape[2] % landmarks, x.shape[2] // landmarks
        ends = torch.tensor([size + (i < longer) for i in range(landmarks)]).cumsum(0).tolist()
        return torch.stack([x[:, :, a:b].mean(2) for a, b in zip([0, *ends], ends, strict=False)], 2)

    short_q, short_k = means(q), means(k)
    first, middle, last = ((x @ y.mT * scale).softmax(-1) for x, y in ((q, short_k), (short_q, short_k), (short_q, k)))
    return first @ middle.pinverse() @ last @ v


@pytest.mark.parametrize(("heads", "keys", "landmarks", "scale"), [(4, 15, 3, None), (2, 15, 4, 0.5), (1, 22, 7, None)])
def test_it_is_the_product_of_three_matrices_with_gradients(heads, keys, landmarks, scale):
    x = tensors(heads, keys)
    got, want = linear.nystrom(*x, landmarks=landmarks, scale=scale), by_matrices(*x, landmarks, scale or 8**-0.5)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad(got.cos().sum(), x), torch.autograd.grad(want.cos().sum(), x)
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-8)


def test_a_landmark_for_every_key_is_softmax():
    """A A^+ A = A; the digits lost are those of A's condition, below 1e3 where queries are their own keys and long enough."""
    _, k, v = (x.detach() for x in tensors(4))
    k = 6 * normalize(k, dim=-1)
    want = sl.attend(k, k, v)
    torch.testing.assert_close(linear.nystrom(k, k, v, landmarks=15), want, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(linear.nystrom(k, k, v, landmarks=15, iterations=20), want, rtol=1e-9, atol=1e-9)
    single = linear.nystrom(k.float(), k.float(), v.float(), landmarks=15)
    torch.testing.assert_close(single.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("landmarks", "size"), [(8, 0.1), (50, 1.0)], ids=["3e5", "5e4"])
@pytest.mark.parametrize("iterations", [None, 6])
def test_gradients_of_single_precision_have_its_digits(landmarks, size, iterations):
    """Rounding grows by the condition of the weights of landmarks, the cases' names, and not by its square."""
    make = torch.Generator().manual_seed(0)
    q, k, v, by = (torch.randn(1, 2, 200, 32, generator=make) for _ in range(4))
    found = []
    for dtype in (torch.float32, torch.float64):
        x = [(size * q).to(dtype).requires_grad_(), (size * k).to(dtype).requires_grad_(), v.to(dtype).requires_grad_()]
        out = linear.nystrom(*x, landmarks=landmarks, iterations=iterations)
        found.append([out.detach(), *torch.autograd.grad((out * by.to(dtype)).sum(), x)])
    for got, want in zip(*found, strict=True):
        assert (got - want).norm() < 1e-3 * want.norm()


def test_the_iteration_goes_to_the_inverse():
    _, k, v = (x.detach() for x in tensors(4))
    q = k = 8 * normalize(k, dim=-1)
    want = linear.nystrom(q, k, v, landmarks=5)
    errors = [float((linear.nystrom(q, k, v, landmarks=5, iterations=n) - want).norm()) for n in (1, 6, 12, 24)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-8 * float(want.norm())
    torch.testing.assert_close(linear.nystrom(q[0, 0], k[0, 0], v[0, 0], landmarks=5), want[0, 0])
    half = linear.nystrom(*(x.bfloat16() for x in (q, k, v)), landmarks=5, iterations=6)
    assert half.dtype == torch.bfloat16 and half.shape == want.shape


@pytest.mark.parametrize("iterations", [None, 6])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_reaches_its_head_only(which, iterations):
    """All queries of a head read all its landmarks."""
    x = [x.detach().clone() for x in tensors(4)]
    want = linear.nystrom(*x, landmarks=4, iterations=iterations)
    x[which][1, 2, 3, 0] = math.nan
    bad = torch.zeros_like(want, dtype=torch.bool)
    bad[1, 2] = True
    got = linear.nystrom(*x, landmarks=4, iterations=iterations)
    assert torch.equal(got.isnan(), bad)
    torch.testing.assert_close(got[~bad], want[~bad])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"landmarks": 0}, "nystrom: expected landmarks of at least 1, got 0"),
        ({"landmarks": 2.5}, "nystrom: expected landmarks of at least 1, got 2.5"),
        ({"landmarks": 16}, "nystrom: expected no more landmarks than queries and keys, 15, got 16"),
        ({"landmarks": 3, "iterations": 0}, "nystrom: expected iterations of at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line(arguments, said):
    with pytest.raises(sl.SoftlookupError) as error:
        linear.nystrom(*tensors(), **arguments)
    assert str(error.value) == said
