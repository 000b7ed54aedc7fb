"""What is read out of a model's modules is what its attention computes with."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import eager_attention_forward

import softlookup as sl
from softlookup.integrations.projections import projections

from .architectures import ARCHITECTURES, BY_NAME, batch, causal

LATENT = ["deepseek_v3", "deepseek_v32"]
READ = [x.name for x in ARCHITECTURES if x.name not in LATENT]


@pytest.mark.parametrize("name", READ)
def test_projections_are_what_attention_computes_with(name):
    architecture = BY_NAME[name]
    calls = []

    def seen(module, query, key, value, *args, **kwargs):
        calls.append((query[:, :, 0].detach(), key[:, :, 0].detach(), value[:, :, 0].detach()))
        kwargs.setdefault("scaling", query.shape[-1] ** -0.5)
        module.num_key_value_groups = query.shape[1] // key.shape[1]
        return eager_attention_forward(module, query, key, value, None, kwargs.pop("scaling"))

    AttentionInterface.register("seen", seen)
    model = architecture.build("seen")
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            if parameter_name.endswith("bias"):
                p.zero_()
    read = projections(model)
    ins = []
    for module in model.modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            module.register_forward_pre_hook(lambda _, x: ins.append(x[0]))
    inputs, _ = batch(architecture, "none")
    with torch.no_grad():
        model(**inputs)
    firsts = [x[:, 0] if x.ndim == 3 else x for x in ins]  # at position 0 rotary positions turn nothing
    explained = [{n for n, each in enumerate(read) if _explains(each.weights, firsts, *call)} for call in calls]
    assert calls and all(explained), "a call that no layer explains"
    assert len(set.union(*explained)) >= min(len(read), len(calls)), "a layer that explains no call"


def _explains(weights, firsts, query, key, value):
    if weights.query.shape[::2] != query.shape[1:] or weights.key.shape[::2] != key.shape[1:]:
        return False
    return all(
        any(
            x.shape[-1] == w.shape[1] and len(x) == len(got) and _alike(torch.einsum("bd,hdk->bhk", x.double(), w), got)
            for x in firsts
        )
        for w, got in ((weights.query, query), (weights.key, key), (weights.value, value))
    )


def _alike(want, got):
    """The same directions: QK-norm takes lengths away."""
    return bool((nn.functional.cosine_similarity(want, got.double(), dim=-1) > 1 - 1e-5).all())


@pytest.mark.parametrize("name", LATENT)
def test_latent_keys_are_refused(name):
    with pytest.raises(sl.UnsupportedError, match="shared latent"):
        projections(BY_NAME[name].build())


def test_a_model_without_attention():
    with pytest.raises(sl.UnsupportedError, match="found none in Sequential"):
        projections(nn.Sequential(nn.Linear(3, 3)))


def test_torch_modules():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(12, 3, bias=False, batch_first=True)
    (found,) = projections(model)
    x = torch.randn(2, 1, 12)
    want = model(x, x, x)[0][:, 0]
    got = torch.einsum("bd,hdv,hve->be", x[:, 0].double(), found.weights.value, found.weights.output)
    assert torch.allclose(got.float(), want, atol=1e-6)
    with pytest.raises(sl.SoftlookupError, match="expected key of shape"):
        projections(nn.MultiheadAttention(12, 3, kdim=10))


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "cohere", "glm"])
def test_weights_at_a_distance_are_those_of_the_models_logits(name):
    """In both layouts, and where only a part of a head's columns turns."""
    architecture = BY_NAME.get(name) or causal(name, name.title())
    calls, inputs = [], []

    def seen(module, query, key, value, *args, **kwargs):
        calls.append((query[0].double(), key[0].double()))
        return eager_attention_forward(module, query, key, value, None, query.shape[-1] ** -0.5)

    AttentionInterface.register("seen", seen)
    model = architecture.build("seen")
    for parameter_name, p in model.named_parameters():
        if parameter_name.endswith("bias"):
            p.detach().zero_()
    first, *_ = projections(model)
    for module in model.modules():
        module.num_key_value_groups = getattr(module, "num_key_value_groups", 1)
    first.reader.register_forward_pre_hook(lambda _, x: inputs.append(x[0][0].double()))
    with torch.no_grad():
        model(input_ids=torch.arange(3, 12)[None])
    (query, key), x = calls[0], inputs[0]
    for i, j in ((0, 0), (5, 5), (7, 2), (8, 0)):
        w = first.at_distance(i - j)
        want = torch.einsum("hk,hk->h", x[i] @ w.query, w.of_head(x[j] @ w.key))
        got = (query[:, i] * key[:, j].repeat_interleave(len(query) // len(key), 0)).sum(-1)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert first.rotary is not None and first.rotary.interleaved == (name in ("cohere", "glm"))


def test_without_rotary_positions_distance_changes_nothing():
    (first, *_) = projections(BY_NAME["bert"].build())
    assert first.rotary is None and first.at_distance(9.0) is first.weights
