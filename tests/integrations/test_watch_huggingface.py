"""Watching Hugging Face models: what counts, what is left behind, and who sees what."""

import copy
import threading

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, EncoderDecoderModel, LlamaConfig, LlamaForCausalLM

import softlookup as sl
from softlookup.integrations import huggingface

from .architectures import BY_NAME, LENGTH, SHORT, batch, output

STATS = tuple(name for name in sl.CHEAP if name not in ("argmax",))  # positions shift with padding on the left


@pytest.fixture
def llama():
    return BY_NAME["llama"].build("sdpa")


@pytest.fixture
def ids(rng):
    return torch.randint(3, 96, (2, 6), generator=rng)


def watched(model, *batches, **kwargs):
    with torch.no_grad(), sl.watch(model, **kwargs) as seen:
        for inputs in batches:
            model(**inputs)
    return seen


def assert_same_statistics(a, b, stats=STATS):
    assert a.layers.keys() == b.layers.keys()
    for name, layer in a.layers.items():
        other = b.layers[name]
        assert layer.counts.tolist() == other.counts.tolist(), name
        for stat in layer.stats:
            if stat in stats:
                for summary in ("mean", "std", "min", "max"):
                    got, want = getattr(layer, summary)(stat), getattr(other, summary)(stat)
                    torch.testing.assert_close(
                        got, want, rtol=1e-4, atol=1e-4, msg=f"{name} {summary} {stat}: {got} {want}"
                    )


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert", "t5", "whisper", "vit", "gpt_oss"])
def test_a_watched_model_computes_the_same(name):
    architecture = BY_NAME[name]
    model, (inputs, real) = architecture.build(), batch(architecture, "left")
    with torch.no_grad():
        want = output(model, inputs)
        with sl.watch(model):
            got = output(model, inputs)
    got, want = (x if real is None else x[real] for x in (got, want))
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * float(want.abs().max()))


def test_gradients_flow_while_watching(llama, ids):
    with sl.watch(llama):
        llama(ids).logits.sum().backward()
    assert llama.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_statistics_equal_their_definition(llama, ids):
    eager = copy.deepcopy(llama)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = eager(ids, output_attentions=True).attentions
    seen = watched(llama, {"input_ids": ids})
    assert list(seen.layers) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    for p, layer in zip(attentions, seen.layers.values(), strict=True):
        entropy = -(p * p.clamp(min=1e-30).log()).sum(-1)
        for stat, value in {"entropy": entropy, "max_weight": p.amax(-1), "distance": (p * distance).sum(-1)}.items():
            value = value.transpose(0, 1).flatten(1).double()
            torch.testing.assert_close(layer.mean(stat), value.mean(1), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(layer.max(stat), value.amax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "gemma3", "gpt_oss", "llama4", "bert", "distilbert", "modernbert"]
)
def test_padding_counts_in_nothing(name):
    """The same two texts, padded left, padded right, and each alone: equal statistics, layer by layer."""
    architecture = BY_NAME[name]
    model = architecture.build()
    seen = {}
    texts = batch(architecture, "none")[0]["input_ids"]
    for padding in ("left", "right"):
        inputs, real = batch(architecture, padding)
        inputs["input_ids"][real] = torch.cat([texts[0], texts[1, :SHORT]])
        inputs["position_ids"] = (real.cumsum(1) - 1).clamp(min=0)
        if name in ("distilbert", "modernbert"):  # no absolute positions to shift, or no way to say them
            del inputs["position_ids"]
        seen[padding] = watched(model, inputs)
    seen["alone"] = watched(model, {"input_ids": texts[:1]}, {"input_ids": texts[1:, :SHORT]})
    assert {layer.count for layer in seen["alone"].layers.values()} == {LENGTH + SHORT}
    assert_same_statistics(seen["right"], seen["alone"])
    if name != "distilbert":
        assert_same_statistics(seen["left"], seen["alone"])


