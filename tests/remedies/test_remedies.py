"""Each remedy does what it says, and leaves the rest of a model as it was."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import softlookup as sl
from softlookup.remedies import entropy_penalty, qk_clip_, qk_norm_, sigma_reparam_, soft_cap_, ssmax_

from ..integrations.architectures import BY_NAME, batch

CLIPPED = ["llama", "gpt2", "bert", "gpt_neox", "mistral", "phi3", "t5", "bart", "modernbert"]


def largest(model, inputs):
    with torch.no_grad(), sl.watch(model, stats=("max_logit",)) as seen:
        model(**inputs)
    return seen


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("alpha", [0.5, 0.0, 1.0])
def test_qk_clip_brings_the_heads_beyond_to_the_threshold_and_leaves_the_others(name, alpha):
    architecture = BY_NAME[name]
    model, (inputs, _) = architecture.build(), batch(architecture, "none")
    before = largest(model, inputs)
    first = next(iter(before.layers))
    values = before.layers[first].max("max_logit")
    threshold = float(values.sort().values[len(values) // 2 - 1 : len(values) // 2 + 1].mean())
    if threshold <= 0:
        pytest.skip("its largest logits are negative")
    others = {n: p.clone() for n, p in model.named_parameters()}
    clipped = qk_clip_(model, before, threshold, alpha)
    after = largest(model, inputs).layers[first].max("max_logit")
    plain = name not in ("t5", "bart")  # a bias of positions is no part of the product
    if plain:
        torch.testing.assert_close(after, values.clamp(max=threshold), rtol=2e-4, atol=1e-5)
    else:
        assert bool((after[values > threshold] < values[values > threshold]).all())
    assert clipped, "nothing was clipped"
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, others[n])}
    assert changed and not any("norm" in n or "mlp" in n or "embed" in n for n in changed)


def test_qk_clip_of_torch_modules_and_of_ours(rng):
    x = 3 * torch.randn(2, 9, 16, generator=rng)
    for model in (
        nn.TransformerEncoderLayer(16, 4, batch_first=True, dropout=0.0),
        sl.nn.MultiHeadAttention(16, 4, kv_heads=2),
    ):
        with sl.watch(model) as seen:
            model(x)
        (layer,) = seen.layers.values()
        values = layer.max("max_logit")
        threshold = float(values.median())
        factors = qk_clip_(model, seen, threshold)
        assert [f.tolist() for f in factors.values()] == [torch.where(values > threshold, threshold / values, 1.0).tolist()]
        with sl.watch(model) as seen:
            model(x)
        (layer,) = seen.layers.values()
        torch.testing.assert_close(layer.max("max_logit"), values.clamp(max=threshold), rtol=1e-4, atol=1e-5)


def test_qk_clip_below_the_threshold_changes_nothing(rng):
    model = sl.nn.MultiHeadAttention(16, 4)
    state = copy.deepcopy(model.state_dict())
    with sl.watch(model) as seen:
        model(torch.randn(1, 5, 16, generator=rng))
    assert qk_clip_(model, seen, 1e6) == {}
    assert all(torch.equal(state[n], x) for n, x in model.state_dict().items())


def test_qk_clip_refuses_what_it_cannot_do(rng):
    model = sl.nn.MultiHeadAttention(16, 4, qk_norm=True)
    with sl.watch(model) as seen:
        model(torch.randn(1, 5, 16, generator=rng))
    with pytest.raises(sl.UnsupportedError, match="without QK-norm"):
        qk_clip_(model, seen, 1e-3)
    with pytest.raises(sl.SoftlookupError, match="threshold > 0"):
        qk_clip_(model, seen, 0.0)
    with sl.watch(model, stats=("entropy",)) as seen:
        model(torch.randn(1, 5, 16, generator=rng))
    with pytest.raises(sl.SoftlookupError, match="a watch of max_logit"):
        qk_clip_(model, seen)


@pytest.mark.parametrize("name", ["llama", "bert", "mistral", "t5"])
def test_qk_norm_bounds_logits_and_trains(name):
    architecture = BY_NAME[name]
    model, (inputs, _) = architecture.build(), batch(architecture, "none")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    qk_norm_(model)
    names = [n for n, _ in model.named_parameters()]
    assert any(n.endswith("q_norm.weight") for n in names) and any(n.endswith("k_norm.weight") for n in names)
    seen = largest(model, inputs)
    for module_name, layer in seen.layers.items():
        width = model.get_submodule(module_name.split(" (")[0].split("#")[0]).q_norm.weight.shape[0]
        scale = 1.0 if name == "t5" else width**-0.5
        bias = 50.0 if name == "t5" else 0.0
        assert float(layer.max("max_logit").max()) <= width * scale * 1.001 + bias
    sl.watch(model)
    next(iter(model(**inputs).values())).sum().backward()
    gains = [p for n, p in model.named_parameters() if n.endswith(("q_norm.weight", "k_norm.weight"))]
    assert any(p.grad is not None and bool(p.grad.any()) for p in gains)
    with pytest.raises(sl.UnsupportedError, match="without a norm"):
        qk_norm_(model)


def test_qk_norm_of_fused_projections_is_refused():
    with pytest.raises(sl.UnsupportedError, match="separate projections"):
        qk_norm_(BY_NAME["gpt2"].build())


def test_sigma_reparam_keeps_the_function_and_learns_the_norm(rng):
    model = nn.TransformerEncoderLayer(16, 4, batch_first=True, dropout=0.0).eval()
    x = torch.randn(2, 5, 16, generator=rng)
    want = model(x)
    norms = {n: torch.linalg.matrix_norm(m.weight, 2) for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    sigma_reparam_(model)
    for _ in range(200):  # power iteration, a step at each forward in training
        model.train()(x)
    torch.testing.assert_close(model.eval()(x), want, rtol=1e-3, atol=1e-3)
    for name, module in model.named_modules():
        if name in norms:
            torch.testing.assert_close(torch.linalg.matrix_norm(module.weight, 2), norms[name], rtol=1e-3, atol=1e-4)
    model.train()(x).square().sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n.endswith("gamma"))


def test_sigma_reparam_leaves_tied_weights_alone_and_begins_where_it_is_told():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.inner, self.out = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
            self.out.weight = self.embedding.weight

    model = sigma_reparam_(Tied(), 1.0)
    assert model.out.weight is model.embedding.weight
    for _ in range(100):
        weight = model.inner.weight
    torch.testing.assert_close(torch.linalg.matrix_norm(weight, 2), torch.tensor(1.0), rtol=1e-3, atol=1e-3)
    with pytest.raises(sl.SoftlookupError, match="found none in Embedding"):
        sigma_reparam_(nn.Embedding(3, 3))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_soft_cap_of_a_hugging_face_model(name):
    architecture = BY_NAME[name]
    model, (inputs, _) = architecture.build("sdpa"), batch(architecture, "left")
    with torch.no_grad():
        for n, parameter in model.named_parameters():
            if "q_proj" in n or "query" in n:
                parameter.mul_(30)
    assert any(float(x.max("max_logit").max()) > 2 for x in largest(model, inputs).layers.values())
    soft_cap_(model, 2.0)
    assert all(float(x.max("max_logit").max()) <= 2 for x in largest(model, inputs).layers.values())


def test_ssmax_of_ours_begins_where_it_was_and_is_learned(rng):
    attention, x = sl.nn.MultiHeadAttention(16, 4), torch.randn(2, 8, 16, generator=rng)
    want = attention(x)
    ssmax_(attention, 8)
    got = attention(x)
    torch.testing.assert_close(got, want)
    got.square().sum().backward()
    assert attention.ssmax.shape == (4,) and bool(attention.ssmax.grad.any())
    longer = torch.randn(1, 64, 16, generator=rng)
    with sl.watch(attention) as seen:
        attention(longer)
    q, k = (f(longer).unflatten(-1, (4, 4)).transpose(1, 2) for f in (attention.of_query, attention.of_key))
    want_logit = (q @ k.mT).amax((0, 2, 3)) / 2 * math.log(64) / math.log(8)
    torch.testing.assert_close(seen.layers["MultiHeadAttention"].max("max_logit").float(), want_logit, rtol=1e-4, atol=1e-4)


def test_ssmax_reads_its_parameter_where_it_is(rng):
    """A state that is assigned, not copied, counts; so does a copy's own."""
    attention, x = sl.nn.MultiHeadAttention(16, 4), torch.randn(2, 8, 16, generator=rng)
    ssmax_(attention, 8)
    before, copied = attention(x), copy.deepcopy(attention)
    state = {name: torch.zeros_like(v) if name == "ssmax" else v.clone() for name, v in attention.state_dict().items()}
    attention.load_state_dict(state, assign=True)
    uniform = attention.out(attention.of_value(x).mean(1, keepdim=True)).expand_as(x)
    torch.testing.assert_close(attention(x), uniform)
    torch.testing.assert_close(copied(x), before)


