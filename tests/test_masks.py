"""Laws of masks: `visible` is its definition, `cover` and `span` never lie, and no structured mask builds an n x n tensor."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import softlookup as sl
from softlookup.masks import Cover, Dense, Everything, Mask, NotHidden, is_relative, key_of
from softlookup.tile import Region, Tile

BATCH, HEADS, GROUP = 2, 4, 2
See = Callable[[int, int, int, int, int], bool]
"""(b, h, row, i, j) -> is key j visible?"""


@st.composite
def places(draw) -> tuple[int, int, int]:
    """(L queries, S keys, position of the first query), queries among the keys or not."""
    length, keys = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    return length, keys, draw(st.integers(-3, keys + 2))


def leaf(draw, length: int, keys: int, offset: int) -> tuple[Mask, See]:
    """A mask, and its definition for one query and one key."""
    kinds = ["everything", "causal", "window", "dilated", "prefix", "lengths", "padding", "function", "dense", "float"]
    inside = 0 <= offset and offset + length <= keys
    kinds += ["blocks", "documents with query ids"] + ["documents"] * inside
    kind = draw(st.sampled_from(kinds))
    size = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def random(*shape: int, below: int = 2) -> torch.Tensor:
        return torch.randint(below, shape, generator=generator)

    match kind:
        case "everything":
            return Everything(), lambda b, h, r, i, j: True
        case "causal":
            return sl.Causal(), lambda b, h, r, i, j: j <= i
        case "window":
            return sl.Window(size), lambda b, h, r, i, j: abs(i - j) < size
        case "dilated":
            return sl.Dilated(size), lambda b, h, r, i, j: (i - j) % size == 0
        case "prefix":
            return sl.Prefix(size), lambda b, h, r, i, j: j < size
        case "lengths":
            lengths = random(BATCH, below=keys + 2)
            return sl.Lengths(lengths), lambda b, h, r, i, j: j < int(lengths[b])
        case "padding":
            keep = random(draw(st.sampled_from([1, BATCH])), keys).bool()
            return sl.Padding(keep), lambda b, h, r, i, j: bool(keep[b % len(keep), j])
        case "function":
            return sl.MaskFunction(lambda b, h, i, j: (i + 2 * j + h + b) % 3 != 0), (
                lambda b, h, r, i, j: (i + 2 * j + h + b) % 3 != 0
            )
        case "dense" | "float":
            shape = [draw(st.sampled_from([1, n])) for n in (BATCH, HEADS, length, keys)]
            seen = random(*shape).bool()
            mask: Mask = Dense(seen)
            if kind == "float":
                mask = NotHidden(torch.zeros(shape).masked_fill(~seen, torch.finfo(torch.float32).min))
            whole = seen.expand(BATCH, HEADS, length, keys)
            return mask, lambda b, h, r, i, j: bool(whole[b, h, r, j])
        case "blocks":
            r, c = size, draw(st.integers(1, 4))
            shape = [draw(st.sampled_from([1, n])) for n in (BATCH, HEADS)]
            live = random(*shape, -(-length // r), -(-keys // c)).bool()
            alike = live.expand(BATCH, HEADS, -1, -1)
            return sl.sparse.Blocks(live, r, c), lambda b, h, row, i, j: bool(alike[b, h, row // r, j // c])
        case "documents":
            ids = random(BATCH, keys, below=3).sort(-1).values
            return sl.Documents(ids), lambda b, h, r, i, j: bool(ids[b, i] == ids[b, j])
        case _:
            ids, own = random(BATCH, keys, below=3), random(1, length, below=3)
            return sl.Documents(ids, own), lambda b, h, r, i, j: bool(own[0, r] == ids[b, j])


@st.composite
def expressions(draw, length: int, keys: int, offset: int, depth: int = 3) -> tuple[Mask, See]:
    kind = draw(st.sampled_from(["leaf", "and", "or", "not"])) if depth else "leaf"
    if kind == "leaf":
        return leaf(draw, length, keys, offset)
    a, sees_a = draw(expressions(length, keys, offset, depth - 1))
    if kind == "not":
        return ~a, lambda *at: not sees_a(*at)
    b, sees_b = draw(expressions(length, keys, offset, depth - 1))
    if kind == "and":
        return a & b, lambda *at: sees_a(*at) and sees_b(*at)
    return a | b, lambda *at: sees_a(*at) or sees_b(*at)


@st.composite
def situations(draw):
    length, keys, offset = draw(places())
    mask, sees = draw(expressions(length, keys, offset))
    return length, keys, offset, mask, sees


def span_of(data, n: int, step: int = 1) -> tuple[int, int]:
    lo = data.draw(st.integers(0, n // step - 1)) * step
    return lo, data.draw(st.integers(lo // step + 1, n // step)) * step


@settings(max_examples=250, deadline=None)
@given(situations(), st.data())
def test_visible_cover_and_span_agree_with_the_definition(situation, data):
    length, keys, offset, mask, sees = situation
    mask.check(BATCH, HEADS, length, keys)
    (b0, b1), (h0, h1) = span_of(data, BATCH), span_of(data, HEADS, GROUP)
    (row0, row1), (j0, j1) = span_of(data, length), span_of(data, keys)
    positions = torch.arange(offset, offset + length)
    region = Region(b0, b1, h0, h1, row0, row1, offset + row0, offset + row1, j0, j1)
    tile = Tile(region, positions[row0:row1], GROUP)
    shape = ((b1 - b0) * (h1 - h0) // GROUP, GROUP, row1 - row0, j1 - j0)
    got = tile.unfold(mask.visible(tile).expand(shape))
    want = torch.tensor(
        [
            [
                [[sees(b, h, r, offset + r, j) for j in range(j0, j1)] for r in range(row0, row1)]
                for h in range(h0, h1)
            ]
            for b in range(b0, b1)
        ]
    )  # fmt: skip
    assert torch.equal(got, want)
    cover = mask.cover(region)
    if cover is not Cover.PARTIAL:
        assert want.all() if cover is Cover.FULL else not want.any()
    places = [(b, h, r, j) for b in range(b0, b1) for h in range(h0, h1) for r in range(length) for j in range(keys)]
    whole = torch.tensor([sees(b, h, r, offset + r, j) for b, h, r, j in places]).view(b1 - b0, h1 - h0, length, keys)
    step, wide = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    r, c = torch.arange(0, length, step)[:, None], torch.arange(0, keys, wide)[None]
    r1, c1 = (r + step).clamp(max=length), (c + wide).clamp(max=keys)
    grid = Region(b0, b1, h0, h1, r, r1, offset + r, offset + r1, c, c1)
    some, every = (torch.as_tensor(x).expand(len(r), c.shape[1]) for x in mask.extent(grid))
    for row in range(len(r)):
        for column in range(c.shape[1]):
            block = whole[:, :, r[row, 0] : r1[row, 0], c[0, column] : c1[0, column]]
            assert (some[row, column] or not block.any()) and (not every[row, column] or block.all())
    lo, hi = mask.span(offset + row0, offset + row1)
    outside = [j for j in range(j0, j1) if not lo <= j < hi]
    assert not any(want[..., j - j0].any() for j in outside)


@settings(max_examples=60, deadline=None)
@given(situations())
def test_relative_masks_depend_on_the_offset_alone(situation):
    length, keys, offset, mask, sees = situation
    if not mask.relative():
        return
    seen: dict[int, bool] = {}
    for r in range(length):
        for j in range(keys):
            assert seen.setdefault(offset + r - j, sees(0, 0, r, offset + r, j)) == sees(1, 3, r, offset + r, j)


@settings(max_examples=100, deadline=None)
@given(situations())
def test_attention_under_any_mask_is_that_under_its_matrix(situation):
    length, keys, offset, mask, sees = situation
    torch.manual_seed(0)
    q, k, v = torch.randn(BATCH, HEADS, length, 3), torch.randn(BATCH, 2, keys, 3), torch.randn(BATCH, 2, keys, 2)
    q, k, v = q.double(), k.double(), v.double()
    matrix = torch.tensor(
        [
            [[[sees(b, h, r, offset + r, j) for j in range(keys)] for r in range(length)] for h in range(HEADS)]
            for b in range(BATCH)
        ]
    )
    names = [n for n in sl.CHEAP if n not in ("distance", "sink_mass")]
    value, stats = sl.attend(q, k, v, mask=mask, query_offset=offset, stats=names)
    want, want_stats = sl.attend(q, k, v, mask=matrix, query_offset=offset, stats=names)
    torch.testing.assert_close(value, want)
    for each in names:
        torch.testing.assert_close(stats[each], want_stats[each])
    assert torch.equal(stats.visible, matrix.sum(-1))


def test_covers_of_simple_masks_are_exact():
    """The engine's speed rests on these: blocks below, on and above the diagonal, inside and outside of a window."""

    def region(i0: int, i1: int, j0: int, j1: int) -> Region:
        return Region(0, 2, 0, 4, i0, i1, i0, i1, j0, j1)

    assert sl.Causal().cover(region(8, 16, 0, 9)) is Cover.FULL
    assert sl.Causal().cover(region(8, 16, 0, 10)) is Cover.PARTIAL
    assert sl.Causal().cover(region(8, 16, 16, 20)) is Cover.EMPTY
    assert sl.Window(4).cover(region(8, 10, 6, 12)) is Cover.FULL
    assert sl.Window(4).cover(region(8, 10, 5, 6)) is Cover.PARTIAL
    assert sl.Window(4).cover(region(8, 10, 0, 5)) is Cover.EMPTY
    assert sl.Lengths(torch.tensor([3, 5])).cover(region(0, 9, 0, 3)) is Cover.FULL
    assert sl.Lengths(torch.tensor([3, 5])).cover(region(0, 9, 5, 9)) is Cover.EMPTY
    documents = sl.Documents(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]))
    assert documents.cover(region(0, 3, 0, 3)) is Cover.FULL
    assert documents.cover(region(0, 3, 3, 8)) is Cover.EMPTY
    assert documents.cover(region(2, 4, 2, 4)) is Cover.PARTIAL
    assert (sl.Causal() & documents).cover(region(5, 8, 0, 5)) is Cover.EMPTY
    assert (~sl.Causal()).cover(region(8, 16, 0, 9)) is Cover.EMPTY
    assert (sl.Causal() | sl.Prefix(20)).cover(region(8, 16, 16, 20)) is Cover.FULL


