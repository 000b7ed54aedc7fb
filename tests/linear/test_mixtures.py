"""Mixtures of keys: softmax itself where each is one key, and the formula."""

from __future__ import annotations

import pytest
import torch

import softlookup as sl
from softlookup import linear

make = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(2, n, 13, w, generator=make, dtype=torch.float64) for n, w in ((4, 8), (2, 8), (2, 5)))
e, f = (torch.randn(2, 6, 13, generator=make, dtype=torch.float64) / 3 for _ in range(2))


def test_a_mixture_of_each_key_alone_is_softmax_attention():
    eye = torch.eye(13, dtype=torch.float64)
    got, seen = linear.linformer(q, k, v, eye, stats=("entropy", "max_logit"))
    want, exact = sl.attend(q, k, v, stats=("entropy", "max_logit"))
    torch.testing.assert_close((got, seen.entropy, seen.max_logit), (want, exact.entropy, exact.max_logit))


@pytest.mark.parametrize(("e", "f"), [(e, f), (e[0], f[1]), (e, None)], ids=["of each head", "of all", "shared"])
def test_it_is_the_formula_with_gradients(e, f):
    leaves = [x.clone().requires_grad_() for x in (q, k, v, e, *([] if f is None else [f]))]
    got, seen = linear.linformer(*leaves, scale=0.4, stats=True)
    of_query, key, value, by_key = leaves[:4]
    mixed = (x.repeat_interleave(2, 1) for x in (by_key @ key, leaves[-1] @ value))
    keys, values = mixed
    p = (0.4 * of_query @ keys.mT).softmax(-1)
    torch.testing.assert_close(got, p @ values)
    torch.testing.assert_close(seen.entropy, -(p * p.log()).sum(-1))
    grads = torch.autograd.grad((p @ values).cos().sum(), leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(got.cos().sum(), leaves), grads)


def test_under_autocast_projections_and_keys_meet():
    with torch.autocast("cpu", torch.bfloat16):
        got = linear.linformer(q.float(), k.bfloat16(), v.float(), e.float(), f.float())
    assert got.dtype == torch.bfloat16
    want = linear.linformer(q, k, v, e, f)
    assert (got.double() - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    half = [x.to(dtype) for x in (10 * q, k, v, e, f)]
    got, seen = linear.linformer(*half, stats=("entropy",))
    want, single = linear.linformer(*(x.float() for x in half), stats=("entropy",))
    assert torch.equal(got, want.to(dtype)) and torch.equal(seen.entropy, single.entropy)
    with torch.autocast("cpu", dtype):
        assert torch.equal(linear.linformer(*(x.float() for x in half)), got)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((k, v, e[..., 1:]), "e: expected a tensor of shape (m, 13) or (2, m, 13), got a float64 tensor of shape (2, 6, 12)"),
        ((k, v, e[:1]), "e: expected a tensor of shape (m, 13) or (2, m, 13), got a float64 tensor of shape (1, 6, 13)"),
        ((k, v, e, 3), "f: expected a tensor of shape (m, 13) or (2, m, 13), got int"),
        ((k, v, e.float()), "e: expected the key's torch.float64 on cpu, got torch.float32 on cpu"),
        ((None, v, e), "key: expected a tensor of at least 2 dimensions (…, length, width), got NoneType"),
    ],
)
def test_mistakes_are_one_line(wrong, said):
    with pytest.raises(sl.SoftlookupError) as error:
        linear.linformer(q, *wrong)
    assert str(error.value) == said
    with pytest.raises(sl.SoftlookupError, match="distance"):
        linear.linformer(q, k, v, e, stats=("distance",))