@pytest.mark.parametrize("name", ["bart", "t5", "marian"])
def test_cross_attention_counts_real_decoder_tokens_and_sees_real_encoder_tokens(name):
    architecture = BY_NAME[name]
    model = architecture.build("sdpa")
    source, target = batch(architecture, "none")[0]["input_ids"], batch(architecture, "none")[0]["decoder_input_ids"]
    long = {"input_ids": source[:1], "decoder_input_ids": target[:1]}
    short = {"input_ids": source[1:, :SHORT], "decoder_input_ids": target[1:, : SHORT - 2]}
    masks = torch.ones(2, LENGTH, dtype=torch.int64), torch.ones(2, LENGTH, dtype=torch.int64)
    masks[0][1, SHORT:], masks[1][1, SHORT - 2 :] = 0, 0
    together = {
        "input_ids": source,
        "decoder_input_ids": target,
        "attention_mask": masks[0],
        "decoder_attention_mask": masks[1],
    }
    padded, alone = watched(model, together), watched(model, long, short)
    assert_same_statistics(padded, alone)
    cross = [layer for layer in padded.layers.values() if layer.cross]
    assert len(cross) == 2 and all(layer.count == LENGTH + SHORT - 2 for layer in cross)
    assert all(
        int(layer.min("visible").min()) == SHORT and int(layer.max("visible").max()) == LENGTH for layer in cross
    )
    assert all("distance" not in layer.stats for layer in cross)
    assert all("distance" in layer.stats for layer in padded.layers.values() if not layer.cross)


def test_cross_attention_does_not_take_the_encoders_padding_for_its_own():
    inputs, _ = batch(BY_NAME["bart"], "right")
    del inputs["decoder_attention_mask"]  # as long as the encoder's text, and not padded
    seen = watched(BY_NAME["bart"].build(), inputs)
    assert {layer.count for layer in seen.layers.values() if layer.cross} == {2 * LENGTH}


def test_the_layers_of_an_encoder_decoder():
    seen = watched(BY_NAME["whisper"].build(), batch(BY_NAME["whisper"], "none")[0])
    kinds = {name: layer.cross for name, layer in seen.layers.items()}
    assert sum(kinds.values()) == 2 and all("encoder_attn" in name for name, cross in kinds.items() if cross)
    assert len(kinds) == 6


def test_a_decoding_step_counts_its_one_query(llama, ids):
    with torch.no_grad(), sl.watch(llama) as seen:
        llama.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    layer = seen.layers["model.layers.1.self_attn"]
    assert (layer.calls, layer.count) == (4, 2 * (6 + 3))
    assert float(layer.max("visible").max()) == 9


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_decoding_with_a_cache_sees_what_one_pass_sees(name, cache):
    architecture = BY_NAME[name]
    model, (inputs, _) = architecture.build("sdpa"), batch(architecture, "left")
    options = {"cache_implementation": "static"} if cache == "static" else {}
    with torch.no_grad(), sl.watch(model) as step_by_step:
        text = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **options)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 5, dtype=torch.int64)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    at_once = watched(model, {"input_ids": text[:, :-1], "attention_mask": mask, "position_ids": positions})
    # A cache that has dropped the first key cannot say what it got.
    assert_same_statistics(step_by_step, at_once, [s for s in STATS if s != "sink_mass" or name in ("llama", "gpt2")])


