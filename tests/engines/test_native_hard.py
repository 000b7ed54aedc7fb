"""Inputs that are hard for running moments, and what reaches the kernels by ways of one's own."""

from __future__ import annotations

import pytest
import torch

import softlookup as sl
from softlookup.engines import library


def column(values: dict[int, float], n: int, rest: float | None) -> torch.Tensor:
    """Keys (1, 1, n, 1) that are their own scores for queries of ones: normal numbers or `rest`, but for `values`."""
    keys = torch.randn(1, 1, n, 1) if rest is None else torch.full((1, 1, n, 1), rest)
    for at, value in values.items():
        keys[0, 0, at] = value
    return keys


HARD = {
    "the maximum lies behind the first keys": (lambda: column({100: 0.0, 101: -10.5}, 200, -80.0), None),
    "half of the keys count for nothing": (lambda: column({}, 4096, None) - 3000 * (torch.arange(4096) < 2048)[:, None], None),
    "one key far from all others": (lambda: column({0: 30.0}, 400, None), None),
    "one key, then a window": (lambda: column({0: 30.0}, 400, None), (sl.Prefix(1) | sl.Window(37)) & sl.Causal()),
    "the keys rise by blocks": (lambda: column({}, 600, None) * 0.01 + 20 * (torch.arange(600) // 97)[:, None], None),
}


@pytest.mark.parametrize("engine", ["native", "streaming"])
@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("name", HARD)
def test_variances_do_not_cancel(name, queries, engine):
    if engine == "native" and library.load()[0] is None:
        pytest.skip(library.load()[1])
    torch.manual_seed(0)
    make, mask = HARD[name]
    key = make()
    tensors = [torch.ones(1, 1, queries, 1), key, torch.randn_like(key)]
    names = "expected_logit_var", "logit_var", "entropy", "logit_mean"
    with sl.engine(engine):
        _, got = sl.attend(*tensors, scale=1.0, mask=mask, stats=names)
    with sl.engine("reference"):
        _, single = sl.attend(*tensors, scale=1.0, mask=mask, stats=names)
        _, want = sl.attend(*(t.double() for t in tensors), scale=1.0, mask=mask, stats=names)
    for each in names:
        ours, theirs = ((x[each] - want[each]).abs().max() for x in (got, single))
        assert ours <= 2 * theirs + 2e-6 * want[each].abs().max(), f"{each}: {ours:.1e}, materialized {theirs:.1e}"


def test_a_dense_bias_on_a_part_of_the_keys():
    q, k, v = (torch.randn(1, 2, 40, 8) for _ in range(3))
    bias = torch.randn(1, 2, 40, 40)
    parts = [
        sl.lookup(q, k[:, :, a:b], v[:, :, a:b], key_offset=a, total_keys=40, bias=bias, stats=["entropy"])
        for a, b in ((0, 20), (20, 40))
    ]
    torch.testing.assert_close(sl.merge(*parts).value, sl.attend(q, k, v, bias=bias))


class EverySecond(sl.Causal):
    def visible(self, tile):
        return super().visible(tile) & (tile.j % 2 == 0)

    def extent(self, region):
        return True, False


def test_masks_and_biases_of_ones_own():
    q, k, v = (torch.randn(1, 2, 96, 8) for _ in range(3))
    sl.attend(q, k, v, mask=sl.Causal())
    _, stats = sl.attend(q, k, v, mask=EverySecond(), stats=["visible"])
    assert stats.visible.max() == 48
    keep = torch.arange(96) % 2 == 0
    _, stats = sl.attend(q, k, v, mask=lambda b, h, i, j: keep[j.flatten()], stats=["visible"])
    assert stats.visible.unique().tolist() == [48]

    class Constant(sl.biases.Bias):
        tensor = torch.ones(1)

        def block(self, tile):
            return self.tensor.view(1, 1, 1, 1)

        def with_tensor(self, tensor):
            return self

        def check(self, *_):
            pass

    assert sl.explain(q, k, v, bias=Constant()).engine == "streaming"
    torch.testing.assert_close(sl.attend(q, k, v, bias=Constant()), sl.attend(q, k, v))


@pytest.mark.parametrize("wrong", ["width", "key_bias"])
def test_what_a_score_lowers_to_is_checked(wrong):
    class Mine(sl.Score):
        def lower(self, query, key):
            if wrong == "width":
                return sl.scores.Product(query[..., :5], key)
            return sl.scores.Product(query, key, key_bias=torch.zeros(1, 3, 20))

    q = torch.randn(2, 3, 20, 8)
    with pytest.raises(sl.SoftlookupError, match=r"Mine\.lower: expected"):
        sl.attend(q, q, q, score=Mine())


def test_few_queries_with_gradients_use_the_scores_that_backward_computes_again():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 1, 8, 64) * 35, *(torch.randn(1, 1, 64, 64) for _ in range(2))
    single = [t.requires_grad_() for t in (q, k, v)]
    g = torch.randn(1, 1, 8, 64)
    value = torch.autograd.grad(sl.attend(*single, scale=1.0), single, g)[2]
    double = [t.detach().double().requires_grad_() for t in single]
    with sl.engine("reference"):
        want = torch.autograd.grad(sl.attend(*double, scale=1.0), double, g.double())[2]
        plain = torch.autograd.grad(sl.attend(*single, scale=1.0), single, g)[2]
    assert (value - want).abs().max() <= 2 * (plain - want).abs().max() + 1e-6


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FFFFFFF])
def test_any_nan_of_ones_own_score_reaches_the_output(bits):
    nan = torch.tensor([bits], dtype=torch.int64).to(torch.int32).view(torch.float32)

    class Broken(sl.Score):
        def block(self, q, k, i, j):
            s = (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1)
            return torch.where((j == 3) & (i == 5), nan, s)

    q = torch.randn(1, 1, 20, 4)
    y, stats = sl.attend(q, q, q, score=Broken(), stats=True)
    assert y.isnan().any(-1).nonzero()[:, 2].tolist() == [5]
    assert stats.logsumexp.isnan().nonzero()[:, 2].tolist() == [5]
    assert stats.visible.unique().tolist() == [20]


