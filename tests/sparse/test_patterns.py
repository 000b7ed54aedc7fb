"""Laws of patterns of blocks: what sees what, and that pairs are as many as they say."""

from __future__ import annotations

import pytest
import torch

import softlookup as sl
from softlookup import sparse


def seen(mask: sl.Mask, n: int, heads: int = 1) -> torch.Tensor:
    """(heads, n, n) by the statistics of a lookup: the value of key j is its own unit vector, and all weights are alike."""
    q, v = torch.zeros(1, heads, n, 1), torch.eye(n).expand(1, heads, n, n)
    return sl.attend(q, q, v, mask=mask)[0] > 0


def test_big_bird_is_its_definition():
    n, block, blocks = 130, 10, 13
    got = seen(sparse.big_bird(n, window=3, first=2, random=2, block=block, heads=3, seed=5), n, 3)
    of_blocks = got.unflatten(2, (-1, block)).unflatten(1, (-1, block))
    assert torch.equal(of_blocks.any(4).any(2), of_blocks.all(4).all(2))
    live = of_blocks[:, :, 0, :, 0]
    i, j = torch.meshgrid(torch.arange(blocks), torch.arange(blocks), indexing="ij")
    near = ((i - j).abs() <= 1) | (i < 2) | (j < 2)
    assert live[:, near].all()
    assert torch.equal((live & ~near).sum(-1), torch.where(i[:, 0] < 2, 0, 2).expand(3, -1))
    assert not torch.equal(live[0], live[1])
    again = sparse.big_bird(n, window=3, first=2, random=2, block=block, heads=3, seed=5)
    assert torch.equal(got, seen(again, n, 3))


def test_big_bird_is_linear_in_the_length():
    def pairs(n: int) -> int:
        return int(sparse.big_bird(n, block=16).live.sum())

    assert pairs(16 * 400) - pairs(16 * 200) == pairs(16 * 600) - pairs(16 * 400)


def test_two_strided_layers_connect_everything():
    n, block = 256, 4
    live = seen(sparse.strided(n, 8, window=15, block=block), n)[0]
    far = (torch.arange(n // block)[:, None] - torch.arange(n // block)).abs()
    want = ((far <= 7) | (far % 8 == 0)).repeat_interleave(block, 0).repeat_interleave(block, 1)
    assert torch.equal(live, want) and not live.all() and (live.float() @ live.float() > 0).all()


def test_random_blocks_never_outnumber_the_blocks():
    assert seen(sparse.big_bird(50, random=99, block=10), 50).all()


@pytest.mark.parametrize("engine", ["native", "streaming", "reference"])
def test_every_engine_reads_blocks_of_any_size(engine):
    generator = torch.Generator().manual_seed(0)
    n = 700
    q, k, v = (torch.randn(2, 4, n, 8, generator=generator) for _ in range(3))
    for rows, keys in ((192, 96), (64, 64), (50, 170)):
        live = torch.rand(2, 4, -(-n // rows), -(-n // keys), generator=generator) < 0.4
        dense = live.repeat_interleave(rows, 2).repeat_interleave(keys, 3)[:, :, :n, :n]
        with sl.engine(engine):
            got, stats = sl.attend(q, k, v, mask=sl.Causal() & sparse.Blocks(live, rows, keys), stats=["visible", "entropy"])
        want, other = sl.attend(q, k, v, mask=sl.Causal() & dense, stats=["visible", "entropy"])
        torch.testing.assert_close(got, want)
        assert torch.equal(stats.visible, other.visible)
        torch.testing.assert_close(stats.entropy, other.entropy, atol=2e-5, rtol=1e-5)


def test_rows_that_are_watched_see_their_blocks():
    torch.manual_seed(0)
    layer, x = sl.nn.MultiHeadAttention(16, 2), torch.randn(2, 100, 16)
    for mask in (sparse.big_bird(100), sparse.strided(100, 3, window=1, block=7)):
        with sl.watch(layer, rows=100) as some:
            layer(x, mask=mask)
        with sl.watch(layer, rows="all") as every:
            layer(x, mask=mask)
        (a,), (b,) = some.layers.values(), every.layers.values()
        torch.testing.assert_close(a.mean("entropy"), b.mean("entropy"))


def test_blocks_are_part_of_a_compiled_graph():
    q, live = torch.randn(1, 2, 100, 8), torch.rand(2, 10, 5) < 0.5

    def act(q: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
        mask = sparse.Blocks(live, 10, 20) | sparse.big_bird(100, block=10, heads=2) & sparse.strided(100, 2, block=5)
        return sl.attend(q, q, q, mask=sl.Causal() & mask).relu()

    got = torch.compile(act, backend="aot_eager", fullgraph=True)(q, live)
    torch.testing.assert_close(got, act(q, live))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sparse.Blocks(torch.ones(2, 2)), "Blocks: expected a boolean tensor (…, blocks of queries, blocks of keys)"),
        (lambda: sparse.Blocks(torch.ones(2, 2).bool(), rows=0), "Blocks: expected rows of at least 1, got 0"),
        (lambda: sparse.big_bird(100, window=2), "big_bird: expected an odd window"),
        (lambda: sparse.strided(100, 0), "strided: expected stride of at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_one_line(make, said):
    with pytest.raises(sl.SoftlookupError) as error:
        make()
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
    q = torch.randn(1, 2, 200, 4)
    with pytest.raises(sl.SoftlookupError, match=r"Blocks: expected \(1, 2, 2, 3\) blocks"):
        sl.attend(q, q, q, mask=sparse.Blocks(torch.ones(2, 2).bool()))


@pytest.mark.parametrize("make", [lambda n: sparse.big_bird(n), lambda n: sparse.strided(n, 2)])
def test_a_pattern_is_of_as_many_queries_as_keys(make):
    """A step of decoding has one query."""
    q, k = torch.randn(1, 2, 1, 4), torch.randn(1, 2, 400, 4)
    with pytest.raises(sl.SoftlookupError) as error:
        sl.attend(q, k, k, mask=sl.Causal() & make(400))
    assert str(error.value) == "Blocks: expected as many queries as keys, 400, as the pattern is square, got 1"