def test_a_users_own_4d_mask_tells_its_padding(llama, ids):
    visible = torch.ones(6, 6, dtype=torch.bool).tril()[None, None].repeat(2, 1, 1, 1)
    visible[1, ..., 4:] = False
    seen = watched(llama, {"input_ids": ids, "attention_mask": visible})
    want = watched(llama, {"input_ids": ids, "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])})
    assert_same_statistics(seen, want, [s for s in STATS if s != "sink_mass"])


def test_shared_layers_are_told_apart():
    seen = watched(BY_NAME["albert"].build(), batch(BY_NAME["albert"], "none")[0], batch(BY_NAME["albert"], "none")[0])
    first, second = seen.layers
    assert second == first + "#2" and {layer.calls for layer in seen.layers.values()} == {2}


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_counts_once(llama, ids, reentrant):
    llama.train()
    llama.activation_checkpointing_enable({"use_reentrant": reentrant})
    with sl.watch(llama) as seen:
        llama(ids).logits.sum().backward()
    assert {layer.calls for layer in seen.layers.values()} == {1}


def test_keep_rows(llama, ids):
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    seen = watched(llama, {"input_ids": ids, "attention_mask": mask}, keep="rows", stats=("entropy",))
    rows = seen.layers["model.layers.0.self_attn"].rows("entropy")
    assert rows.shape == (2, 4, 6) and rows[1, :, :2].isnan().all() and rows[0].isfinite().all()


def implementations(model):
    found = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            found[id(config)] = config._attn_implementation
            for key in config.sub_configs:
                found[id(getattr(config, key))] = getattr(config, key)._attn_implementation
    return found


def hooks(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


@pytest.fixture
def composite():
    """An encoder-decoder whose parts use different implementations."""
    small = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    decoder = BertConfig(**small, is_decoder=True, add_cross_attention=True)
    model = EncoderDecoderModel(encoder=BertModel(BertConfig(**small)), decoder=_bert_lm(decoder)).eval()
    model.encoder.set_attn_implementation("eager")
    model.decoder.set_attn_implementation("sdpa")
    return model


def _bert_lm(config):
    from transformers import BertLMHeadModel

    return BertLMHeadModel(config)


def test_every_part_is_switched_and_switched_back(composite):
    before, hooked = implementations(composite), hooks(composite)
    assert {"eager", "sdpa"} <= set(before.values())
    ids = torch.ones(1, 4, dtype=torch.int64)
    with torch.no_grad(), sl.watch(composite) as seen:
        assert set(implementations(composite).values()) == {"softlookup"}
        composite(input_ids=ids, decoder_input_ids=ids)
    assert implementations(composite) == before and hooks(composite) == hooked
    assert [layer.cross for layer in seen.layers.values()] == [False, False, True]


def test_switched_back_after_an_exception(llama, ids):
    before, hooked = implementations(llama), hooks(llama)
    with pytest.raises(ZeroDivisionError), sl.watch(llama):
        llama(ids)
        raise ZeroDivisionError
    assert implementations(llama) == before and hooks(llama) == hooked
    with pytest.raises(ZeroDivisionError), sl.watch(llama):  # also when nothing was seen: the first error is the one
        raise ZeroDivisionError


def test_an_exception_inside_the_model_leaves_the_paths_in_order(llama, ids):
    def fail(*_):
        raise ZeroDivisionError

    with torch.no_grad(), sl.watch(llama) as seen:
        handle = llama.model.layers[1].mlp.register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            llama(ids)
        handle.remove()
        llama(ids)
    assert list(seen.layers) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert [layer.calls for layer in seen.layers.values()] == [2, 2]


def test_nothing_seen_is_an_error(llama):
    with (
        pytest.raises(sl.SoftlookupError, match="expected LlamaForCausalLM to be called inside the with block"),
        sl.watch(llama),
    ):
        pass


def test_a_wrapper_of_hugging_face_models_is_watched(llama, ids):
    class Embedder(nn.Module):
        def __init__(self):
            super().__init__()
            self.auto_model = llama.model

        def forward(self, ids):
            return self.auto_model(ids).last_hidden_state.mean(1)

    seen = watched(nn.Sequential(Embedder()), {"input": ids})
    assert list(seen.layers) == ["0.auto_model.layers.0.self_attn", "0.auto_model.layers.1.self_attn"]


def test_a_layer_alone_is_watched(ids):
    model = BY_NAME["llama"].build("eager")
    with torch.no_grad(), sl.watch(model.model.layers[1]) as seen:
        model(ids)
    assert list(seen.layers) == ["self_attn"] and model.config._attn_implementation == "eager"


def test_nested_watches_see_the_same(llama, ids):
    with torch.no_grad(), sl.watch(llama, stats=("entropy",)) as outer:
        llama(ids)
        with sl.watch(llama.model, stats=("max_logit", "entropy")) as inner:
            llama(ids)
        assert llama.config._attn_implementation == "softlookup"
        llama(ids)
    assert llama.config._attn_implementation == "sdpa"
    assert outer.layers["model.layers.0.self_attn"].calls == 3 and inner.layers["layers.0.self_attn"].calls == 1
    torch.testing.assert_close(
        outer.layers["model.layers.0.self_attn"].mean("entropy"), inner.layers["layers.0.self_attn"].mean("entropy")
    )


def test_a_watch_sees_its_own_model_only(llama, ids):
    other = copy.deepcopy(llama)
    with torch.no_grad(), sl.watch(llama) as seen, sl.watch(other) as seen_other:
        llama(ids)
        other(ids[:, :3])
    assert seen.layers["model.layers.0.self_attn"].count == 12
    assert seen_other.layers["model.layers.0.self_attn"].count == 6


def test_threads_see_their_own_calls(llama, ids):
    """Two watches of one model in two threads, overlapping: each counts its own, the last to leave switches back."""
    both_in, first_out = threading.Barrier(2, timeout=20), threading.Event()
    seen = {}

    def work(name, calls):
        with torch.no_grad(), sl.watch(llama) as mine:
            both_in.wait()
            for _ in range(calls):
                llama(ids)
            if name == "second":
                first_out.wait(20)
                llama(ids)
        seen[name] = mine
        if name == "first":
            first_out.set()

    threads = [threading.Thread(target=work, args=a) for a in (("first", 2), ("second", 3))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert {name: s.layers["model.layers.0.self_attn"].calls for name, s in seen.items()} == {"first": 2, "second": 4}
    assert llama.config._attn_implementation == "sdpa" and not any(hooks(llama))


def test_other_threads_are_not_recorded(llama, ids):
    with torch.no_grad(), sl.watch(llama) as seen:
        llama(ids)
        thread = threading.Thread(target=lambda: llama(ids))
        thread.start()
        thread.join()
    assert seen.layers["model.layers.0.self_attn"].calls == 1


def test_probes_see_every_call_without_gradients(llama, ids):
    calls = []
    with sl.watch(llama, probes=[lambda call: calls.append((call, torch.is_grad_enabled()))]):
        llama(ids).logits.sum().backward()
    assert [call.layer for call, _ in calls] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert not any(grad or call.query.requires_grad for call, grad in calls)
    assert calls[0][0].query.shape == (2, 4, 6, 8) and calls[0][0].key.shape == (2, 2, 6, 8)


def test_bad_arguments(llama):
    for arguments, message in (
        ({"stats": ("entropi",)}, "got 'entropi'"),
        ({"stats": ("received",)}, "per key"),
        ({"stats": ()}, "at least one"),
        ({"keep": "all"}, '"heads", "rows" or "graph"'),
    ):
        with pytest.raises(sl.SoftlookupError, match=message), sl.watch(llama, **arguments):
            raise AssertionError("must not get here")
    with pytest.raises(sl.SoftlookupError, match=r"expected a torch\.nn\.Module, got str"), sl.watch("llama"):
        pass
    assert llama.config._attn_implementation == "sdpa"


def test_a_model_that_attends_by_itself_says_so(ids):
    from transformers import BloomConfig, BloomModel

    model = BloomModel(BloomConfig(vocab_size=96, hidden_size=16, n_layer=1, n_head=2)).eval()
    with pytest.raises(sl.SoftlookupError, match="got none in BloomModel"), sl.watch(model):
        model(ids)


def test_switched_alone(llama, ids):
    huggingface.register()
    with torch.no_grad(), huggingface.switched(llama) as count:
        assert count == 1 and llama.config._attn_implementation == "softlookup"
        llama(ids)
    assert llama.config._attn_implementation == "sdpa"


def test_inference_mode(llama, ids):
    with torch.no_grad():
        want = llama(ids).logits
    with torch.inference_mode(), sl.watch(llama) as seen:
        got = llama(ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert len(seen.layers) == 2


@pytest.mark.parametrize("padded", [False, True])
def test_a_compiled_model_computes_the_same_and_is_watched(ids, padded):
    model = BY_NAME["llama"].build("softlookup")
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]) if padded else torch.ones(2, 6, dtype=torch.int64)
    with torch.no_grad():
        want = model(ids, attention_mask=mask).logits[mask.bool()]
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(ids, attention_mask=mask).logits[mask.bool()], want, rtol=1e-4, atol=1e-5)
        with sl.watch(compiled) as seen:
            torch.testing.assert_close(
                compiled(ids, attention_mask=mask).logits[mask.bool()], want, rtol=1e-4, atol=1e-5
            )
    assert list(seen.layers) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, ids):
    model = LlamaForCausalLM(LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=1))
    model = model.to(dtype).eval()
    seen = watched(model, {"input_ids": ids})
    assert next(iter(seen.layers.values())).mean("entropy").isfinite().all()
