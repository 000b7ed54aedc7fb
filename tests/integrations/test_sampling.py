"""Watching a sample of query rows: the model's own kernel computes, and what is seen of it is unbiased."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import softlookup as sl
from softlookup.engines import native
from softlookup.running import follower
from softlookup.watching import Call
from softlookup.watching.sampling import Sampler, spread_of_sum

from .architectures import BY_NAME, batch, output
from .test_watch_huggingface import assert_same_statistics
from .test_watch_torch import Model

ALL_ROWS = 10**6


def seen_of(model, run, **arguments):
    with torch.no_grad(), sl.watch(model, **arguments) as seen:
        result = run()
    return seen, result


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["left", "right", "none"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "bert", "t5", "bart", "vit", "mistral", "gpt_neox"])
def test_enough_rows_are_all_rows_and_the_output_is_the_models_own(name, padding, implementation):
    architecture = BY_NAME[name]
    model, (inputs, _) = architecture.build(implementation), batch(architecture, padding)
    with torch.no_grad():
        want = output(model, inputs)
    whole, _ = seen_of(model, lambda: output(model, inputs))
    some, got = seen_of(model, lambda: output(model, inputs), rows=ALL_ROWS)
    assert torch.equal(got, want), "the output is not the model's own"
    assert_same_statistics(some, whole)
    assert all(not layer.stderr("entropy").any() for layer in some.layers.values())


def test_another_registered_implementation_computes_the_output():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    calls = []

    def own(module, query, key, value, mask, **arguments):
        calls.append(mask)
        return torch.zeros_like(query.transpose(1, 2)), None

    AttentionInterface.register("own", own)
    AttentionMaskInterface.register("own", sdpa_mask)
    architecture = BY_NAME["llama"]
    model, (inputs, _) = architecture.build("own"), batch(architecture, "left")
    with torch.no_grad(), sl.watch(model, rows=4) as seen:
        model(**inputs)
    layers = model.config.num_hidden_layers
    assert len(calls) == layers and len(seen.layers) == layers
    assert all(mask.dtype == torch.bool for mask in calls)
    assert all(mask is calls[0] for mask in calls), "a mask for each layer"


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"kv_heads": 2, "enable_gqa": True}, {"scale": 0.3}])
def test_other_models_too(options, rng):
    model, x = Model(**options), torch.randn(2, 7, 16, generator=rng)
    with torch.no_grad():
        want = model(x)
    whole, _ = seen_of(model, lambda: model(x))
    some, got = seen_of(model, lambda: model(x), rows=7)
    assert torch.equal(got, want)
    assert_same_statistics(some, whole)


def test_means_are_unbiased_and_their_errors_as_large_as_told(rng):
    torch.manual_seed(0)
    model, x = Model(is_causal=True), torch.randn(3, 64, 16, generator=rng) * 2
    whole, _ = seen_of(model, lambda: model(x))
    draws = 200
    for stat in ("entropy", "max_weight", "distance"):
        truth = whole.layers["blocks.1"].mean(stat)
        means, errors = [], []
        for seed in range(draws):
            layer = seen_of(model, lambda: model(x), rows=16, seed=seed, stats=(stat,))[0].layers["blocks.1"]
            means.append(layer.mean(stat))
            errors.append(layer.stderr(stat))
        means, errors = torch.stack(means), torch.stack(errors)
        off = (means.mean(0) - truth) / (means.std(0) / math.sqrt(draws))
        assert float(off.abs().max()) < 4, f"{stat}: biased by {off} standard errors"
        ratio = errors.square().mean(0) / means.var(0)
        assert bool((ratio > 0.7).all()), f"{stat}: told variance over true {ratio}"
        within = ((means - truth).abs() < 3 * errors).double().mean()
        assert float(within) > 0.97


def test_errors_are_exact_where_positions_do_not_differ_along_the_text(rng):
    values = torch.randn(1, 3, 2, 4096, dtype=torch.float64, generator=rng)
    counted = torch.rand(3, 2, 4096, generator=rng) > 0.2
    truth = (values * counted)[..., 8:].sum((1, 3)) / counted[..., 8:].sum((0, 2))
    means, told = [], []
    for seed in range(300):
        at = _drawn(4096, 64, seed)[8:]
        part, some = values[..., at], counted[..., at]
        means.append((part * some).sum((1, 3)) / some.sum((0, 2)))
        told.append(spread_of_sum(part, some, 4088) / some.sum((0, 2)) ** 2)
    ratio = torch.stack(told).mean(0) / (torch.stack(means) - truth).square().mean(0)
    assert bool(((ratio > 0.75) & (ratio < 1.3)).all()), ratio


def _drawn(length, rows, seed):
    x = torch.zeros(1, 1, length, 1)
    part, sample = Sampler(rows, seed).sample(Call("x", x, x, x))
    assert (sample.first, sample.among) == (rows // 8, length - rows // 8)
    return part.arguments["query_offset"]


def test_the_first_positions_are_looked_at_and_every_other_is_drawn_as_often():
    counts = torch.zeros(50)
    for seed in range(4000):
        drawn = _drawn(50, 16, seed)
        assert bool((drawn.diff() >= 0).all()) and len(drawn) == 16
        counts += torch.bincount(drawn, minlength=50)
    want = 4000 * 14 / 48
    assert counts[:2].tolist() == [4000, 4000]
    assert float((counts[2:] - want).abs().max()) < 5 * want**0.5


def test_calls_of_different_lengths_weigh_what_they_stand_for(rng):
    torch.manual_seed(0)
    model = Model(is_causal=True)
    short, long = torch.randn(1, 4, 16, generator=rng), torch.randn(1, 64, 16, generator=rng)

    def run():
        model(short), model(long)

    truth = seen_of(model, run)[0].layers["blocks.0"].mean("visible")
    means = [seen_of(model, run, rows=8, seed=seed)[0].layers["blocks.0"].mean("visible") for seed in range(100)]
    means = torch.stack(means)
    assert float(((means.mean(0) - truth) / means.std(0)).abs().max()) < 0.5
    medians = seen_of(model, run, rows=8)[0].layers["blocks.0"].quantile("visible", 0.5)
    assert bool((medians > 16).all())  # 4 + 8 rows, of which those of 64 stand for more


def test_the_same_seed_draws_the_same_rows(rng):
    model, x = Model(), torch.randn(1, 40, 16, generator=rng)
    a, b, c = (seen_of(model, lambda: model(x), rows=8, seed=s)[0].layers["blocks.0"].mean("entropy") for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_table_tells_the_error(rng):
    model, x = Model(), torch.randn(1, 40, 16, generator=rng)
    text = str(seen_of(model, lambda: model(x), rows=8)[0].table())
    assert "sampled queries: ±" in text and max(map(len, text.splitlines())) <= 80
    assert "sampled" not in str(seen_of(model, lambda: model(x))[0].table())


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Model(is_causal=True)

    def forward(self, x):
        for block in self.inner.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return x


@pytest.mark.parametrize("rows", [None, 4])
def test_every_third_pass_with_checkpointing(rng, rows):
    model, x = Checkpointed(), torch.randn(2, 12, 16, generator=rng)
    plain = copy.deepcopy(model)
    with sl.watch(model, every=3, rows=rows) as seen:
        for number in range(7):
            model.zero_grad()
            model(x).square().sum().backward()
            assert {layer.calls for layer in seen.layers.values()} == {number // 3 + 1}
    plain(x).square().sum().backward()
    for got, want in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-4)
    assert list(seen.layers) == ["inner.blocks.0", "inner.blocks.1"]


def test_every_second_pass_of_a_hugging_face_model():
    architecture = BY_NAME["llama"]
    model, (inputs, _) = architecture.build("sdpa"), batch(architecture, "none")
    with torch.no_grad(), sl.watch(model, every=2) as seen:
        for _ in range(4):
            model(**inputs)
    assert {layer.calls for layer in seen.layers.values()} == {2}


def test_dropout_is_the_models_and_no_part_of_the_statistics(rng):
    model, x = Model(dropout_p=0.5), torch.randn(1, 8, 16, generator=rng)
    torch.manual_seed(3)
    want = model(x)
    torch.manual_seed(3)
    with sl.watch(model, rows=8) as seen:
        got = model(x)
    assert torch.equal(got, want)
    first = seen.layers["blocks.0"]
    model.blocks[0].options, model.blocks[1].options = {}, {}
    whole, _ = seen_of(model, lambda: model(x))
    torch.testing.assert_close(first.mean("entropy"), whole.layers["blocks.0"].mean("entropy"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stats", [None, True, ("entropy", "max_logit"), ()])
def test_a_model_that_calls_attend_itself(rng, stats):
    class Own(nn.Module):
        def forward(self, x):
            found = sl.attend(x, x, x, mask=sl.Causal(), stats=stats)
            self.kept = None if stats is None else found[1]
            return found if stats is None else found[0]

    x = torch.randn(2, 3, 9, 8, generator=rng)
    own, model = Own(), nn.Sequential(Own())
    want = own(x)
    for rows in (None, 5):
        with sl.watch(model, rows=rows) as seen:
            got = model(x)
        torch.testing.assert_close(got, want)
        assert seen.layers["0"].heads == 3 and seen.layers["0"].count == 2 * (9 if rows is None else 5)
        if stats is not None:
            assert model[0].kept.names == own.kept.names
            for name in own.kept.names:
                torch.testing.assert_close(model[0].kept[name], own.kept[name])
    with sl.watch(model) as seen:
        model(x[0, 0])
    assert seen.layers["0"].heads == 1


@pytest.mark.parametrize(
    "mask",
    [sl.Padding(torch.arange(9)[None] < 6), sl.Lengths(torch.tensor([6, 6])), sl.Causal() & sl.Lengths(torch.tensor([6, 6]))],
)
def test_padding_in_masks_of_ours_counts_in_nothing(rng, mask):
    class Own(nn.Module):
        def forward(self, x):
            return sl.attend(x, x, x, mask=mask)

    with sl.watch(model := Own()) as seen:
        model(torch.randn(2, 3, 9, 8, generator=rng))
    assert seen.layers["Own"].count == 2 * 6


def test_modules_of_ours_are_watched_cross_attention_too(rng):
    block = sl.nn.MultiHeadAttention(16, 4)
    x, context = torch.randn(2, 5, 16, generator=rng), torch.randn(2, 9, 16, generator=rng)
    with sl.watch(block) as seen:
        block(x, mask=sl.Causal())
        block(x, context)
    own, other = seen.layers.values()
    assert (own.cross, other.cross) == (False, True)


def test_statistics_in_the_loss(rng):
    model, x = Model(is_causal=True), torch.randn(2, 7, 16, generator=rng)
    with sl.watch(model, keep="graph") as seen:
        model(x)
        seen.layers["blocks.1"].graph("entropy").mean().backward()
    assert bool(model.blocks[1].q.weight.grad.any()) and bool(model.blocks[0].q.weight.grad.any())
    seen.clear()
    with pytest.raises(sl.SoftlookupError, match='keep="graph"'):
        seen.layers["blocks.1"].graph("entropy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "rows to be a number of at least 1, got 0"),
        ({"rows": "some"}, "rows to be a number of at least 1, got 'some'"),
        ({"every": 0}, "every to be a number of at least 1, got 0"),
        ({"rows": 4, "keep": "rows"}, 'rows="all" with keep="rows"'),
    ],
)
def test_bad_arguments(arguments, message):
    model = Model()
    with pytest.raises(sl.SoftlookupError, match=message), sl.watch(model, **arguments):
        pass


def test_watches_left_in_any_order_leave_nothing_behind(rng):
    model, x = Model(is_causal=True), torch.randn(2, 7, 16, generator=rng)
    with sl.watch(model) as outer, sl.watch(model) as inner:
        model(x)
    assert follower.get() is None
    assert outer.layers["blocks.0"].count == inner.layers["blocks.0"].count == 14
    with pytest.raises(RuntimeError), sl.watch(model), sl.watch(model):
        model(x[..., :5])
    assert follower.get() is None


def test_where_no_fused_engine_runs_a_sample_is_the_default_and_explain_says_so(rng, monkeypatch):
    model, x = Model(is_causal=True), torch.randn(2, 100, 16, generator=rng)
    q = torch.randn(1, 4, 100, 4)
    assert "under watch" not in str(sl.explain(q, q, q))
    monkeypatch.setattr(native, "runs_on", lambda device: False)
    assert "under watch: a sample of rows" in str(sl.explain(q, q, q))
    for rows, count in ((None, 64), ("all", 100), (7, 7)):
        seen, _ = seen_of(model, lambda: model(x), rows=rows)
        assert seen.layers["blocks.0"].count == 2 * count
    assert seen_of(model, lambda: model(x), keep="rows")[0].layers["blocks.0"].count == 200


@pytest.mark.parametrize("rows", ["all", 7])
def test_autocast(rng, rows):
    model, x = Model(is_causal=True), torch.randn(2, 7, 16, generator=rng)
    whole, _ = seen_of(model, lambda: model(x), rows="all")
    with torch.autocast("cpu", torch.bfloat16):
        want = model(x)
        seen, got = seen_of(model, lambda: model(x), rows=rows)
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    for name, layer in seen.layers.items():
        assert layer.mean("entropy").dtype == torch.float64
        torch.testing.assert_close(layer.mean("entropy"), whole.layers[name].mean("entropy"), rtol=0.02, atol=0.02)


def test_accumulated_gradients_are_one_step(rng):
    model, parts = Model(is_causal=True), torch.randn(3, 2, 7, 16, generator=rng)
    with sl.watch(model) as seen:
        for part in parts:
            (model(part).square().mean() / 3).backward()
        accumulated = seen.layers["blocks.0"].mean("entropy"), seen.layers["blocks.0"].count
        seen.clear()
        model(parts.flatten(0, 1))
    assert accumulated[1] == seen.layers["blocks.0"].count == 42
    torch.testing.assert_close(accumulated[0], seen.layers["blocks.0"].mean("entropy"), rtol=1e-6, atol=1e-7)