def test_where_no_key_can_be_seen_values_are_0():
    q = torch.randn(1, 2, 300, 8)
    none = sl.Lengths(torch.tensor([0]))
    for mask in (none & torch.ones(300, 1, dtype=torch.bool), none & sl.Documents(torch.arange(300) // 10)):
        assert (sl.attend(q, q, q, mask=mask) == 0).all()


def test_a_mask_over_a_million_keys_is_asked_about_one_tile():
    n = 2**20
    half = torch.arange(n) >= n // 2
    masks = [
        sl.Causal() & sl.Window(8),
        sl.Causal() | sl.Prefix(5),
        ~sl.Causal() & sl.Dilated(3),
        sl.Documents(half.long()) & sl.Causal(),
        sl.Padding(half[None]),
        sl.Lengths(torch.tensor([n - 3])),
        sl.MaskFunction(lambda b, h, i, j: (i - j) % 7 == 0),
    ]
    region = Region(0, 1, 0, 1, n - 64, n, n - 64, n, n - 128, n)
    tile = Tile(region, torch.arange(n - 64, n), 1)
    for mask in masks:
        start = time.perf_counter()
        mask.check(1, 1, n, n)
        assert mask.visible(tile).numel() <= 64 * 128
        assert mask.cover(region) is Cover.PARTIAL or isinstance(mask, sl.Padding)
        lo, hi = mask.span(n - 64, n)
        assert lo <= n and hi >= 0
        assert time.perf_counter() - start < 1


def test_a_window_over_two_hundred_thousand_keys_is_quick():
    torch.set_num_threads(1)  # blocks this small are not worth a barrier
    n = 200_000
    q, k, v = (torch.randn(1, 1, n, 4) for _ in range(3))
    start = time.perf_counter()
    value, stats = sl.attend(q, k, v, mask=sl.Causal() & sl.Window(8), stats="visible")
    assert time.perf_counter() - start < 30  # all pairs would be 4e10 scores
    assert torch.equal(stats.visible[0, 0], torch.arange(1, n + 1).clamp(max=8))
    last = torch.softmax(q[0, 0, -1] @ k[0, 0, -8:].T / 2, -1) @ v[0, 0, -8:]
    torch.testing.assert_close(value[0, 0, -1], last)


@pytest.mark.parametrize(
    ("combine", "message"),
    [
        (lambda: sl.Causal() & 3, "mask: expected a Mask, a boolean tensor or a function to combine with, got int"),
        (lambda: sl.Causal() | torch.ones(3), "mask: expected a Mask, a boolean tensor or a function"),
        (lambda: sl.Window(0), "Window: expected width of at least 1, got 0"),
        (lambda: sl.Window("3"), "Window: expected width of at least 1, got '3'"),
        (lambda: sl.Window(2.7), "Window: expected width of at least 1, got 2.7"),
        (lambda: sl.Dilated(0), "Dilated: expected rate of at least 1, got 0"),
        (lambda: sl.Dilated(2.5), "Dilated: expected rate of at least 1, got 2.5"),
        (lambda: sl.Prefix("3"), "Prefix: expected an int or an integer tensor of shape (B,), got '3'"),
        (lambda: sl.Prefix(torch.ones(2, 2)), "Prefix: expected an int or an integer tensor"),
        (lambda: sl.Lengths(torch.ones(2)), "Lengths: expected an int or an integer tensor"),
        (lambda: sl.Padding(torch.ones(2, 3)), "Padding: expected a boolean tensor of shape (B, S), got a float32 tensor"),
        (lambda: sl.Documents(torch.ones(2, 3)), "Documents: expected integer ids of shape (S,) or (B, S)"),
        (lambda: sl.MaskFunction(3), "MaskFunction: expected a function"),
    ],
)
def test_masks_that_cannot_be(combine, message):
    with pytest.raises(sl.SoftlookupError) as caught:
        combine()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_tensors_and_functions_combine_from_either_side():
    seen = torch.rand(9, 13) > 0.5
    q, k, v = torch.randn(2, 4, 9, 5), torch.randn(2, 2, 13, 5), torch.randn(2, 2, 13, 3)
    want = sl.attend(q, k, v, mask=seen & torch.ones(9, 13, dtype=torch.bool).tril(4))
    for mask in (sl.Causal() & seen, seen & sl.Causal(), sl.Causal() & (lambda b, h, i, j: seen[i - 4, j])):
        assert isinstance(mask, Mask)
        torch.testing.assert_close(sl.attend(q, k, v, mask=mask), want)


@pytest.mark.parametrize("shape", [(6,), (5, 1), (5, 6), (2, 5, 6), (3, 1, 5, 6), (2, 1, 1, 5, 6), (2, 3, 2, 5, 6)])
def test_tensors_are_spread_over_all_leading_dimensions_alone_or_combined(shape):
    q, k, v = torch.randn(2, 3, 2, 5, 4), torch.randn(2, 3, 1, 6, 4), torch.randn(2, 3, 1, 6, 3)
    seen = torch.rand(shape) > 0.4
    alone = sl.attend(q, k, v, mask=seen.expand(2, 3, 2, 5, 6))
    for mask in (seen, Dense(seen), ~~Dense(seen), ~(Everything() & ~seen)):
        torch.testing.assert_close(sl.attend(q, k, v, mask=mask), alone)
    both = sl.attend(q, k, v, mask=(seen & torch.ones(5, 6).bool().tril(1)).expand(2, 3, 2, 5, 6))
    torch.testing.assert_close(sl.attend(q, k, v, mask=sl.Causal() & seen), both)
    bias = torch.randn(shape)
    torch.testing.assert_close(sl.attend(q, k, v, bias=bias), sl.attend(q, k, v, bias=bias.expand(2, 3, 2, 5, 6)))


@pytest.mark.parametrize(("offset", "stand"), [(-2, "-2 to 1"), (3, "3 to 6"), ([0, 2, 1, 6], "0 to 6"), ([-1, 2], "-1 to 2")])
def test_queries_of_documents_stand_among_their_keys(offset, stand):
    length = len(offset) if isinstance(offset, list) else 4
    q, k, ids = torch.randn(1, 2, length, 4), torch.randn(1, 2, 6, 4), torch.tensor([0, 0, 0, 1, 1, 1])
    offset = torch.tensor(offset) if isinstance(offset, list) else offset
    for mask in (sl.Documents(ids), ~sl.Documents(ids) & sl.Causal()):
        with pytest.raises(sl.SoftlookupError) as caught:
            sl.attend(q, k, k, mask=mask, query_offset=offset)
        assert str(caught.value) == f"Documents: expected query_ids, or queries at positions 0 to 5, got {stand}"
        sl.attend(q, k, k, mask=mask, query_offset=6 - length)
    sl.attend(q, k, k, mask=sl.Documents(ids, torch.zeros(length).long()), query_offset=offset)


def test_masks_say_what_they_are_and_refuse_to_be_true_or_false():
    assert repr(sl.Causal() & sl.Window(5) | ~sl.Prefix(3)) == "((Causal() & Window(5)) | ~Prefix(3))"
    with pytest.raises(sl.SoftlookupError, match="expected & | ~"):
        sl.Causal() and sl.Window(3)
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(sl.SoftlookupError, match="got the class Causal itself"):
        sl.attend(q, q, q, mask=sl.Causal)


def test_combined_masks_are_known_again_unless_what_they_show_was_changed():
    """Lists of blocks and small calls are kept by a mask's key; a key that stands for something else would be wrong weights."""

    class Odd(sl.masks.And):
        def visible(self, tile):
            return super().visible(tile) & (tile.j % 2 == 1)

    def window():
        return (sl.Causal() & sl.Window(3)) | ~sl.Dilated(2)

    assert key_of(window()) == key_of(window()) is not None and is_relative(window())
    others = sl.Causal() & sl.Window(3), sl.Causal() & sl.Window(4), sl.Causal() | sl.Window(3)
    assert len({key_of(mask) for mask in others}) == 3
    odd = Odd(sl.Causal(), sl.Window(3))
    assert key_of(odd) is None and not is_relative(odd) and key_of(odd & sl.Causal()) is None
