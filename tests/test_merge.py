"""The law of merging: any split of the keys into 1 … 5 parts, in any order, equals the whole; so does any split of queries."""

from __future__ import annotations

import itertools

import pytest
import torch

import softlookup as sl
from tests.cases import ALL_CASES, MASKS, Case, L, S, case_of, mask_of, tensors

SPLITS = [(), (5,), (1, 12), (2, 3, 9), (1, 4, 6, 11)]
DIFFERENTIABLE = [n for n in sl.CHEAP if n not in ("max_logit", "max_weight", "argmax", "visible")]


def parts_of(case: Case, cuts: tuple[int, ...], **more) -> list[sl.Summary]:
    """A summary for the keys between each two cuts."""
    edges = (0, *cuts, case.key.shape[-2])
    return [
        sl.lookup(
            case.query,
            case.key[..., a:b, :],
            case.value[..., a:b, :],
            **case.arguments,
            **more,
            key_offset=a,
            total_keys=edges[-1],
        )
        for a, b in itertools.pairwise(edges)
    ]


def shuffled(parts: list[sl.Summary]) -> list[sl.Summary]:
    return [parts[k] for k in torch.randperm(len(parts), generator=torch.Generator().manual_seed(4)).tolist()]


def nested(parts: list[sl.Summary]) -> sl.Summary:
    """Merged one by one from the right: another tree than `merge` itself uses."""
    if len(parts) == 1:
        return sl.merge(parts[0])
    return sl.merge(parts[0], nested(parts[1:]))


def same(got: sl.Summary, value: torch.Tensor, stats, names=sl.CHEAP) -> None:
    torch.testing.assert_close(got.value, value, rtol=1e-11, atol=1e-11)
    for each in names:
        torch.testing.assert_close(
            got.stats(each), stats[each], rtol=1e-10, atol=1e-10, msg=lambda m, e=each: f"{e}: {m}"
        )


def random_loss(value: torch.Tensor, read) -> torch.Tensor:
    """A random mixture of the value and of every differentiable statistic."""
    generator = torch.Generator().manual_seed(7)
    total = (value * torch.randn(value.shape, generator=generator, dtype=value.dtype)).sum()
    for name in DIFFERENTIABLE:
        x = read(name)
        x = torch.where(x.isfinite(), x, 0)
        total = total + (x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum()
    return total


@pytest.mark.parametrize("cuts", SPLITS, ids=len)
@pytest.mark.parametrize(("kind", "name"), ALL_CASES)
def test_any_split_equals_the_whole(kind, name, cuts):
    case = case_of(kind, name)
    value, stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=True)
    parts = parts_of(case, cuts)
    assert len(parts) == len(cuts) + 1
    same(sl.merge(*shuffled(parts)), value, stats)
    same(nested(parts), value, stats)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("bias", ["dense", "alibi", "table"])
def test_every_mask_with_every_bias(mask, bias):
    case = case_of("bias", bias)
    case.arguments["mask"] = mask_of(mask)
    value, stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=True)
    same(sl.merge(*parts_of(case, (2, 3, 9))), value, stats)


@pytest.mark.parametrize(("kind", "name"), ALL_CASES)
def test_gradients_through_a_merge_equal_those_of_the_whole(kind, name):
    case = case_of(kind, name)
    leaves = case.leaves()
    value, stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=True)
    want = torch.autograd.grad(random_loss(value, stats.__getitem__), leaves)
    parts = shuffled(parts_of(case, (1, 4, 6, 11)))
    for merged in (sl.merge(*parts), nested(parts)):
        got = torch.autograd.grad(random_loss(merged.value, merged.stats), leaves, retain_graph=True)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_each_gradient_through_a_merge_alone(name):
    case = case_of("normalizer", "sink_learned")
    leaves = case.leaves()
    grads = []
    for x in (
        sl.attend(case.query, case.key, case.value, **case.arguments, stats=name)[1][name],
        sl.merge(*parts_of(case, (2, 3, 9), stats=name)).stats(name),
    ):
        x = torch.where(x.isfinite(), x, 0)
        grads.append(torch.autograd.grad((x * x.detach().cos()).sum(), leaves, allow_unused=True, materialize_grads=True))
    assert max(g.abs().max() for g in grads[0]) > 1e-3
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", sl.CHEAP)
def test_a_statistic_that_was_asked_for_alone_merges(name):
    case = case_of("mask", "padding")
    _, stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=name)
    torch.testing.assert_close(sl.merge(*parts_of(case, (2, 3, 9), stats=name)).stats(name), stats[name])


@pytest.mark.parametrize("cuts", SPLITS, ids=len)
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropout_drops_the_same_weights_in_every_split(p, cuts):
    case = case_of("mask", "causal")
    leaves = case.leaves()
    value, stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=True, dropout_p=p, seed=5)
    merged = sl.merge(*parts_of(case, cuts, dropout_p=p, seed=5))
    same(merged, value, stats)
    torch.testing.assert_close(
        torch.autograd.grad(merged.value.cos().sum(), leaves), torch.autograd.grad(value.cos().sum(), leaves)
    )


