"""Heads as kernel smoothers: the identity, and the width and the prior of planted keys."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel, T5Config, T5Model

import softlookup as sl
from softlookup.inspection import smoother
from softlookup.inspection.report.data import page_data
from softlookup.inspection.smoother import spreads_of
from softlookup.watching import Call


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def llama() -> LlamaModel:
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4)
    return LlamaModel(LlamaConfig(**sizes, num_key_value_heads=2))


def ids(length: int, batch: int = 1) -> Tensor:
    return torch.randint(2, 50, (batch, length), generator=torch.Generator().manual_seed(1))


def of_call(query: Tensor, key: Tensor, **arguments: object) -> dict[str, Tensor]:
    found: dict[str, dict[str, Tensor]] = {}
    smoother.probe(found)(Call("a", query, key, key, arguments))
    return found.get("a", {})


def pairs(radii: Tensor, width: int, rng: torch.Generator) -> Tensor:
    """Keys (2n, width): each direction and its opposite, so that no centre is better than 0."""
    directions = F.normalize(torch.randn(len(radii), width, generator=rng, dtype=torch.float64), dim=1)
    return torch.cat([directions, -directions]) * torch.cat([radii, radii])[:, None]


def test_attention_is_a_smoother_under_a_prior_around_any_centre(rng: torch.Generator) -> None:
    """softmax(scale q·k): a Gaussian kernel of h² = 1/scale at q + c, and the prior exp(scale |k − c|² / 2)."""
    q, k, v = (torch.randn(1, 2, n, 6, generator=rng, dtype=torch.float64) for n in (9, 20, 20))
    attended = sl.attend(q, k, v, scale=0.4)
    for centre in (torch.zeros(6), torch.randn(6, generator=rng, dtype=torch.float64)):
        prior = 0.4 / 2 * (k - centre).square().sum(-1)[..., None, :]
        smoothed = sl.attend(q + centre, k, v, score=sl.Gaussian(0.4**-0.5), bias=prior)
        torch.testing.assert_close(smoothed, attended)


def test_keys_on_a_sphere_have_no_prior_wherever_it_lies(rng: torch.Generator) -> None:
    sphere = 3 * F.normalize(torch.randn(200, 8, generator=rng, dtype=torch.float64) + 0.5, dim=1)
    for moved in (sphere, sphere + torch.arange(8)):
        assert spreads_of(moved)[1] == pytest.approx(0, abs=1e-9)
        assert spreads_of(moved.float())[1] < 1e-4


def test_a_planted_prior(rng: torch.Generator) -> None:
    radii = torch.tensor([1.0, 2.0], dtype=torch.float64).repeat(50)
    keys = pairs(radii, 8, rng)
    away, off = spreads_of(keys)
    assert away == pytest.approx(math.sqrt(2.5))  # of |k|², 1 and 4
    assert off == pytest.approx(1.5 * math.sqrt(200 / (200 - 9)))  # the deviation of 1 and 4, degrees of freedom
    found = of_call(torch.randn(1, 1, 3, 8, dtype=torch.float64, generator=rng), keys[None, None], scale=0.25)
    assert float(found["bandwidth"]) == pytest.approx(2 / math.sqrt(2.5))
    assert float(found["prior_spread"]) == pytest.approx(off / 8)


def test_what_changes_no_weight_changes_no_number(rng: torch.Generator) -> None:
    """A bias of the keys is nothing to softmax."""
    keys = torch.randn(300, 8, generator=rng) * (1 + torch.rand(300, 1, generator=rng))
    torch.testing.assert_close(spreads_of(keys + 30), spreads_of(keys), rtol=1e-3, atol=1e-3)


def test_the_fit_takes_nothing_from_what_it_is_not_given(rng: torch.Generator) -> None:
    """Of independent normal keys |k|² has the deviation √(2 d), however few they are."""
    found = [spreads_of(torch.randn(60, 20, generator=rng, dtype=torch.float64))[1] ** 2 for _ in range(300)]
    assert sum(found) / len(found) == pytest.approx(40, rel=0.1)


def test_what_look_shows_is_of_the_keys_that_attend_saw() -> None:
    model, inputs, keys = llama().eval(), {"input_ids": ids(70)}, []
    with torch.no_grad(), sl.watch(model, probes=(lambda call: keys.append(call.key[0].double()),)):
        model(**inputs)
    for layer, of_layer in zip(sl.look(model, inputs).layers, keys, strict=True):
        for head in range(4):
            k = of_layer[head // 2]
            away = (k - k.mean(0)).square().sum(-1).mean().sqrt()
            assert float(layer.means["bandwidth"][head]) == pytest.approx(float(8**0.25 / away), rel=1e-4)
            fit = torch.cat([k, torch.ones(70, 1)], 1)
            squares = k.square().sum(-1)
            rest = squares - fit @ torch.linalg.lstsq(fit, squares[:, None]).solution[:, 0]
            spread = (rest.square().sum() / (70 - 9)).sqrt() / 2 / 8**0.5
            assert float(layer.means["prior_spread"][head]) == pytest.approx(float(spread), rel=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_key(side: str) -> None:
    model, alone, room = llama(), ids(40), torch.zeros(1, 24, dtype=torch.long)
    order = (room, alone) if side == "left" else (alone, room)
    mask = torch.cat([torch.full_like(part, part is alone) for part in order], 1)
    padded = {"input_ids": torch.cat(order, 1), "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    same(sl.look(model, {"input_ids": alone}), sl.look(model, padded))


def test_padding_of_another_sequence_is_no_key() -> None:
    torch.manual_seed(0)
    model = T5Model(T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4))
    read, written = ids(40), ids(30)
    padded = F.pad(read, (0, 24))
    whole = sl.look(model, {"input_ids": read, "decoder_input_ids": written})
    mask = (torch.arange(64) < 40).long()[None]
    same(whole, sl.look(model, {"input_ids": padded, "attention_mask": mask, "decoder_input_ids": written}))
    assert any(layer.cross for layer in whole.layers)


def same(a: sl.inspection.Inspection, b: sl.inspection.Inspection) -> None:
    for one, other in zip(a.layers, b.layers, strict=True):
        for name in ("bandwidth", "prior_spread"):
            torch.testing.assert_close(one.means[name], other.means[name], rtol=1e-3, atol=1e-4)


def test_a_dense_mask_of_keys_from_a_cache(rng: torch.Generator) -> None:
    query, key = torch.randn(2, 2, 5, 4, generator=rng), torch.randn(2, 2, 40, 4, generator=rng)
    keep = torch.rand(2, 1, 1, 40, generator=rng) > 0.4
    found = of_call(query, key, mask=keep.expand(2, 1, 5, 40))
    read = key.transpose(0, 1)[:, keep[:, 0, 0]]
    torch.testing.assert_close(found["bandwidth"].tolist(), [4**0.25 / spreads_of(each)[0] for each in read])


def test_scale_and_temperature_make_the_width(rng: torch.Generator) -> None:
    query, key = torch.randn(1, 4, 5, 8, generator=rng), torch.randn(1, 2, 60, 8, generator=rng)
    plain = of_call(query, key)
    each = torch.tensor([1.0, 2.0, 3.0, 4.0])
    hot = of_call(query, key, normalizer=sl.Softmax(temperature=each))
    torch.testing.assert_close(hot["bandwidth"], plain["bandwidth"] * each.sqrt())
    torch.testing.assert_close(hot["prior_spread"], plain["prior_spread"] / each)
    torch.testing.assert_close(of_call(query, key, scale=each)["prior_spread"], plain["prior_spread"] * each * 8**0.5)
    torch.testing.assert_close(of_call(query, key, score=sl.ScaledDot(softcap=5.0)), plain)
    assert float(of_call(query, key, score=sl.Cosine())["prior_spread"].max()) < 1e-4


def test_scores_that_are_no_products_have_neither(rng: torch.Generator) -> None:
    x = torch.randn(1, 2, 20, 4, generator=rng)
    u, w = torch.randn(2, 3, generator=rng), torch.randn(2, 3, 4, generator=rng)
    for score in (sl.Additive(u, w, w), sl.Gaussian(0.5), sl.ScaledDot(ssmax=0.4)):
        assert of_call(x, x, score=score) == {}


def test_too_few_keys_and_keys_that_are_no_numbers(rng: torch.Generator) -> None:
    keys = torch.randn(9, 8, generator=rng)
    assert spreads_of(keys)[0] > 0 and math.isnan(spreads_of(keys)[1])
    assert math.isnan(spreads_of(torch.full((30, 8), torch.nan))[1])
    assert spreads_of(torch.ones(30, 8)) == (0, 0)


class Attends(nn.Module):
    def __init__(self, score: sl.Score) -> None:
        super().__init__()
        self.score = score

    def forward(self, x: Tensor) -> Tensor:
        return sl.attend(x, x, x, score=self.score, mask=sl.Causal())


def test_it_is_shown_wherever_statistics_are(rng: torch.Generator) -> None:
    found = sl.look(nn.Sequential(Attends(sl.ScaledDot()), Attends(sl.Gaussian(0.5))), torch.randn(1, 2, 40, 4, generator=rng))
    assert "bandwidth, layer by head" in str(found.table("bandwidth")) and "–" in str(found.table("prior_spread"))
    first, last = (json.loads(found.to_json())["heads"][i] for i in (0, -1))
    assert first["bandwidth"] > 0 and first["prior_spread"] > 0 and "bandwidth" not in last
    assert {"bandwidth", "prior_spread"} <= {stat["name"] for stat in page_data(found)["stats"]}
    assert json.loads(found.to_json())["reductions"]["prior_spread"] == "over keys"