@pytest.mark.parametrize("first", [soft_cap_, ssmax_])
def test_a_cap_and_ssmax_go_together(first, rng):
    attention, x = sl.nn.MultiHeadAttention(16, 4), 9 * torch.randn(2, 8, 16, generator=rng)
    for remedy in (first, soft_cap_ if first is ssmax_ else ssmax_):
        remedy(attention, 2)
    q, k, v = (f(x).unflatten(-1, (4, 4)).transpose(1, 2) for f in (attention.of_query, attention.of_key, attention.of_value))
    score = sl.ScaledDot(softcap=2, ssmax=1 / math.log(2))
    torch.testing.assert_close(attention(x), attention.out(sl.attend(q, k, v, score=score).transpose(1, 2).flatten(2)))
    with pytest.raises(sl.UnsupportedError, match="without SSMax"):
        ssmax_(attention, 8)


def test_ssmax_keeps_the_cap_of_the_model():
    architecture = BY_NAME["gemma2"]
    model, (inputs, _) = architecture.build(), batch(architecture, "none")
    cap = model.config.attn_logit_softcapping
    with torch.no_grad():
        for n, parameter in model.named_parameters():
            if "q_proj" in n:
                parameter.mul_(1e4)
    ssmax_(model, 8)
    top = max(float(x.max("max_logit").max()) for x in largest(model, inputs).layers.values())
    assert 0.9 * cap < top <= cap