def test_a_lookup_with_dropout_needs_a_seed():
    q, k, v = tensors()
    with pytest.raises(sl.SoftlookupError, match=r"^seed: expected an int.*got None$"):
        sl.lookup(q, k, v, dropout_p=0.5)


@pytest.mark.parametrize("cuts", SPLITS, ids=len)
def test_hard_retrieval_with_ties_across_parts(cuts):
    q, k, v = tensors()
    q, k = q.mul(4).round(), k.mul(4).round()  # whole numbers: a tie is exact in blocks of any shape
    k[:, :, 9:12] = k[:, :, 4:7]
    case = Case(q, k, v, {"score": sl.Dot(), "mask": mask_of("padding"), "normalizer": sl.Softmax(temperature=0)})
    leaves = case.leaves()
    value, stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=True)
    assert (stats.max_weight == 0.5).any()
    merged = sl.merge(*shuffled(parts_of(case, cuts)))
    same(merged, value, stats)
    got = torch.autograd.grad(random_loss(merged.value, merged.stats), leaves, allow_unused=True, materialize_grads=True)
    want = torch.autograd.grad(random_loss(value, stats.__getitem__), leaves, allow_unused=True, materialize_grads=True)
    assert not got[0].any() and not got[1].any() and got[2].any()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("sinks", [1, 3, 6])
def test_sink_mass_counts_the_first_keys_of_the_whole(sinks):
    case = case_of("mask", "padding")
    value, stats = sl.attend(case.query, case.key, case.value, **case.arguments, stats=True, sinks=sinks)
    same(sl.merge(*parts_of(case, (1, 4, 6, 11), sinks=sinks)), value, stats)


def test_merging_is_associative_and_commutative():
    case = case_of("score", "gaussian")
    parts = parts_of(case, (3, 8))
    a, b, c = parts
    first = sl.merge(sl.merge(a, b), c)
    second = sl.merge(a, sl.merge(b, c))
    same(second, first.value, first.stats())
    for order in itertools.permutations(parts):
        same(sl.merge(*order), first.value, first.stats())


def test_a_part_in_which_nothing_is_visible_changes_nothing():
    q, k, v = tensors()
    some = sl.lookup(q, k, v, total_keys=2 * S, query_offset=0)
    none = sl.lookup(q, k, v, mask=sl.Prefix(S), key_offset=S, query_offset=0)
    assert not none.stats("visible").any() and not none.value.any()
    for merged in (sl.merge(some, none), sl.merge(none, some), sl.merge(none, some, none)):
        assert torch.equal(merged.value, some.value)
        for each in sl.CHEAP:
            torch.testing.assert_close(merged.stats(each), some.stats(each), rtol=0, atol=1e-15)
    empty = sl.merge(none, none)
    assert not empty.value.any() and (empty.stats("logsumexp") == -torch.inf).all() and (empty.stats("argmax") == -1).all()
    for each in sl.CHEAP:
        assert not empty.stats(each).isnan().any(), each


def test_gradients_of_a_merge_with_an_empty_part():
    q, k, v = (t.requires_grad_() for t in tensors())
    some = sl.lookup(q, k, v, total_keys=2 * S, query_offset=0)
    none = sl.lookup(q, k, v, mask=sl.Prefix(S), key_offset=S, query_offset=0)
    want = torch.autograd.grad(random_loss(some.value, some.stats), (q, k, v), retain_graph=True)
    got = torch.autograd.grad(random_loss(*(lambda s: (s.value, s.stats))(sl.merge(none, some))), (q, k, v), retain_graph=True)
    torch.testing.assert_close(got, want)
    nothing = sl.merge(none, none)
    zeros = torch.autograd.grad(random_loss(nothing.value, nothing.stats), (q, k, v))
    assert not any(g.any() for g in zeros)


def test_parts_that_hold_extreme_logits():
    """One part outweighs the others by more than any float can tell: nothing overflows, the winner takes all."""
    q, k, v = tensors()
    k[:, :, :4] *= 1e4
    case = Case(q, k, v)
    value, stats = sl.attend(q, k, v, stats=True)
    merged = sl.merge(*shuffled(parts_of(case, (1, 4, 6, 11))))
    torch.testing.assert_close(merged.value, value)
    for each in sl.CHEAP:
        torch.testing.assert_close(merged.stats(each), stats[each], rtol=1e-9, atol=1e-12, msg=lambda m, e=each: f"{e}: {m}")


@pytest.mark.parametrize("name", [m for m in MASKS if m not in ("boolean", "rows", "float")])
@pytest.mark.parametrize("cuts", [(4,), (1, 2, 8)], ids=len)
def test_any_split_of_the_queries_equals_the_whole(name, cuts):
    q, k, v = tensors()
    more = {"mask": mask_of(name), "dropout_p": 0.2, "seed": 3, "score": sl.ScaledDot(ssmax=0.7)}
    more["bias"] = sl.ALiBi(torch.ones(4))
    value, stats = sl.attend(q, k, v, **more, stats=True)
    done = [
        sl.attend(q[:, :, a:b], k, v, **more, stats=True, query_offset=S - L + a)
        for a, b in itertools.pairwise((0, *cuts, L))
    ]
    torch.testing.assert_close(torch.cat([y for y, _ in done], 2), value)
    for each in sl.CHEAP:
        torch.testing.assert_close(torch.cat([s[each] for _, s in done], 2), stats[each])


