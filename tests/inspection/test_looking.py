"""look: what it shows equals what was computed, and the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    T5Config,
    T5Model,
)

import softlookup as sl
from softlookup.errors import SoftlookupError
from softlookup.inspection.token_view import KEYS


def llama(**more: int) -> LlamaModel:
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4)
    return LlamaModel(LlamaConfig(**(sizes | {"num_key_value_heads": 2} | more)))


def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    return BertModel(config)


def mistral() -> MistralModel:
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    return MistralModel(MistralConfig(**sizes, num_key_value_heads=2, sliding_window=20))


def ids(length: int = 70, batch: int = 1) -> torch.Tensor:
    return torch.randint(2, 50, (batch, length), generator=torch.Generator().manual_seed(1))


def eager_weights(model: nn.Module, **inputs: torch.Tensor) -> list[torch.Tensor]:
    """(B, H, L, S) per layer, from transformers' own materialized attention."""
    model.eval()
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation(before)
    return list(weights)


@pytest.mark.parametrize("make", [llama, bert, mistral])
def test_statistics_and_token_views_equal_the_materialized_weights(make: Callable[[], nn.Module]) -> None:
    model, inputs = make(), {"input_ids": ids()}
    found = sl.look(model, inputs, heads=[(0, 1), (1, 3)])
    weights = eager_weights(model, **inputs)
    for layer, p in zip(found.layers, weights, strict=True):
        entropy = torch.special.entr(p[0]).sum(-1)
        torch.testing.assert_close(layer.means["entropy"], entropy.mean(-1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.means["sink_mass"], p[0, :, :, 0].mean(-1), rtol=1e-4, atol=1e-5)
    for view in found.views:
        p = weights[view.layer][0, view.head]
        top = p.topk(KEYS, -1)
        torch.testing.assert_close(view.weights, top.values, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(view.covered, top.values.sum(-1), rtol=1e-4, atol=1e-6)
        picked = p.gather(-1, view.keys.clamp_min(0)) * (view.keys >= 0)
        torch.testing.assert_close(picked, view.weights, rtol=1e-4, atol=1e-6)
    assert all(len(found.histograms[layer.index].keys) == layer.heads for layer in found.layers)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_in_nothing(side: str) -> None:
    model, alone = llama(), ids(40)
    room = torch.zeros(1, 24, dtype=torch.long)
    order = (room, alone) if side == "left" else (alone, room)
    mask = torch.cat([torch.full_like(part, part is alone) for part in order], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    padded = {"input_ids": torch.cat(order, 1), "attention_mask": mask, "position_ids": positions}
    whole, with_padding = sl.look(model, {"input_ids": alone}), sl.look(model, padded, heads=[(0, 0)])
    for a, b in zip(whole.layers, with_padding.layers, strict=True):
        for stat in ("entropy", "max_logit", "distance"):
            torch.testing.assert_close(a.means[stat], b.means[stat], rtol=1e-4, atol=1e-4)
    hidden = ~mask[0].bool()
    (view,) = with_padding.views
    assert bool((view.keys[hidden] == -1).all()) and bool((view.weights[hidden] == 0).all())
    assert not bool(torch.isin(view.keys[~hidden], torch.nonzero(hidden).flatten()).any())


def test_the_model_is_left_as_it_was() -> None:
    model = llama()
    model.train()
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    implementation = model.config._attn_implementation
    parameters = {name: value.clone() for name, value in model.state_dict().items()}
    sl.look(model, {"input_ids": ids()})
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == implementation
    assert all(torch.equal(value, parameters[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled() and all(parameter.grad is None for parameter in model.parameters())


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model = llama().train()
    with pytest.raises(SoftlookupError, match=r"expected a layer from 0 to 2, got 9 in 9\.1"):
        sl.look(model, {"input_ids": ids()}, heads=[(9, 1)])
    with pytest.raises(SoftlookupError, match=r"expected a head from 0 to 3 in layer 1, got 4 in 1\.4"):
        sl.look(model, {"input_ids": ids()}, heads=[(1, 4)])
    assert model.training and model.config._attn_implementation == "sdpa"


def test_looking_twice_gives_the_same() -> None:
    model = llama()
    first, second = (sl.look(model, {"input_ids": ids()}).as_dict() for _ in range(2))
    for record in (first, second):
        del record["cost"]
    assert first == second


def test_inputs_as_a_tensor_and_as_a_tuple() -> None:
    model, batch = llama(), ids()
    expected = sl.look(model, {"input_ids": batch}).layers[0].means["entropy"]
    for inputs in (batch, (batch,), [batch, torch.ones_like(batch)]):
        torch.testing.assert_close(sl.look(model, inputs).layers[0].means["entropy"], expected)


@pytest.mark.parametrize("inputs", ["text", (), None, 3])
def test_inputs_that_no_model_takes(inputs: object) -> None:
    with pytest.raises(SoftlookupError, match="expected inputs as a mapping, a tensor or a non-empty tuple, got"):
        sl.look(llama(), inputs)


def test_what_is_no_model_and_too_many_heads() -> None:
    with pytest.raises(SoftlookupError, match=r"expected a torch\.nn\.Module, got str"):
        sl.look("smollm2", {})  # type: ignore[arg-type]
    with pytest.raises(SoftlookupError, match="at most 16 heads"):
        sl.look(llama(), ids(), heads=[(0, 0)] * 17)


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3))])
def test_a_model_without_attention(model: nn.Module) -> None:
    with pytest.raises(SoftlookupError, match=f"^look: .*{type(model).__name__} that made no attention call") as caught:
        sl.look(model, torch.zeros(1, 3))
    assert "with block" not in str(caught.value)


def test_a_batch_as_keywords() -> None:
    model, batch = llama(), {"input_ids": ids(), "attention_mask": torch.ones(1, 70, dtype=torch.long)}
    expected = sl.look(model, batch, heads=[(0, 0)])
    found = sl.look(model, **batch, heads=[(0, 0)], name="by keywords")
    torch.testing.assert_close(found.layers[0].means["entropy"], expected.layers[0].means["entropy"])
    assert found.model == "by keywords" and [(view.layer, view.head) for view in found.views] == [(0, 0)]
    with pytest.raises(SoftlookupError, match=r"^look: expected inputs or keywords for the model, got both \(head\)$"):
        sl.look(model, batch, head=[(0, 0)])


def test_it_tells_whether_attention_was_causal() -> None:
    inputs = {"input_ids": ids(), "attention_mask": (torch.arange(70) < 60).long()[None]}
    assert [sl.look(make(), inputs).causal for make in (llama, mistral, bert)] == [True, True, False]
    sizes = dict(vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    both = sl.look(T5Model(T5Config(**sizes)), {"input_ids": ids(60), "decoder_input_ids": ids(30)})
    assert both.causal is None and [layer.causal for layer in both.layers] == [False, True, False]


def test_it_tells_what_computed_it() -> None:
    found = sl.look(llama().to(torch.bfloat16), ids()).provenance
    assert (found.dtype, found.device) == ("bfloat16", "cpu")
    assert (found.softlookup, found.torch) == (sl.__version__, torch.__version__)


def test_cross_attention_is_a_layer_of_its_own() -> None:
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    inputs = {"input_ids": ids(60), "decoder_input_ids": ids(30)}
    found = sl.look(T5Model(T5Config(**sizes)), inputs, heads=[(3, 0), (0, 0)])
    cross = [layer for layer in found.layers if layer.cross]
    assert len(found.layers) == 6 and len(cross) == 2
    assert all("distance" not in layer.means and "EncDec" in layer.path for layer in cross)
    view = found.views[0]
    assert view.layer == cross[0].index and len(view.keys) == 30 and view.total == 60
    assert found.queries == 60 and found.to_html() and found.to_json()


def test_a_module_that_attends_in_every_layer_is_several_layers() -> None:
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, embedding_size=16, hidden_size=32, intermediate_size=32, num_attention_heads=4)
    found = sl.look(AlbertModel(AlbertConfig(**sizes, num_hidden_layers=3)), {"input_ids": ids()}, heads=[(2, 1)])
    assert [layer.index for layer in found.layers] == [0, 1, 2] and len({layer.path for layer in found.layers}) == 3
    assert not torch.equal(found.layers[0].means["entropy"], found.layers[2].means["entropy"])


def test_a_plain_torch_model() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(16, 48)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    torch.manual_seed(0)
    found = sl.look(nn.Sequential(Block(), Block()), torch.randn(1, 64, 16), heads=[(1, 0)])
    assert [(layer.path, layer.heads) for layer in found.layers] == [("0", 2), ("1", 2)]
    assert bool((found.views[0].keys <= torch.arange(64)[:, None]).all()) and found.model == "Sequential"


@pytest.mark.parametrize("boolean", [True, False])
def test_a_dense_mask_of_the_user(boolean: bool) -> None:
    """A 4-D mask has a row per query: samples and token views must pick the right rows of it."""
    model, batch = llama(), ids(50)
    mask = (torch.ones(50, 50).tril().bool() & (torch.arange(50)[:, None] - torch.arange(50) < 7))[None, None]
    added = torch.zeros(1, 1, 50, 50).masked_fill(
        ~mask, torch.finfo(torch.float32).min
    )  # eager adds, whatever the dtype
    found = sl.look(model, {"input_ids": batch, "attention_mask": mask if boolean else added}, heads=[(1, 1)])
    p = eager_weights(model, input_ids=batch, attention_mask=added)[1][0, 1]
    torch.testing.assert_close(found.views[0].weights[:, :7], p.topk(7, -1).values, rtol=1e-4, atol=1e-5)


def test_plain_and_watched_forward_compute_the_same_little() -> None:
    """No cache, and logits of the last position only: what inference does not need would be charged to nobody."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=128))
    shapes = []
    model.register_forward_hook(
        lambda module, args, output: shapes.append((output.logits.shape[1], output.past_key_values))
    )
    sl.look(model, {"input_ids": ids()})
    assert shapes == [(1, None)] * 4
    shapes.clear()
    sl.look(model, {"input_ids": ids(), "labels": ids(), "use_cache": True})
    assert all(length == 70 and cache is not None for length, cache in shapes)


def test_words_from_a_list_a_tokenizer_or_nothing(tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    inputs = tokenizer("the assert statement of a , b and c", return_tensors="pt")
    model = llama()
    assert sl.look(model, dict(inputs)).tokens is None
    assert sl.look(model, inputs, tokenizer).tokens == "the assert statement of a , b and c".split()
    assert sl.look(model, inputs, list("123456789")).tokens == list("123456789")


def test_progress_is_told() -> None:
    told: list[tuple[str, float | None]] = []
    sl.look(llama(), {"input_ids": ids()}, progress=lambda stage, share: told.append((stage, share)))
    assert {"plain forward", "looking at every head", "following single heads"} <= {stage for stage, _ in told}
    assert all(share is None or 0 <= share <= 1 for _, share in told)


def test_the_cost_is_of_the_same_run() -> None:
    cost = sl.look(llama(), {"input_ids": ids()}).cost
    assert cost.plain.seconds > 0 and cost.ratio == cost.looked.seconds / cost.plain.seconds
    assert "plain forward" in str(cost)


def test_a_short_text_says_why_it_is_not_judged() -> None:
    found = sl.look(llama(), {"input_ids": ids(9)})
    assert found.findings == [] and "16 or more keys" in found.notes[0]


def test_memory_does_not_grow_with_n_squared() -> None:
    """One head's n×n weights at 4,096 would be 67 MB; a layer's four heads 268 MB."""
    model = llama(num_hidden_layers=1, max_position_embeddings=4096)
    found = sl.look(model, {"input_ids": ids(4096)}, heads=[(0, 0)])
    if found.cost.extra_mb is not None:
        assert found.cost.extra_mb < 150
