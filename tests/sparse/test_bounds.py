"""Laws of blocks chosen by bounds: what is certified is true, and what is asked for is kept."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import softlookup as sl
from softlookup import sparse


def clusters(
    n: int, width: int, count: int, *, heads: int = 2, kv: int = 2, spread: float = 0.2, seed: int = 0
) -> list[Tensor]:
    """Queries, keys and values where topics follow one another, and a query looks for one of them."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=-1) * 10
    topic = torch.arange(n) * count // n
    key = centres[topic] + spread * torch.randn(1, kv, n, width, generator=generator)
    query = centres[topic.flip(0)] + spread * torch.randn(1, heads, n, width, generator=generator)
    return [query, key, torch.randn(1, kv, n, width, generator=generator)]


def truth(query: Tensor, key: Tensor, mask: sl.Mask, causal: bool) -> Tensor:
    """(B, H, L) the share of weight that the mask leaves out, in float64."""
    q, k = query.double(), key.double()
    whole = sl.attend(q, k, k, mask=sl.Causal() if causal else None, stats="logsumexp")[1].logsumexp
    part = sl.attend(q, k, k, mask=mask, stats="logsumexp")[1].logsumexp
    return -torch.expm1(part - whole)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.booleans(), st.sampled_from([0.1, 1.0, 10.0]), st.integers(1, 5),
    st.sampled_from([1, 3, 16]), st.sampled_from([1, 5, 16]), st.sampled_from(["upper", "mean"]), st.integers(0, 9),
)  # fmt: skip
def test_what_is_missed_is_never_more_than_certified(length, total, causal, size, k, rows, keys, by, seed):
    torch.manual_seed(seed)
    total = length if causal else total
    q, key, value = torch.randn(2, 4, length, 8) * size, torch.randn(2, 2, total, 8), torch.randn(2, 2, total, 3)
    found = sparse.attend(q, key, value, k=k, causal=causal, by=by, rows=rows, keys=keys)
    true = truth(q, key, found.mask, causal)
    assert (true <= found.missed + 1e-12).all() and (found.missed <= 1).all()
    torch.testing.assert_close(found.value, sl.attend(q, key, value, mask=found.mask))
    blocks = found.mask.b if causal else found.mask
    if not causal:
        assert (blocks.live.sum(-1) == min(k, -(-total // keys))).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-6])
def test_a_tolerance_is_kept(causal, tolerance):
    for q, key, value in (clusters(400, 16, 8, heads=4), [torch.randn(1, 2, 300, 16) for _ in range(3)]):
        found = sparse.attend(q, key, value, tolerance=tolerance, causal=causal, rows=32, keys=16)
        assert (found.missed <= tolerance).all()
        assert (truth(q, key, found.mask, causal) <= tolerance).all()
        exact = sl.attend(q, key, value, mask=sl.Causal() if causal else None)
        assert (found.value - exact).norm(dim=-1).max() <= 2 * tolerance * value.norm(dim=-1).max() + 1e-5


def test_of_clusters_few_blocks_are_read_and_no_more_than_needed():
    q, key, value = clusters(1024, 16, 16)
    found = sparse.attend(q, key, value, tolerance=1e-3, rows=64, keys=32)
    assert float(found.mask.live.double().mean()) <= 1 / 8
    fewer = found.mask.live.clone()
    for row in range(fewer.shape[2]):  # without any one of its blocks, some query would not be sure
        for column in fewer[0, 0, row].nonzero()[:, 0].tolist():
            less = fewer.clone()
            less[0, 0, row, column] = False
            mask = sparse.Blocks(less, 64, 32)
            read = sl.attend(q, key, value, mask=mask, stats="logsumexp")[1].logsumexp
            assert sparse.missed(q, key, mask, read)[0, 0, 64 * row : 64 * row + 64].max() > 1e-3


def test_all_blocks_miss_nothing():
    q, key, value = (torch.randn(1, 2, 50, 4) for _ in range(3))
    found = sparse.attend(q, key, value, k=99, rows=16, keys=16)
    assert (found.missed == 0).all()
    torch.testing.assert_close(found.value, sl.attend(q, key, value))


def test_the_best_blocks_are_chosen():
    """With keys that are alike within a block bounds are exact, and the k best are those of the most weight."""
    torch.manual_seed(0)
    q, key = torch.randn(1, 2, 12, 8) * 3, torch.randn(1, 2, 10, 8).repeat_interleave(6, 2)
    live = sparse.top_blocks(q, key, k=3, rows=1, keys=6).live
    weight = (q @ key.mT / 8**0.5).unflatten(-1, (10, 6)).logsumexp(-1)
    assert torch.equal(live, torch.zeros_like(live).scatter_(-1, weight.topk(3).indices, True))
    read = torch.where(live, weight, -math.inf).logsumexp(-1)
    left = torch.where(live, -math.inf, weight).logsumexp(-1)
    got = sparse.missed(q, key, sparse.Blocks(live, 1, 6), read)
    torch.testing.assert_close(got, torch.sigmoid(left - read), rtol=1e-3, atol=1e-6)


def test_gradients_statistics_and_shapes():
    q, key, value = (torch.randn(2, 3, 4, 40, 8).bfloat16().requires_grad_() for _ in range(3))
    found = sparse.attend(q, key, value, k=2, causal=True, rows=8, keys=8, stats=("entropy",))
    assert found.value.shape == q.shape and found.missed.shape == found.stats.entropy.shape == q.shape[:-1]
    assert found.value.dtype == torch.bfloat16
    found.value.sum().backward()
    assert q.grad.isfinite().all() and key.grad.abs().sum() > 0
    alone = sparse.attend(q[0, 0, 0], key[0, 0, 0], value[0, 0, 0], k=2, causal=True, rows=8, keys=8)
    torch.testing.assert_close(alone.value, found.value[0, 0, 0])


@pytest.mark.parametrize("autocast", [False, True])
def test_certificates_hold_in_half_precision(autocast):
    torch.manual_seed(0)
    q, key, value = (torch.randn(1, 2, 300, 16) for _ in range(3))
    q, key, value = (q * 6, key, value) if autocast else ((q * 6).bfloat16(), key.bfloat16(), value.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = sparse.attend(q, key, value, k=3, rows=32, keys=16)
        again = sparse.missed(q, key, found.mask, found.stats.logsumexp)
    assert found.value.dtype == torch.bfloat16 and found.missed.dtype == torch.float32
    assert (truth(q.bfloat16(), key.bfloat16(), found.mask, False) <= found.missed).all()
    torch.testing.assert_close(again, found.missed)


def test_bounds_that_overflow_say_nothing():
    found = sparse.attend(torch.randn(1, 1, 8, 8) * 1e20, torch.zeros(1, 1, 400, 8), torch.randn(1, 1, 400, 4), k=1)
    assert (found.missed == 1).all()


def test_statistics_are_named_as_in_attend():
    q = torch.randn(1, 2, 50, 8)
    assert set(sl.CHEAP) <= {*sparse.attend(q, q, q, k=1, stats=True).stats}
    assert sparse.attend(q, q, q, k=1, stats="entropy").stats.entropy.shape == (1, 2, 50)
    _, stats = sparse.route(q, q, q, clusters=2, stats=True)
    assert "entropy" in stats and "distance" not in {*stats}
    with pytest.raises(sl.SoftlookupError, match="missed: expected Blocks, without masks combined with them, got And"):
        sparse.missed(q, q, sparse.attend(q, q, q, k=1, causal=True).mask, torch.zeros(1, 2, 50))


@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 3), ()])
def test_boxes_that_grow_with_the_keys_are_those_of_all_keys(shape):
    """To the last digit, however keys come; and what is chosen by them is what is chosen without."""
    key, want = torch.randn(*shape, 100, 8), None
    for lengths in ((100,), (3, 4, 16, 16, 17, 99, 100), (32, 48, 100)):
        boxes = sparse.Boxes(key[..., : lengths[0], :], 16)
        for length in lengths[1:]:
            boxes = boxes.extended(key[..., :length, :])
        got = boxes.low, boxes.high, boxes.mean, boxes.longest
        assert all(map(torch.equal, got, want or got))
        want = got
    q = torch.randn(*shape[:-1], 6, 1, 8) if shape else torch.randn(1, 8)
    found, fresh = (sparse.attend(q, key, key, k=2, **more) for more in ({"boxes": boxes}, {"keys": 16}))
    assert torch.equal(found.value, fresh.value) and torch.equal(found.missed, fresh.missed)
    live = [sparse.top_blocks(q, key, tolerance=0.1, **more).live for more in ({"boxes": boxes}, {"keys": 16})]
    assert torch.equal(*live)
    again = sparse.missed(q, key, found.mask, found.stats.logsumexp, boxes=boxes)
    torch.testing.assert_close(again, found.missed)


def test_certificates_by_boxes_hold_under_autocast():
    torch.manual_seed(0)
    q, key = torch.randn(1, 2, 1, 16) * 6, torch.randn(1, 2, 300, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = sparse.Boxes(key[:, :, :200], 16).extended(key)
        found = sparse.attend(q, key, key, k=3, boxes=boxes)
    assert (truth(q.bfloat16(), key.bfloat16(), found.mask, False) <= found.missed).all()
    with pytest.raises(sl.SoftlookupError, match="boxes: expected those of the keys, .*float32 .* got those of .*bfloat16"):
        sparse.attend(q, key, key, k=3, boxes=boxes)


def test_boxes_of_other_keys_are_refused():
    key = torch.randn(1, 2, 40, 8)
    boxes = sparse.Boxes(key, 16)
    for act, said in (
        (lambda: sparse.top_blocks(key, key[:, :, 1:], k=1, boxes=boxes), "boxes: expected those of the keys, (1, 2, 39, 8)"),
        (lambda: sparse.top_blocks(key, key, k=1, keys=8, boxes=boxes), "keys: expected 16 per block, as the boxes have"),
        (lambda: boxes.extended(key[:, :, :39]), "Boxes: expected the 40 keys so far and those after them, (1, 2, 40, 8)"),
        (lambda: boxes.extended("x"), "Boxes: expected keys (…, S, E), got str"),
        (lambda: boxes.extended(key[0, 0, 0]), "Boxes: expected keys (…, S, E), got a float32 tensor of shape (8,)"),
        (lambda: sparse.attend(key, key, key, k=1, boxes="x"), "boxes: expected Boxes of the keys, got str"),
        (lambda: sparse.top_blocks(key, key, k=1, boxes=sparse.Boxes), "boxes: expected Boxes of the keys, got the class"),
        (lambda: sparse.Boxes(key, 0), "Boxes: expected keys of at least 1, got 0"),
        (lambda: sparse.Boxes(key[:, :, :0]), "Boxes: expected keys (…, S, E), got a float32 tensor of shape (1, 2, 0, 8)"),
    ):
        with pytest.raises(sl.SoftlookupError) as error:
            act()
        assert str(error.value).startswith(said)


def test_long_inputs_are_looked_at_in_parts(monkeypatch):
    q, key, _ = clusters(500, 8, 5, heads=4)
    want = sparse.top_blocks(q, key, tolerance=0.01, causal=True, rows=16, keys=16).live
    monkeypatch.setattr(sparse.boxes, "AT_ONCE", 1)
    assert torch.equal(sparse.top_blocks(q, key, tolerance=0.01, causal=True, rows=16, keys=16).live, want)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "top_blocks: expected k or tolerance, and not both"),
        ({"k": 1, "tolerance": 0.1}, "top_blocks: expected k or tolerance, and not both"),
        ({"k": 0}, "top_blocks: expected k of at least 1, got 0"),
        ({"tolerance": 1.0}, "top_blocks: expected a tolerance between 0 and 1, got 1.0"),
        ({"tolerance": "a"}, "top_blocks: expected a tolerance between 0 and 1, got 'a'"),
        ({"k": 1, "scale": "a"}, "scale: expected a finite number > 0, got 'a'"),
        ({"k": 1, "by": "luck"}, "top_blocks: expected by 'upper' or 'mean', got 'luck'"),
        ({"k": 1, "scale": -1.0}, "scale: expected a finite number > 0, got -1.0"),
        ({"k": 1, "causal": True}, "causal: expected as many keys as queries, 5, got 6"),
        ({"k": 1, "rows": 0}, "top_blocks: expected rows of at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, said):
    with pytest.raises(sl.SoftlookupError) as error:
        sparse.top_blocks(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 6, 4), **arguments)
    assert str(error.value) == said
    q, blocks = torch.randn(1, 2, 5, 4), sparse.Blocks(torch.ones(1, 1).bool())
    with pytest.raises(sl.SoftlookupError, match=r"logsumexp: expected shape \(1, 2, 5\), got \(5,\)"):
        sparse.missed(q, q, blocks, torch.zeros(5))
    with pytest.raises(sl.SoftlookupError, match=r"Blocks: expected \(1, 2, 1, 1\) blocks"):
        sparse.missed(q, q, sparse.Blocks(torch.ones(2, 2).bool()), torch.zeros(1, 2, 5))
    with pytest.raises(sl.SoftlookupError, match="query, key: expected finite numbers"):
        sparse.top_blocks(torch.full((1, 2, 5, 4), math.nan), torch.randn(1, 2, 6, 4), k=1)