def test_what_is_refused_is_left_as_it_was():
    model = BY_NAME["llama"].build("sdpa")
    with pytest.raises(sl.SoftlookupError, match="a finite number > 0"):
        soft_cap_(model, -1.0)
    assert model.config._attn_implementation == "sdpa"
    mixed = nn.ModuleList([sl.nn.MultiHeadAttention(16, 4), sl.nn.MultiHeadAttention(16, 4, qk_norm=True)])
    with pytest.raises(sl.UnsupportedError, match="got one in 1"):
        qk_norm_(mixed)
    assert not hasattr(mixed[0], "q_norm")
    scored = sl.nn.MultiHeadAttention(16, 4, score=sl.Cosine())
    with pytest.raises(sl.UnsupportedError, match="got Cosine"):
        ssmax_(scored, 8)


def test_scores_of_a_model_of_ones_own_are_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads = 2
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(4, 4) for _ in range(4))

    with pytest.raises(sl.UnsupportedError, match=r"attend\(…, score=ScaledDot"):
        soft_cap_(Own())
    with pytest.raises(sl.SoftlookupError, match="length of at least 2"):
        ssmax_(Own(), 1)


def test_the_entropy_penalty_flattens_the_collapsed_heads_only(rng):
    attention, x = sl.nn.MultiHeadAttention(16, 4), torch.randn(2, 8, 16, generator=rng)
    with torch.no_grad():
        attention.of_query.weight[:4].mul_(300)
    with sl.watch(attention, keep="graph") as seen:
        attention(x)
        ratios = seen.layers["MultiHeadAttention"].mean("entropy_ratio")
        penalty = entropy_penalty(seen, 0.3)
    assert float(ratios[0]) < 0.3 < float(ratios[1:].min())
    torch.testing.assert_close(penalty.detach().double(), (0.3 - ratios[0]) ** 2, rtol=1e-4, atol=1e-6)
    penalty.backward()
    grad = attention.of_query.weight.grad
    assert bool(grad[:4].any()) and not bool(grad[4:].any())
    with pytest.raises(sl.SoftlookupError, match="floor above 0"):
        entropy_penalty(seen, 0.0)


def test_a_remedy_in_a_training_loop(rng):
    """Logits that run away are held by QK-clip, step after step."""
    torch.manual_seed(0)
    attention, x = sl.nn.MultiHeadAttention(16, 2), torch.randn(4, 8, 16, generator=rng)
    target = torch.randn(4, 8, 16, generator=rng)
    optimizer = torch.optim.Adam(attention.parameters(), 0.3)
    with sl.watch(attention, stats=("max_logit",)) as seen:
        for _ in range(20):
            optimizer.zero_grad()
            F.mse_loss(attention(x), target).backward()
            optimizer.step()
            qk_clip_(attention, seen, 5.0)
            seen.clear()
        attention(x)
        assert float(seen.layers["MultiHeadAttention"].max("max_logit").max()) < 30


def test_qk_clip_answers_once_to_what_was_seen_and_to_this_models_plain_weights_only(rng):
    attention, x = sl.nn.MultiHeadAttention(16, 4), torch.randn(1, 5, 16, generator=rng)
    with sl.watch(attention) as seen:
        attention(x)
        assert qk_clip_(attention, seen, 1e-3)
        with pytest.raises(sl.SoftlookupError, match="expected seen.clear"):
            qk_clip_(attention, seen, 1e-3)
        seen.clear()
        attention(x)
    with pytest.raises(sl.SoftlookupError, match="of this model, got layers such as MultiHeadAttention"):
        qk_clip_(nn.Sequential(sl.nn.MultiHeadAttention(16, 4)), seen, 1e-3)
    with sl.watch(sigma_reparam_(attention)) as seen:
        attention(x)
    with pytest.raises(sl.UnsupportedError, match="plain weights"):
        qk_clip_(attention, seen, 1e-3)


def test_the_penalty_leaves_padding_out(rng):
    model, x = sl.nn.MultiHeadAttention(16, 4), torch.randn(1, 8, 16, generator=rng)
    mask = sl.Lengths(torch.tensor([5]))
    with sl.watch(model, keep="graph") as seen:
        model(x, mask=mask)
        want = (0.99 - seen.layers["MultiHeadAttention"].mean("entropy_ratio")).clamp(min=0).square().sum()
        torch.testing.assert_close(entropy_penalty(seen, 0.99).detach().double(), want, rtol=1e-4, atol=1e-8)
