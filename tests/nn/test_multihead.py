"""Multi-head attention against torch's module, its cache against the whole, its options against their formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import softlookup as sl
from softlookup.nn import Cache, MultiHeadAttention, RoPE, TransformerBlock
from softlookup.nn.multihead import from_torch_state


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("context", [None, 24], ids=["self", "cross"])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_torchs_module_with_gradients(bias, context, masked):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, bias=bias, kdim=context, vdim=context, batch_first=True).double()
    if bias:
        nn.init.normal_(theirs.in_proj_bias)
        nn.init.normal_(theirs.out_proj.bias)
    ours = MultiHeadAttention.from_torch(theirs)
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    read = x if context is None else torch.randn(2, 5, context, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(5, 5, dtype=torch.bool).tril() if masked else None
    want, _ = theirs(x, read, read, attn_mask=None if mask is None else ~mask, need_weights=False)
    got = ours(x, None if context is None else read, mask=sl.Causal() if masked else None)
    torch.testing.assert_close(got, want)
    leaves = [x] if context is None else [x, read]
    for a, b in zip(torch.autograd.grad(got.sin().sum(), leaves), torch.autograd.grad(want.sin().sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)
    weights = theirs(x, read, read, attn_mask=None if mask is None else ~mask, average_attn_weights=False)[1]
    torch.testing.assert_close(ours.weights(x, None if context is None else read, mask=mask), weights)


def test_what_torchs_module_has_and_ours_has_not():
    with pytest.raises(sl.SoftlookupError, match="add_bias_kv"):
        MultiHeadAttention.from_torch(nn.MultiheadAttention(16, 4, add_bias_kv=True))
    with pytest.raises(sl.SoftlookupError, match="one width"):
        MultiHeadAttention.from_torch(nn.MultiheadAttention(16, 4, kdim=8, vdim=12))
    with pytest.raises(sl.SoftlookupError, match="in_proj_weight"):
        from_torch_state({"weight": torch.ones(1)})


OPTIONS = {
    "plain": {},
    "grouped": {"kv_heads": 2},
    "wide values": {"value_width": 7},
    "narrow heads": {"head_width": 2, "value_width": 5},
    "rope": {"positions": RoPE()},
    "alibi": {"positions": sl.ALiBi(sl.ALiBi.slopes(4))},
    "normalized": {"qk_norm": True, "positions": RoPE()},
    "without bias": {"bias": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_steps_with_a_cache_equal_the_whole(options):
    torch.manual_seed(0)
    module = MultiHeadAttention(16, 4, **options).eval()
    x = torch.randn(2, 9, 16)
    whole, seen = module(x, mask=sl.Causal(), stats=("entropy", "distance"))
    assert seen.entropy.shape == (2, 4, 9)
    cache, parts = Cache(), []
    for start, stop in ((0, 4), (4, 5), (5, 6), (6, 9)):
        parts.append(module(x[:, start:stop], mask=sl.Causal(), cache=cache))
        assert len(cache) == stop
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_cross_attention_projects_its_context_once(monkeypatch):
    torch.manual_seed(0)
    module = MultiHeadAttention(16, 4, context_width=6).eval()
    x, context = torch.randn(2, 3, 16), torch.randn(2, 8, 6)
    want = module(x, context)
    cache = Cache()
    module(x[:, :1], context, cache=cache)
    monkeypatch.setattr(module.of_key, "forward", None)
    torch.testing.assert_close(module(x, context, cache=cache), want)
    assert len(cache) == 8


def test_a_cache_gives_the_entries_that_are_taken():
    torch.manual_seed(0)
    module = MultiHeadAttention(16, 4).eval()
    x, cache = torch.randn(3, 5, 16), Cache()
    module(x[:, :4], mask=sl.Causal(), cache=cache)
    which = torch.tensor([2, 2, 0])
    got = module(x[which, 4:], mask=sl.Causal(), cache=cache.take(which))
    torch.testing.assert_close(got, module(x, mask=sl.Causal())[which, 4:], rtol=1e-4, atol=1e-5)
    assert len(cache) == 4 and len(Cache().take(which)) == 0


def test_rotary_scores_depend_on_the_distance_alone():
    torch.manual_seed(0)
    rope, q, k = RoPE(), torch.randn(1, 1, 1, 8).double(), torch.randn(1, 1, 1, 8).double()
    scores = [(rope(q, i) * rope(k, i - 3)).sum() for i in (3, 10, 500)]
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rope(q, 7).norm(), q.norm(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rope(q), q)


def test_positions_belong_to_one_sequence():
    for positions in (RoPE(), sl.ALiBi(torch.tensor([0.5, 0.25]))):
        with pytest.raises(sl.SoftlookupError, match="context without positions"):
            MultiHeadAttention(8, 2, positions=positions)(torch.randn(1, 3, 8), torch.randn(1, 5, 8))
    with pytest.raises(sl.SoftlookupError, match="expected positions as RoPE"):
        MultiHeadAttention(8, 2, positions="rope")


def test_torchs_weights_keep_their_digits():
    theirs = nn.MultiheadAttention(8, 2, dtype=torch.float64)
    assert torch.equal(MultiHeadAttention.from_torch(theirs).out.weight, theirs.out_proj.weight)


def test_a_block_and_its_context():
    x = torch.randn(1, 3, 8)
    with pytest.raises(sl.SoftlookupError, match="expected a context, as cross=True, got none"):
        TransformerBlock(8, 2, cross=True)(x)
    with pytest.raises(sl.SoftlookupError, match="expected no context, as cross=False, got one"):
        TransformerBlock(8, 2)(x, x)


def test_bad_widths_are_told():
    with pytest.raises(sl.SoftlookupError, match="expected heads of at least 1, got 0"):
        MultiHeadAttention(8, 0)
    for said, message in (
        ({"width": 10, "heads": 4}, "heads that divide the width 10"),
        ({"width": 16, "heads": 4, "kv_heads": 3}, "kv_heads that divide"),
    ):
        with pytest.raises(sl.SoftlookupError, match=message):
            MultiHeadAttention(**said)
    with pytest.raises(sl.SoftlookupError, match="even width"):
        MultiHeadAttention(9, 3, positions=RoPE())(torch.randn(1, 2, 9))
    with pytest.raises(sl.SoftlookupError, match="base"):
        RoPE(0.5)


def test_dropout_is_on_in_training_only():
    torch.manual_seed(0)
    module, x = MultiHeadAttention(16, 4, dropout=0.5), torch.randn(2, 6, 16)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_a_block_equals_torchs_layers():
    torch.manual_seed(0)
    theirs = nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=True)
    ours = TransformerBlock(16, 4, inner=32, cross=True)
    ours.attention = MultiHeadAttention.from_torch(theirs.self_attn)
    ours.cross = MultiHeadAttention.from_torch(theirs.multihead_attn)
    for a, b in ((0, theirs.linear1), (3, theirs.linear2)):
        ours.feed_forward[a] = b
    ours.attention_norm, ours.cross_norm, ours.feed_forward_norm = theirs.norm1, theirs.norm2, theirs.norm3
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    hidden = ~torch.ones(5, 5, dtype=torch.bool).tril()
    padding = torch.arange(7) >= torch.tensor([[7], [4]])
    want = theirs(x, context, tgt_mask=hidden, memory_key_padding_mask=padding)
    got, seen = ours(x, context, mask=sl.Causal(), context_mask=sl.Lengths(torch.tensor([7, 4])), stats="entropy")
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert seen.entropy.shape == (2, 4, 5)
    weights = ours.cross_weights(x, context, mask=sl.Causal(), context_mask=sl.Lengths(torch.tensor([7, 4])))
    torch.testing.assert_close(torch.special.entr(weights).sum(-1), seen.entropy, rtol=1e-4, atol=1e-5)


def test_a_block_without_cross_attention_reports_its_own():
    block, x = TransformerBlock(16, 4), torch.randn(2, 5, 16)
    _, seen = block(x, mask=sl.Causal(), stats="entropy")
    assert seen.entropy.shape == (2, 4, 5) and block(x)[1] is None
    with pytest.raises(sl.UnsupportedError, match="cross"):
        block.cross_weights(x, x)


def test_a_normalizer_that_learns():
    alpha = nn.Parameter(torch.full((4,), 1.5))
    made = MultiHeadAttention(16, 4, normalizer=sl.Entmax(alpha))
    x = torch.randn(2, 9, 16)
    y, stats = made(x, mask=sl.Causal(), stats=["support", "visible"])
    assert (stats.support < stats.visible).any() and torch.equal((made.weights(x, mask=sl.Causal()) > 0).sum(-1), stats.support)
    y.square().sum().backward()
    assert any(p is alpha for p in made.parameters()) and alpha.grad.abs().min() > 0
    again = copy.deepcopy(made)
    (own,) = again.of_normalizer.parameters()
    assert again.normalizer.alpha is own and own is not alpha
    again.load_state_dict(made.state_dict())
    torch.testing.assert_close(again(x), made(x))


@pytest.mark.parametrize("kind", [nn.Parameter, torch.Tensor.clone])
def test_tensors_of_a_score_and_a_normalizer_are_the_modules(kind):
    """They move and are saved with it; a plain one that other modules have too stays theirs."""
    normalizer, score = sl.Softmax(kind(torch.tensor(1.3)), kind(torch.zeros(2))), sl.ScaledDot(ssmax=kind(torch.ones(2)))
    made = MultiHeadAttention(8, 2, score=score, normalizer=normalizer)
    names = {"of_normalizer.temperature", "of_normalizer.sink", "of_score.ssmax"}
    assert names <= {*made.state_dict()} and names <= {name for name, _ in (*made.named_parameters(), *made.named_buffers())}
    x = torch.randn(2, 5, 8)
    want = made(x)
    for assign in (False, True):
        changed = sl.Softmax(kind(torch.tensor(9.0)), kind(torch.ones(2)))
        again = MultiHeadAttention(8, 2, score=sl.ScaledDot(ssmax=kind(torch.rand(2))), normalizer=changed)
        again.load_state_dict(made.state_dict(), assign=assign)
        torch.testing.assert_close(again(x), want)
    made = copy.deepcopy(made).double()
    for x64 in (made.normalizer.temperature, made.normalizer.sink, made.score.ssmax):
        assert x64.dtype == torch.float64
    torch.testing.assert_close(made(x.double()).float(), want)
    assert made.to("meta").normalizer.sink.is_meta
    if kind is not nn.Parameter:
        MultiHeadAttention(8, 2, score=score, normalizer=normalizer).double()
        assert normalizer.sink.dtype == score.ssmax.dtype == torch.float32
