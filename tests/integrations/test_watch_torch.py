"""Watching any other torch model: scaled_dot_product_attention and nn.MultiheadAttention, fast paths included."""

import copy
import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as imported_by_name

import softlookup as sl


class Attention(nn.Module):
    """Self- or cross-attention by a direct call of SDPA."""

    def __init__(self, width=16, heads=4, kv_heads=4, **options):
        super().__init__()
        self.heads, self.kv_heads, self.options = heads, kv_heads, options
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width * kv_heads // heads)
        self.v = nn.Linear(width, width * kv_heads // heads)

    def forward(self, x, encoder_states=None, **kwargs):
        y = x if encoder_states is None else encoder_states
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (f(y).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for f in (self.k, self.v))
        return self.attend(q, k, v, **self.options, **kwargs).transpose(1, 2).flatten(2)

    def attend(self, q, k, v, **kwargs):
        return F.scaled_dot_product_attention(q, k, v, **kwargs)


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.blocks = nn.ModuleList(Attention(**options) for _ in range(2))

    def forward(self, x, **kwargs):
        for block in self.blocks:
            x = x + block(x, **kwargs)
        return x


@pytest.fixture
def x(rng):
    torch.manual_seed(0)
    return torch.randn(2, 7, 16, generator=rng)


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)


def test_direct_calls_are_followed_by_module_path(x):
    model = Model(is_causal=True)
    want = model(x)
    with sl.watch(model) as seen:
        got = model(x)
    assert_same(got, want)
    assert list(seen.layers) == ["blocks.0", "blocks.1"]
    layer = seen.layers["blocks.1"]
    assert (layer.heads, layer.calls, layer.count, layer.cross) == (4, 1, 14, False)
    assert float(layer.max("visible").max()) == 7 and float(layer.min("visible").min()) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.5},
        {"kv_heads": 2, "enable_gqa": True},
        {"is_causal": True},
        {"attn_mask": torch.ones(7, 7).tril().bool()},
        {"attn_mask": torch.arange(49.0).reshape(7, 7).sin()},
        {"attn_mask": torch.arange(49.0).reshape(7, 7).sin(), "is_causal": True},
        {"attn_mask": torch.ones(7, 7).triu(-2).bool(), "is_causal": True},
    ],
    ids=lambda options: "+".join(options),
)
def test_every_option_of_sdpa_means_the_same(x, options):
    model = Model(**options)
    want = model(x)
    with sl.watch(model):
        got = model(x)
    assert_same(got, want)
    got.sum().backward()
    grads, model_grads = [p.grad.clone() for p in model.parameters()], model.zero_grad()
    model(x).sum().backward()
    assert model_grads is None
    for got, p in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad, rtol=1e-4, atol=1e-5)


def test_causality_is_torchs_also_with_fewer_keys_or_queries(x):
    model = Attention(is_causal=True)
    for keys in (4, 9):
        states = torch.randn(2, keys, 16)
        want = model(x, states)
        with sl.watch(model) as seen:
            got = model(x, states)
        assert_same(got, want)
    assert seen.layers["Attention"].count == 14


def test_names_imported_before_are_followed(x, monkeypatch):
    monkeypatch.setattr(Attention, "attend", lambda self, *args, **kwargs: imported_by_name(*args, **kwargs))
    with sl.watch(model := Model()) as seen:
        model(x)
    assert len(seen.layers) == 2


@pytest.mark.parametrize("shape", [(7, 4), (3, 7, 4), (2, 3, 4, 7, 4)])
def test_other_numbers_of_dimensions(shape):
    class Bare(nn.Module):
        def forward(self, q, mask):
            return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    q, mask = torch.randn(shape), torch.ones(*shape[:-2], 7, 7).tril().bool()
    with sl.watch(model := Bare()) as seen:
        got = model(q, mask)
    assert_same(got, F.scaled_dot_product_attention(q, q, q, attn_mask=mask))
    layer = seen.layers["Bare"]
    assert layer.count * layer.heads == q[..., 0].numel()


def test_torchs_own_errors_come_first(x):
    model = Attention()
    for mask in (torch.ones(3, 3).bool(), torch.ones(2, 3, 7, 7)):
        with pytest.raises(RuntimeError) as want:
            model(x, attn_mask=mask)
        with pytest.raises(RuntimeError) as got, sl.watch(model):
            model(x, attn_mask=mask)
        assert str(got.value) == str(want.value)
    grouped = Attention(kv_heads=2)
    with pytest.raises(RuntimeError), sl.watch(grouped):
        grouped(x)


def test_cross_attention_is_told_by_its_states_or_lengths(x):
    model = nn.ModuleDict({"self": Attention(), "cross": Attention(), "unnamed": Attention()})

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x, states):
            x = x + self.parts["self"](x) + self.parts["cross"](x, encoder_states=states)
            return self.parts["unnamed"](x, encoder_states=states[:, :3])

    with sl.watch(block := Block()) as seen:
        block(x, torch.randn(2, 7, 16))
    assert {name: layer.cross for name, layer in seen.layers.items()} == {
        "parts.self": False,
        "parts.cross": True,
        "parts.unnamed": True,
    }


