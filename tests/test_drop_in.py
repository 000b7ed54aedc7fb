"""The drop-in and torch's own function, on the same cases: equal values, equal gradients, equal errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import softlookup as sl

BOTH = (F.scaled_dot_product_attention, sl.scaled_dot_product_attention)


def qkv(*lead, q=7, s=9, e=8, ev=6, kv=None, dtype=torch.float64):
    kv_lead = lead if kv is None else (*lead[:-1], kv)
    return (
        torch.randn(*lead, q, e, dtype=dtype),
        torch.randn(*kv_lead, s, e, dtype=dtype),
        torch.randn(*kv_lead, s, ev, dtype=dtype),
    )


def boolean(*shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    return mask


def with_hole(mask: torch.Tensor) -> torch.Tensor:
    mask[..., 2, :] = False
    return mask


def additive(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


GOOD = {
    "plain": lambda: (qkv(2, 3), {}),
    "three dimensions": lambda: (qkv(3), {}),
    "two dimensions": lambda: (qkv(), {}),
    "five dimensions": lambda: (qkv(2, 2, 3), {}),
    "scale": lambda: (qkv(2, 3), {"scale": 0.3}),
    "negative scale": lambda: (qkv(2, 3), {"scale": -0.3}),
    "scale 0": lambda: (qkv(2, 3), {"scale": 0.0}),
    "causal": lambda: (qkv(2, 3, s=7), {"is_causal": True}),
    "causal, more keys": lambda: (qkv(2, 3), {"is_causal": True}),
    "causal, more queries": lambda: (qkv(2, 3, q=11), {"is_causal": True}),
    "causal, three dimensions": lambda: (qkv(3), {"is_causal": True}),
    "causal, two dimensions": lambda: (qkv(), {"is_causal": True}),
    "boolean mask": lambda: (qkv(2, 3), {"attn_mask": boolean(2, 3, 7, 9)}),
    "boolean mask of rows and columns": lambda: (qkv(2, 3), {"attn_mask": boolean(7, 9)}),
    "boolean mask of columns": lambda: (qkv(2, 3), {"attn_mask": boolean(1, 9)}),
    "boolean mask of batch": lambda: (qkv(2, 3), {"attn_mask": boolean(2, 1, 1, 9)}),
    "boolean mask, empty row": lambda: (qkv(2, 3), {"attn_mask": with_hole(boolean(2, 1, 7, 9))}),
    "boolean mask, three dimensions": lambda: (qkv(3), {"attn_mask": boolean(3, 7, 9)}),
    "boolean mask, five dimensions": lambda: (qkv(2, 2, 3), {"attn_mask": boolean(2, 1, 3, 7, 9)}),
    "float mask": lambda: (qkv(2, 3), {"attn_mask": additive(2, 3, 7, 9)}),
    "float mask with -inf": lambda: (qkv(2, 3), {"attn_mask": additive(7, 9).masked_fill(~boolean(7, 9), -math.inf)}),
    "float mask, empty row": lambda: (
        qkv(2, 3),
        {"attn_mask": additive(7, 9).masked_fill(~with_hole(boolean(7, 9)), -math.inf)},
    ),
    "float mask, two dimensions": lambda: (qkv(), {"attn_mask": additive(7, 9)}),
    "grouped": lambda: (qkv(2, 6, kv=2), {"enable_gqa": True}),
    "grouped, causal": lambda: (qkv(2, 6, kv=2), {"enable_gqa": True, "is_causal": True}),
    "grouped, one head": lambda: (qkv(2, 6, kv=1), {"enable_gqa": True, "attn_mask": boolean(2, 6, 7, 9)}),
    "enable_gqa with equal heads": lambda: (qkv(2, 3), {"enable_gqa": True}),
    "broadcast batch": lambda: ((*qkv(2, 3)[:1], *qkv(1, 3)[1:]), {}),
    "broadcast heads": lambda: ((*qkv(2, 3)[:1], *qkv(2, 1)[1:]), {}),
    "broadcast query": lambda: ((*qkv(1, 1)[:1], *qkv(2, 3)[1:]), {}),
    "float32": lambda: (qkv(2, 3, dtype=torch.float32), {"is_causal": True}),
    "float mask of another dtype": lambda: (qkv(2, 3), {"attn_mask": additive(7, 9).float()}),
    "broadcast two dimensions": lambda: ((*qkv()[:1], *qkv(2, 3)[1:]), {"is_causal": True}),
    "broadcast value": lambda: ((*qkv(2, 3)[:2], *qkv(1, 1)[2:]), {}),
    "dropout below 0": lambda: (qkv(2, 3), {"dropout_p": -0.5}),
    "one query": lambda: (qkv(2, 3, q=1), {}),
    "one key": lambda: (qkv(2, 3, s=1), {}),
    "width 1": lambda: (qkv(2, 3, e=1, ev=1), {}),
}


@pytest.mark.parametrize("name", GOOD)
def test_equals_torch(name):
    (q, k, v), more = GOOD[name]()
    learns = "attn_mask" in more and more["attn_mask"].is_floating_point()
    leaves = [t.requires_grad_() for t in (q, k, v, *([more["attn_mask"]] if learns else []))]
    results = []
    for function in BOTH:
        y = function(q, k, v, **more)
        results.append((y, *torch.autograd.grad(y.cos().sum(), leaves)))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mask_dtype", [None, torch.bool])
def test_dtype_and_strides_of_the_result(dtype, mask_dtype):
    q, k, v = qkv(2, 3, dtype=dtype)
    mask = None if mask_dtype is None else boolean(7, 9)
    want, got = (f(q, k, v, mask) for f in BOTH)
    assert got.dtype == want.dtype and got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


EMPTY = {
    "no queries": lambda: (qkv(2, 3, q=0), {}),
    "no keys": lambda: (qkv(2, 3, s=0), {}),
    "no keys, causal": lambda: (qkv(2, 3, s=0), {"is_causal": True}),
    "no batch": lambda: (qkv(0, 3), {}),
    "no heads": lambda: (qkv(2, 0), {}),
    "no value width": lambda: (qkv(2, 3, ev=0), {}),
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_inputs_as_torch(name):
    (q, k, v), more = EMPTY[name]()
    want, got = (f(q, k, v, **more) for f in BOTH)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, equal_nan=True)


def bad(**changes):
    """Arguments with some of them replaced; a function replaces a tensor by what it makes of it."""
    q, k, v = qkv(2, 4)
    arguments = {"query": q, "key": k, "value": v}
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    return arguments


BAD = {
    "one dimension": lambda: bad(query=lambda q: q[0, 0, 0]),
    "key of one dimension": lambda: bad(key=lambda k: k[0, 0, 0]),
    "value of one dimension": lambda: bad(value=lambda v: v[0, 0, 0]),
    "width": lambda: bad(key=lambda k: k[..., :5]),
    "number of values": lambda: bad(value=lambda v: v[..., :5, :]),
    "batch": lambda: bad(key=lambda k: torch.cat([k, k[:1]])),
    "dtype of key": lambda: bad(key=lambda k: k.float()),
    "dtype of value": lambda: bad(value=lambda v: v.half()),
    "device": lambda: bad(key=lambda k: k.to("meta")),
    "device of the value": lambda: bad(value=lambda k: k.to("meta")),
    "device of the mask": lambda: bad(attn_mask=boolean(7, 9).to("meta")),
    "mask and causal": lambda: bad(attn_mask=boolean(7, 9), is_causal=True),
    "grouped without asking": lambda: bad(key=lambda k: k[:, :2], value=lambda v: v[:, :2]),
    "groups that do not divide": lambda: bad(key=lambda k: k[:, :3], value=lambda v: v[:, :3], enable_gqa=True),
    "integer mask": lambda: bad(attn_mask=boolean(7, 9).long()),
    "mask that does not broadcast": lambda: bad(attn_mask=boolean(7, 8)),
    "mask of too many rows": lambda: bad(attn_mask=boolean(8, 9)),
    "mask of another batch": lambda: bad(attn_mask=boolean(3, 1, 7, 9)),
    "mask of too many dimensions": lambda: bad(attn_mask=boolean(2, 2, 4, 7, 9)),
    "query is no tensor": lambda: bad(query=3),
    "query is missing": lambda: bad(query=None),
    "mask is no tensor": lambda: bad(attn_mask=[1.0]),
    "integers": lambda: bad(query=lambda q: q.long(), key=lambda k: k.long(), value=lambda v: v.long()),
    "dropout above 1": lambda: bad(dropout_p=1.5),
    "scale is text": lambda: bad(scale="x"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_what_torch_refuses_in_its_words(name):
    arguments = BAD[name]()
    named = {n: arguments.pop(n) for n in list(arguments)[3:] if n != "attn_mask"}
    with pytest.raises(Exception) as want:  # noqa: B017, PT011
        F.scaled_dot_product_attention(*arguments.values(), **named)
    with pytest.raises(type(want.value)) as got:
        sl.scaled_dot_product_attention(*arguments.values(), **named)
    assert type(got.value) is type(want.value)
    assert str(got.value).splitlines()[0] == str(want.value).splitlines()[0]


@pytest.mark.parametrize("name", ["unknown", "too many"])
def test_the_signature_is_torchs(name):
    q, k, v = qkv(2, 3)
    for f in BOTH:
        with pytest.raises(TypeError):
            f(q, k, v, sharpness=3) if name == "unknown" else f(q, k, v, None, 0.0, False, 0.5)


def test_dropout_in_expectation():
    q, k, v = qkv(1, 2, q=4, s=6)
    whole = F.scaled_dot_product_attention(q, k, v)
    tries = 4000
    p = F.softmax(q @ k.mT / 8**0.5, -1)
    spread = ((p**2 @ v**2) * 0.3 / 0.7 / tries).sqrt()
    for f in BOTH:
        many = f(q.expand(tries, 2, 4, 8), k, v, dropout_p=0.3)
        assert (((many.mean(0) - whole[0]).abs() / spread[0]) < 5).all()
        assert many[0].ne(many[1]).any()


def test_dropout_of_everything():
    q, k, v = qkv(2, 3)
    assert not sl.scaled_dot_product_attention(q, k, v, dropout_p=1.0).any()


def test_dropout_follows_torchs_seed():
    q, k, v = qkv(2, 3)
    torch.manual_seed(3)
    first = sl.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    second = sl.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(3)
    assert torch.equal(sl.scaled_dot_product_attention(q, k, v, dropout_p=0.5), first) and not torch.equal(first, second)


def test_it_may_take_the_name_of_torchs_function(monkeypatch):
    q, k, v = qkv(2, 3)
    want = F.scaled_dot_product_attention(q, k, v)
    monkeypatch.setattr(F, "scaled_dot_product_attention", sl.scaled_dot_product_attention)
    torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v), want)
    with pytest.raises(RuntimeError):
        F.scaled_dot_product_attention(q, k[..., :-1, :], v)
