"""The modules: step by step as the whole, their projections around the functions, every parameter reached."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize, silu, softplus

import softlookup as sl
from softlookup import linear

from .test_linear import step_by_step

MADE = {
    "elu": lambda: linear.LinearAttention(12, 3),
    "grouped": lambda: linear.LinearAttention(12, 6, kv_heads=2, bias=False),
    "random": lambda: linear.LinearAttention(12, 3, features=linear.RandomFeatures(4, 16)),
    "hedgehog": lambda: linear.LinearAttention(12, 3, kv_heads=1, features=linear.Hedgehog(4, 3)),
    "gated delta": lambda: linear.GatedDelta(12, 3),
    "wide values": lambda: linear.GatedDelta(12, 2, value_width=7),
}


@pytest.fixture(params=MADE)
def made(request):
    torch.manual_seed(0)
    return MADE[request.param]().double()


@pytest.fixture
def x():
    return torch.randn(2, 11, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("cuts", [range(1, 11), [4, 5]], ids=["steps", "parts"])
def test_decoding_is_the_whole_with_gradients(made, x, cuts):
    whole, state, out = made(x), None, []
    for start, end in zip([0, *cuts], [*cuts, 11], strict=True):
        part, state = made.advance(x[:, start:end], state)
        out.append(part)
    got = torch.cat(out, 1)
    torch.testing.assert_close(got, whole, rtol=1e-10, atol=1e-12)
    leaves = list(made.parameters())
    grads = torch.autograd.grad(got.cos().sum(), leaves), torch.autograd.grad(whole.cos().sum(), leaves)
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-11)
    assert all(g.any() for g in grads[0])


def test_later_tokens_change_nothing(made, x):
    other = x.clone()
    other[:, 6:] = torch.randn(2, 5, 12, dtype=torch.float64)
    got, want = made(other), made(x)
    torch.testing.assert_close(got[:, :6], want[:, :6], rtol=1e-12, atol=1e-12)
    assert (got[:, 6:] != want[:, 6:]).all()


def test_under_autocast_the_state_is_single(made, x):
    made, x = made.float(), x.float()
    want = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        got, state = made.advance(x, None)
    assert got.dtype == torch.bfloat16 and (state if isinstance(state, torch.Tensor) else state.sums).dtype == torch.float32
    assert (got - want).norm() < 0.03 * want.norm()


def test_it_is_attention_of_projected_heads(x):
    torch.manual_seed(0)
    made = linear.LinearAttention(12, 3, kv_heads=1, causal=False).double()
    keep = torch.arange(11) < torch.tensor([[11], [8]])
    q, k, v = (of(x).view(2, 11, -1, 4).transpose(1, 2) for of in (made.of_query, made.of_key, made.of_value))
    heads = linear.attend(q, k, v, keep=keep)
    torch.testing.assert_close(made(x, keep=keep), made.out(heads.transpose(1, 2).reshape(2, 11, 12)))
    torch.testing.assert_close(made(x, keep=keep)[1, :8], made(x[1:, :8])[0])


def test_steps_leave_out_what_is_not_real(x):
    torch.manual_seed(0)
    made = linear.LinearAttention(12, 3).double()
    keep = torch.arange(11) < torch.tensor([[11], [8]])
    first, state = made.advance(x[:, :6], None, keep=keep[:, :6])
    second, state = made.advance(x[:, 6:], state, keep=keep[:, 6:])
    torch.testing.assert_close(torch.cat([first, second], 1), made(x, keep=keep))
    torch.testing.assert_close(state.sums[1], made.advance(x[1:, :8], None)[1].sums[0])


def test_the_gated_delta_rule_is_its_equations(x):
    torch.manual_seed(0)
    made = linear.GatedDelta(12, 3).double()

    def heads(y):
        return y.view(2, 11, 3, -1).transpose(1, 2)

    q, k, v = (heads(silu(of(x))) for of in (made.of_query, made.of_key, made.of_value))
    log_gate = -made.log_decay.exp()[:, None] * softplus(made.of_gate(x)).mT
    zeros = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    y, state = step_by_step(normalize(q, dim=-1), normalize(k, dim=-1), v, log_gate, made.of_rate(x).sigmoid().mT, zeros)
    y = y / (y.square().mean(-1, keepdim=True) + torch.finfo(torch.float64).eps).sqrt()
    want = made.out(y.transpose(1, 2).reshape(2, 11, 12) * silu(made.of_out(x)))
    torch.testing.assert_close(made.advance(x, None), (want, state))
    step = softplus(made.of_gate.bias)  # at first
    assert ((step > 0.999e-3) & (step < 0.1001)).all() and ((made.log_decay >= 0) & (made.log_decay.exp() <= 16)).all()


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: linear.LinearAttention(12, 5), "LinearAttention: expected heads that divide the width 12, got 5"),
        (lambda: linear.LinearAttention(12, 0), "LinearAttention: expected heads of at least 1, got 0"),
        (lambda: linear.LinearAttention(12, 6, kv_heads=4), "LinearAttention: expected kv_heads that divide the 6 heads"),
        (lambda: linear.LinearAttention(4, 1, causal=False).advance(torch.ones(1, 1, 4), None), "LinearAttention: expected"),
        (lambda: linear.GatedDelta(12, 5), "GatedDelta: expected heads that divide the width 12, got 5"),
        (lambda: linear.GatedDelta(12, 3, value_width=0), "GatedDelta: expected value_width of at least 1, got 0"),
        (lambda: linear.LinearAttention(12, 3)(torch.ones(1, 2, 11)), "x: expected tokens (B, L, 12), got a float32"),
        (lambda: linear.LinearAttention(12, 3).advance(torch.ones(2, 12), None), "x: expected tokens (B, L, 12), got"),
        (lambda: linear.GatedDelta(12, 3)(torch.ones(1, 2, 11)), "x: expected tokens (B, L, 12), got a float32 tensor"),
        (lambda: linear.GatedDelta(12, 3)(torch.ones(2, 12)), "x: expected tokens (B, L, 12), got a float32 tensor"),
        (lambda: linear.GatedDelta(12, 3)(None), "x: expected tokens (B, L, 12), got NoneType"),
    ],
)
def test_mistakes_are_one_line(act, said):
    with pytest.raises(sl.SoftlookupError) as error:
        act()
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