def test_padding_masks_tell_which_queries_are_real(x):
    real = torch.tensor([[True] * 7, [False] * 3 + [True] * 4])
    model = Attention()
    for mask in (real[:, None, None], real[:, None, None] & torch.ones(7, 7).tril().bool()):
        with sl.watch(model) as seen:
            model(x, attn_mask=mask)
        assert seen.layers["Attention"].count == 11


def test_a_module_called_twice_in_a_pass_is_two_entries(x):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention()

        def forward(self, x):
            return self.attention(self.attention(x))

    with sl.watch(model := Twice()) as seen:
        model(x)
        model(x)
    assert {name: layer.calls for name, layer in seen.layers.items()} == {"attention": 2, "attention#2": 2}


def multi_head(**options):
    torch.manual_seed(0)
    return nn.MultiheadAttention(16, 4, **({"batch_first": True} | options)).eval()


PADDED = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
CAUSAL = ~torch.ones(7, 7).tril().bool()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({}, {}),
        ({}, {"key_padding_mask": PADDED}),
        ({}, {"attn_mask": CAUSAL}),
        ({}, {"attn_mask": CAUSAL, "key_padding_mask": PADDED}),
        ({}, {"attn_mask": CAUSAL, "is_causal": True}),
        ({}, {"average_attn_weights": False}),
        ({"batch_first": False}, {}),
        ({"add_bias_kv": True, "add_zero_attn": True}, {}),
        ({"kdim": 16, "vdim": 8}, {}),
    ],
    ids=str,
)
def test_multihead_attention(x, options, call, need_weights, grad):
    """Result and returned weights are torch's; statistics are recorded either way (the fast path included)."""
    module = multi_head(**options)
    value = x if "vdim" not in options else torch.randn(2, 7, 8)
    with torch.set_grad_enabled(grad):
        want, want_weights = module(x, x, value, need_weights=need_weights, **call)
        with sl.watch(module) as seen:
            got, got_weights = module(x, x, value, need_weights=need_weights, **call)
    assert_same(got, want)
    assert (got_weights is None) == (want_weights is None) == (not need_weights)
    if need_weights:
        assert_same(got_weights, want_weights)
    layer = seen.layers["MultiheadAttention"]
    assert (layer.heads, layer.calls, layer.cross) == (4, 1, False)
    rows, length = (7, 2) if options.get("batch_first") is False else (2, 7)
    assert layer.count == (12 if "key_padding_mask" in call else rows * length)


def test_multihead_statistics_equal_its_own_weights(x):
    module = multi_head()
    with torch.no_grad(), sl.watch(module) as seen:
        _, p = module(x, x, x, key_padding_mask=PADDED, average_attn_weights=False)
    p = p.transpose(0, 1)[:, ~PADDED]  # (H, real queries, S)
    layer = seen.layers["MultiheadAttention"]
    torch.testing.assert_close(layer.mean("max_weight"), p.amax(-1).mean(1).double(), rtol=1e-5, atol=1e-6)
    entropy = -(p * p.clamp(min=1e-30).log()).sum(-1)
    torch.testing.assert_close(layer.mean("entropy"), entropy.mean(1).double(), rtol=1e-5, atol=1e-6)


def test_multihead_dropout_is_seen_before_it_drops(x):
    module = multi_head(dropout=0.5).train()
    for need_weights in (True, False):
        with sl.watch(module) as seen:
            module(x, x, x, need_weights=need_weights)
        with sl.watch(module.eval()) as clean:
            module(x, x, x)
        module.train()
        a, b = seen.layers["MultiheadAttention"], clean.layers["MultiheadAttention"]
        torch.testing.assert_close(a.mean("entropy"), b.mean("entropy"), rtol=1e-5, atol=1e-6)


def test_unbatched_and_cross(x):
    module = multi_head()
    with sl.watch(module) as seen:
        module(x[0], x[0], x[0])
        got, _ = module(x, x[:, :5].clone(), x[:, :5].clone())
    assert_same(got, module(x, x[:, :5], x[:, :5])[0])
    assert [(layer.cross, layer.count) for layer in seen.layers.values()] == [(False, 7), (True, 14)]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("grad", [True, False])
def test_transformer_encoder(x, padded, grad):
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    mask = PADDED if padded else None
    with torch.set_grad_enabled(grad):
        want = model(x, src_key_padding_mask=mask)
        with sl.watch(model) as seen:
            got = model(x, src_key_padding_mask=mask)
    real = ~PADDED if padded else torch.ones(2, 7, dtype=torch.bool)
    torch.testing.assert_close(got[real], want[real], rtol=1e-5, atol=1e-5)
    assert list(seen.layers) == ["layers.0.self_attn", "layers.1.self_attn"]
    assert {layer.count for layer in seen.layers.values()} == {int(real.sum())}