@pytest.mark.parametrize("queries", [5, 40])
@pytest.mark.parametrize("value", [-torch.inf, torch.nan])
def test_a_bias_that_is_not_finite_is_left_to_the_streaming_engine(value, queries):
    """In float64, -1e39 is a visible bias; in float32 it would be -inf."""
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 1, queries, 4), *(torch.randn(1, 1, 50, 4) for _ in range(2))
    bias = torch.zeros(queries, 50, dtype=torch.float64)
    bias[3, 7] = -1e39 if value < 0 else value
    for names in (["visible"], True):
        y, stats = sl.attend(q, k, v, bias=bias, stats=names)
        with sl.engine("reference"):
            want, want_stats = sl.attend(q, k, v, bias=bias, stats=names)
        torch.testing.assert_close(y, want, equal_nan=True)
        assert torch.equal(stats.visible, want_stats.visible)


@pytest.mark.parametrize("combine", [lambda mask: mask, lambda mask: mask & sl.Window(500)], ids=["alone", "combined"])
def test_a_mask_that_changes_a_mask_of_ours_is_a_mask_of_its_own(combine):
    class Every(sl.Causal):
        def __init__(self, n):
            self.n = n

        def visible(self, tile):
            return super().visible(tile) & (tile.j % self.n == 0)

        def extent(self, region):
            return True, False

    q = torch.randn(1, 2, 700, 8)
    for n in (2, 3, 5):
        visible = sl.attend(q, q, q, mask=combine(Every(n)), stats="visible")[1].visible
        with sl.engine("reference"):
            assert torch.equal(visible, sl.attend(q, q, q, mask=combine(Every(n)), stats="visible")[1].visible)