@pytest.mark.parametrize("name", ["causal", "window", "padding", "documents", "dilated", "function"])
def test_queries_in_any_order_by_their_positions(name, any_engine):
    q, k, v = tensors()
    more = {"mask": mask_of(name), "dropout_p": 0.2, "seed": 3, "bias": sl.ALiBi(torch.ones(4)), "stats": True}
    order = torch.randperm(L)
    value, stats = sl.attend(q, k, v, **more)
    got, got_stats = sl.attend(q[:, :, order], k, v, **more, query_offset=order + S - L)
    torch.testing.assert_close(got, value[:, :, order])
    for each in sl.CHEAP:
        torch.testing.assert_close(got_stats[each], stats[each][:, :, order])


def test_queries_and_keys_split_at_once():
    q, k, v = tensors()
    value = sl.attend(q, k, v, mask=sl.Causal() & sl.Window(4))
    for a, b in ((0, 2), (2, 9)):
        parts = [
            sl.lookup(
                q[:, :, a:b], k[:, :, c:d], v[:, :, c:d], mask=sl.Causal() & sl.Window(4),
                query_offset=S - L + a, key_offset=c, total_keys=S,
            )
            for c, d in ((7, 13), (0, 3), (3, 7))
        ]  # fmt: skip
        torch.testing.assert_close(sl.merge(*parts).value, value[:, :, a:b])


def test_a_cache_that_grows_is_a_merge():
    """Decoding: each new chunk of keys is merged into what the query has seen."""
    q, k, v = tensors(q=1)
    seen = sl.lookup(q, k[:, :, :1], v[:, :, :1], total_keys=S)
    for j in range(1, S):
        seen = sl.merge(seen, sl.lookup(q, k[:, :, j : j + 1], v[:, :, j : j + 1], key_offset=j, total_keys=S))
    value, stats = sl.attend(q, k, v, stats=True)
    same(seen, value, stats)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_come_in_the_inputs_dtype_and_merge_in_full_precision(dtype):
    q, k, v = tensors(dtype=dtype)
    merged = sl.merge(*parts_of(Case(q, k, v), (2, 3, 9)))
    want = sl.attend(q.double(), k.double(), v.double())
    assert merged.value.dtype == dtype and merged.stats("entropy").dtype == torch.float32
    torch.testing.assert_close(merged.value.double(), want, rtol=torch.finfo(dtype).eps, atol=4e-6)


def test_a_statistic_that_one_part_lacks_is_missing():
    q, k, v = tensors()
    a = sl.lookup(q, k, v, total_keys=2 * S, stats=("entropy", "collision"))
    b = sl.lookup(q, k, v, key_offset=S, stats="entropy")
    merged = sl.merge(a, b)
    assert merged.stats("entropy").shape == q.shape[:3]
    with pytest.raises(sl.SoftlookupError, match=r"collision: expected to be asked for.*'collision'"):
        merged.stats("collision")
    assert "collision" not in merged.stats() and "entropy" in merged.stats()


def one(**more) -> sl.Summary:
    return sl.lookup(*tensors(), **more)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda: [], "merge: expected at least one Summary, got none"),
        (lambda: [one(), 3], "merge: expected Summary objects, got int"),
        (lambda: [one(), one().value], "merge: expected Summary objects, got a float64 tensor"),
        (lambda: [one(), sl.lookup(*tensors(q=8))], "merge: expected parts of the same queries"),
        (lambda: [one(), sl.lookup(*tensors(ev=4))], "merge: expected parts of the same queries"),
        (lambda: [one(), one(normalizer=sl.Softmax(temperature=0))], "merge: expected one temperature"),
        (lambda: [one(), one(normalizer=sl.Softmax(sink=0.0))], "merge: expected one sink"),
        (lambda: [one(normalizer=sl.Softmax(sink=1.0)), one(normalizer=sl.Softmax(sink=0.0))], "merge: expected one sink"),
        (lambda: [one(), sl.lookup(*tensors(dtype=torch.float32))], "merge: expected parts of one dtype"),
    ],
)
def test_parts_that_do_not_belong_together(parts, message):
    with pytest.raises(sl.SoftlookupError) as caught:
        sl.merge(*parts())
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "more",
    [{"key_offset": -1}, {"key_offset": 3, "total_keys": S}, {"total_keys": S - 1}, {"query_offset": torch.zeros(3)}],
)
def test_a_place_that_cannot_be(more):
    with pytest.raises(sl.SoftlookupError, match=r"expected.*got") as caught:
        one(**more)
    assert "\n" not in str(caught.value)
