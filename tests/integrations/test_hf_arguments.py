"""What a model may ask of its attention: computed, harmless, or an error that says so."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

import softlookup as sl
from softlookup.integrations import huggingface
from softlookup.integrations.hf_arguments import HARMLESS
from softlookup.operator import weights_of


@pytest.fixture
def qkv(rng):
    return tuple(torch.randn(2, 4, 6, 8, generator=rng) for _ in range(3))


def attention(module, q, k, v, mask=None, **kwargs):
    return huggingface.attention(module, q, k, v, mask, **kwargs)[0].transpose(1, 2)


@pytest.fixture
def module():
    return nn.Module().eval()


def eager(q, k, v, bias=0.0, scaling=None, softcap=None):
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    s = s if softcap is None else softcap * torch.tanh(s / softcap)
    return (s + bias).softmax(-1) @ v


def test_scaling_softcap_and_bias_in_eagers_order(module, qkv, rng):
    bias = torch.randn(1, 4, 6, 6, generator=rng)
    got = attention(module, *qkv, scaling=0.7, softcap=0.5, position_bias=bias)
    torch.testing.assert_close(got, eager(*qkv, bias, 0.7, 0.5))


def test_output_is_contiguous_with_heads_last_and_no_weights(module, qkv):
    out, none = huggingface.attention(module, *qkv, None)
    assert out.shape == (2, 6, 4, 8) and out.is_contiguous() and none is None


def test_sinks_are_an_extra_option(module, qkv, rng):
    sinks = torch.randn(4, generator=rng)
    q, k, v = qkv
    logits = torch.cat([q @ k.mT * 8**-0.5, sinks.view(1, 4, 1, 1).expand(2, 4, 6, 1)], -1)
    torch.testing.assert_close(attention(module, q, k, v, s_aux=sinks), logits.softmax(-1)[..., :-1] @ v)


def test_dropout_acts_in_training_only(module, qkv):
    torch.testing.assert_close(attention(module, *qkv, dropout=0.9), eager(*qkv))
    module.train()
    assert not torch.allclose(attention(module, *qkv, dropout=0.9), eager(*qkv))


def test_a_float_mask_gets_a_gradient_and_a_boolean_one_hides(module, qkv, rng):
    bias = torch.randn(2, 1, 6, 6, generator=rng, requires_grad=True)
    attention(module, *qkv, bias).square().sum().backward()
    mine, bias.grad = bias.grad, None
    eager(*qkv, bias).square().sum().backward()
    torch.testing.assert_close(mine, bias.grad)
    seen = torch.rand(2, 1, 6, 6, generator=rng) > 0.4
    seen[..., 0] = True
    torch.testing.assert_close(attention(module, *qkv, seen), eager(*qkv, torch.where(seen, 0.0, -torch.inf)))


def test_without_a_mask_the_models_word_on_causality_counts(module, qkv):
    causal = torch.ones(6, 6).tril().log()
    torch.testing.assert_close(attention(module, *qkv), eager(*qkv))
    torch.testing.assert_close(attention(module, *qkv, is_causal=True), eager(*qkv, causal))
    module.is_causal = True
    torch.testing.assert_close(attention(module, *qkv), eager(*qkv, causal))
    torch.testing.assert_close(attention(module, *qkv, is_causal=False), eager(*qkv))
    q, k, v = qkv
    torch.testing.assert_close(attention(module, q[:, :, :1], k, v), eager(q[:, :, :1], k, v))
    with pytest.raises(sl.UnsupportedError, match="which is earlier"):
        attention(module, q[:, :, :3], k, v)


def test_a_given_mask_overrules_causality(module, qkv):
    module.is_causal = True
    everything = torch.zeros(2, 1, 6, 6)
    torch.testing.assert_close(attention(module, *qkv, everything, sliding_window=2), eager(*qkv))


def test_chosen_keys(module, qkv):
    indices = torch.tensor([[[0, 3, 5]] * 6, [[1, 2, -1]] * 6])
    visible = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    visible[0, ..., [0, 3, 5]] = True
    visible[1, ..., [1, 2]] = True
    torch.testing.assert_close(
        attention(module, *qkv, indices=indices), eager(*qkv, torch.where(visible, 0.0, -torch.inf))
    )


def test_packed_sequences_by_their_bounds(module, qkv):
    q, k, v = (x[:1] for x in qkv)
    bounds = torch.tensor([0, 2, 6], dtype=torch.int32)
    got = attention(module, q, k, v, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=4, max_length_k=4)
    parts = [eager(*(x[:, :, i:j] for x in (q, k, v))) for i, j in ((0, 2), (2, 6))]
    torch.testing.assert_close(got, torch.cat(parts, 2))
    with pytest.raises(sl.UnsupportedError, match="one batch entry"):
        attention(module, *qkv, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds)


def test_one_set_of_learned_queries_serves_the_batch(module, qkv):
    q, k, v = qkv
    torch.testing.assert_close(attention(module, q[:1], k, v), eager(q[:1], k, v))


def test_grouped_heads_and_other_value_sizes(module, qkv, rng):
    q, k, _ = qkv
    k, v = k[:, :2], torch.randn(2, 2, 6, 5, generator=rng)
    want = eager(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
    torch.testing.assert_close(attention(module, q, k, v), want)


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_harmless_arguments_change_nothing(module, qkv, name):
    torch.testing.assert_close(attention(module, *qkv, **{name: torch.ones(2, 6)}), eager(*qkv))


@pytest.mark.parametrize("name", ["cache", "head_mask", "sinks", "block_indices", "something_new"])
def test_what_may_change_the_result_is_refused(module, qkv, name):
    with pytest.raises(sl.UnsupportedError, match=f"attention argument '{name}': expected None, got a tensor of shape"):
        attention(module, *qkv, **{name: torch.ones(4)})
    torch.testing.assert_close(attention(module, *qkv, **{name: None}), eager(*qkv))


def test_foreign_mask_types_are_refused(module, qkv):
    with pytest.raises(sl.UnsupportedError, match="got a object, another implementation's own"):
        attention(module, *qkv, object())


def test_a_mask_for_other_lengths_is_refused(module, qkv):
    with pytest.raises(sl.UnsupportedError, match="expected 6 queries and 6 keys, got 6 and 5"):
        attention(module, *qkv, huggingface.mask(2, 6, 5))


LLAMA = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
T5 = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)


@pytest.mark.parametrize(("cls", "config"), [(LlamaForCausalLM, LLAMA), (T5ForConditionalGeneration, T5)])
def test_output_attentions_names_watch(cls, config):
    huggingface.register()
    model = cls._from_config(config, attn_implementation="softlookup").eval()
    inputs = {"input_ids": torch.ones(1, 4, dtype=torch.int64)}
    inputs |= {"decoder_input_ids": inputs["input_ids"]} if cls is T5ForConditionalGeneration else {}
    with pytest.raises(sl.UnsupportedError, match=r"output_attentions: expected False.*sl\.watch"):
        model(**inputs, output_attentions=True)
    with pytest.raises(sl.UnsupportedError, match=r"sl\.watch"), sl.watch(model):
        model(**inputs, output_attentions=True)
    model(**inputs, output_attentions=False, output_hidden_states=True)
    with pytest.raises(sl.UnsupportedError, match=r"sl\.watch"):
        model.generate(inputs["input_ids"], max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)


def test_registering_twice_is_safe_and_from_config_takes_the_name():
    huggingface.register()
    huggingface.register()
    model = LlamaForCausalLM._from_config(LLAMA, attn_implementation="softlookup")
    assert model.config._attn_implementation == "softlookup"


def test_no_causal_leak(rng):
    """The last token's change reaches no earlier output: what an unregistered mask key would break."""
    huggingface.register()
    model = LlamaForCausalLM._from_config(LLAMA, attn_implementation="softlookup").eval()
    ids = torch.randint(0, 32, (1, 9), generator=rng)
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % 32
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[:, :-1], model(other).logits[:, :-1], rtol=0, atol=1e-6)


def test_call_arguments_reproduce_the_weights(rng):
    """A probe gets what it needs to look closer: the reference weights of the call explain its output."""
    model = LlamaForCausalLM._from_config(LLAMA, attn_implementation="eager").eval()
    calls = []
    with torch.no_grad(), sl.watch(model, probes=[calls.append]):
        model(torch.randint(0, 32, (2, 5), generator=rng))
    call = calls[0]
    p = weights_of(call.query, call.key, call.value, **{k: x for k, x in call.arguments.items() if k != "dropout_p"})
    torch.testing.assert_close(p @ call.value, sl.attend(call.query, call.key, call.value, **call.arguments))