def test_padding_counts_in_nothing(rng):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), 2).eval()
    texts, seen = [torch.randn(1, n, 16, generator=rng) for n in (7, 4)], {}
    for side in ("left", "right"):
        pad = (0, 0, 3, 0) if side == "left" else (0, 0, 0, 3)
        mask = torch.zeros(2, 7, dtype=torch.bool)
        mask[1, slice(0, 3) if side == "left" else slice(4, 7)] = True
        with torch.no_grad(), sl.watch(model) as seen[side]:
            model(torch.cat([texts[0], F.pad(texts[1], pad)]), src_key_padding_mask=mask)
    with torch.no_grad(), sl.watch(model) as seen["alone"]:
        for text in texts:
            model(text)
    for side in ("left", "right"):
        for name, layer in seen["alone"].layers.items():
            other = seen[side].layers[name]
            assert other.count == layer.count == 11
            for stat in ("entropy", "max_logit", "logit_var", "distance", "visible"):
                torch.testing.assert_close(other.mean(stat), layer.mean(stat), rtol=1e-4, atol=1e-5)


def test_transformer_decoder_counts_its_own_padding_in_cross_attention(x):
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True), 1).eval()
    memory = torch.randn(2, 5, 16)
    with torch.no_grad(), sl.watch(model) as seen:
        model(x, memory, tgt_mask=CAUSAL, tgt_key_padding_mask=PADDED, memory_key_padding_mask=PADDED[:, 2:])
    own, cross = seen.layers["layers.0.self_attn"], seen.layers["layers.0.multihead_attn"]
    assert (own.cross, cross.cross, own.count, cross.count) == (False, True, 12, 12)
    assert float(cross.min("visible").min()) == 3 and float(cross.max("visible").max()) == 5


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_nested_watches_in_any_order_of_leaving(x):
    model = Model()
    outer, inner = sl.watch(model), sl.watch(model.blocks[1], stats=("entropy",))
    seen, seen_inner = outer.__enter__(), inner.__enter__()
    model(x)
    outer.__exit__(None, None, None)
    model(x)
    inner.__exit__(None, None, None)
    assert {name: layer.calls for name, layer in seen.layers.items()} == {"blocks.0": 1, "blocks.1": 1}
    assert {name: layer.calls for name, layer in seen_inner.layers.items()} == {"Attention": 2}
    assert hooks(model) == 0


def test_nested_watches_give_the_compiler_back(x):
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled, model = torch.compile(lambda t: t + 1, backend=count), Model()
    compiled(torch.zeros(3))
    outer, inner = sl.watch(model), sl.watch(model)
    outer.__enter__(), inner.__enter__()
    model(x)
    outer.__exit__(None, None, None)
    compiled(torch.zeros(3, 4))
    assert len(graphs) == 1
    inner.__exit__(None, None, None)
    compiled(torch.zeros(3, 4, 5))
    assert len(graphs) == 2


def test_attention_outside_of_the_model_is_left_alone(x):
    model, other = Model(), Model()
    q = torch.randn(1, 2, 3, 4)
    with sl.watch(model) as seen:
        model(x)
        other(x)
        assert torch.equal(F.scaled_dot_product_attention(q, q, q), F.scaled_dot_product_attention(q, q, q))
    assert sum(layer.calls for layer in seen.layers.values()) == 2


def test_an_exception_leaves_nothing_behind(x):
    model = Model()
    with pytest.raises(ZeroDivisionError), sl.watch(model):
        model(x)
        raise ZeroDivisionError
    assert hooks(model) == 0
    before = model(x)
    assert_same(model(x), before)


def test_nothing_seen_is_an_error(x):
    model = nn.Sequential(nn.Linear(16, 16))
    with (
        pytest.raises(sl.SoftlookupError, match=r"got none in Sequential: it computes .* or has none"),
        sl.watch(model),
    ):
        model(x)
    with pytest.raises(sl.SoftlookupError, match="to be called inside the with block"), sl.watch(model):
        pass


def test_nested_tensors_are_refused():
    class Nested(nn.Module):
        def forward(self, q):
            return F.scaled_dot_product_attention(q, q, q)

    q = torch.nested.nested_tensor([torch.randn(2, 3, 4), torch.randn(2, 5, 4)], layout=torch.jagged)
    with pytest.raises(sl.UnsupportedError, match="nested"), sl.watch(model := Nested()):
        model(q)


def test_checkpointed_blocks_count_once(x):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Model):
        def forward(self, x):
            for block in self.blocks:
                x = x + checkpoint(block, x, use_reentrant=False)
            return x

    with sl.watch(model := Checkpointed()) as seen:
        model(x).sum().backward()
    assert {layer.calls for layer in seen.layers.values()} == {1}


def test_a_compiled_model_is_seen_as_what_it_was_compiled_from(x):
    model = Model()
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    want = compiled(x)
    with sl.watch(compiled) as seen:
        got = compiled(x)
    assert_same(got, want)
    assert list(seen.layers) == ["blocks.0", "blocks.1"]
    assert_same(compiled(x), want)


def test_autocast(x):
    model = Model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = model(x)
        with sl.watch(model) as seen:
            got = model(x)
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    assert len(seen.layers) == 2


def test_the_module_and_the_function_do_not_collide():
    assert callable(sl.watch)
    assert importlib.import_module("softlookup.integrations.any_model").watch is sl.watch
