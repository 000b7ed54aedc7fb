"""Seen: statistics over the queries that count, by definition, and the table that shows them."""

import builtins
import sys

import pytest
import torch

import softlookup as sl
from softlookup.watching import Call, Seen

NAMES = ("entropy", "max_logit", "visible", "distance")


def call(rng, layer="attn", batch=2, heads=3, length=7, cross=False, rows=None, **arguments):
    q, k, v = (torch.randn(batch, heads, length, 4, generator=rng) for _ in range(3))
    return Call(layer, q, k, v, arguments, rows, cross)


def record(seen, call):
    names = tuple(n for n in NAMES if not (call.cross and n == "distance"))
    _, stats = sl.attend(call.query, call.key, call.value, stats=names, **call.arguments)
    seen.record(call, stats)
    return stats


def test_moments_and_quantiles_are_over_real_queries_that_see_something(rng):
    rows = torch.tensor([[False, False, True, True, True, True, True], [True] * 7])
    keep = torch.tensor([[False, False, True, True, True, True, True], [False] * 7])  # nothing visible in batch entry 1
    seen = Seen(NAMES)
    stats = record(seen, call(rng, rows=rows, mask=sl.Causal() & sl.Padding(keep)))
    layer = seen.layers["attn"]
    counted = stats.entropy[0, :, 2:].double()  # (H, 5)
    assert layer.count == 5 and layer.counts.tolist() == [5, 5, 5]
    torch.testing.assert_close(layer.mean("entropy"), counted.mean(1))
    torch.testing.assert_close(layer.std("entropy"), counted.std(1, correction=0))
    torch.testing.assert_close(layer.min("entropy"), counted.amin(1))
    torch.testing.assert_close(layer.max("entropy"), counted.amax(1))
    torch.testing.assert_close(layer.quantile("entropy", 0.5), counted.quantile(0.5, dim=1), rtol=0.011, atol=1e-6)


def test_calls_add_up_whatever_their_shapes(rng):
    seen, entropies = Seen(NAMES), []
    for batch, length in ((1, 3), (2, 9), (3, 1)):
        stats = record(seen, call(rng, batch=batch, length=length))
        entropies.append(stats.entropy.transpose(0, 1).flatten(1))
    layer, whole = seen.layers["attn"], torch.cat(entropies, 1).double()
    assert (layer.calls, layer.count) == (3, 3 + 18 + 3)
    torch.testing.assert_close(layer.mean("entropy"), whole.mean(1))
    torch.testing.assert_close(layer.std("entropy"), whole.std(1, correction=0))


def test_heads_may_count_different_queries(rng):
    visible = torch.rand(2, 3, 7, 7, generator=rng) > 0.2
    visible[:, 0, 2:] = False  # head 0 sees something from two positions only
    seen = Seen(NAMES)
    stats = record(seen, call(rng, mask=visible))
    layer = seen.layers["attn"]
    assert layer.counts.tolist() == [4, 14, 14] and layer.count == 14
    torch.testing.assert_close(layer.mean("entropy")[0], stats.entropy[:, 0, :2].mean().double())
    torch.testing.assert_close(layer.max("entropy")[0], stats.entropy[:, 0, :2].amax().double())


def test_a_call_in_which_nothing_counts(rng):
    seen = Seen(NAMES)
    record(seen, call(rng, rows=torch.zeros(2, 7, dtype=torch.bool)))
    layer = seen.layers["attn"]
    assert (layer.calls, layer.count) == (1, 0) and layer.mean("entropy").isnan().all()
    assert layer.quantile("entropy", 0.5).isnan().all() and "-" in str(seen.table())


def test_double_precision_is_kept(rng):
    one, seen = call(rng), Seen(NAMES)
    double = Call("attn", one.query.double(), one.key.double(), one.value.double())
    stats = record(seen, double)
    want = stats.entropy.transpose(0, 1).flatten(1).mean(1)
    torch.testing.assert_close(seen.layers["attn"].mean("entropy"), want, rtol=1e-14, atol=0)


def test_rows_are_those_of_the_last_call_and_only_on_request(rng):
    rows = torch.tensor([[True, False], [True, True]])
    for keep in ("heads", "rows"):
        seen = Seen(NAMES, keep)
        record(seen, call(rng, length=5))
        stats = record(seen, call(rng, length=2, rows=rows))
        if keep == "rows":
            got = seen.layers["attn"].rows("entropy")
            assert got[0, :, 1].isnan().all()
            torch.testing.assert_close(got[rows[:, None].expand_as(got)], stats.entropy[rows[:, None].expand_as(got)])
        else:
            assert not any(isinstance(x, torch.Tensor) for x in vars(seen.layers["attn"]).values())
            with pytest.raises(sl.SoftlookupError, match='keep="rows"'):
                seen.layers["attn"].rows("entropy")


def test_a_module_that_attends_in_two_ways_is_two_layers(rng):
    seen = Seen(NAMES)
    for heads, cross in ((3, False), (3, True), (2, False), (3, False)):
        record(seen, call(rng, heads=heads, cross=cross))
    assert [(layer.heads, layer.cross, layer.calls) for layer in seen.layers.values()] == [
        (3, False, 2),
        (3, True, 1),
        (2, False, 1),
    ]


def test_cross_attention_has_no_distance(rng):
    seen = Seen(NAMES)
    record(seen, call(rng, cross=True))
    with pytest.raises(sl.SoftlookupError, match="cross attention has none"):
        seen.layers["attn"].mean("distance")
    assert "-" in str(seen.table(("entropy", "distance")))


def test_unknown_names_say_what_there_is(rng):
    seen = Seen(NAMES)
    record(seen, call(rng))
    with pytest.raises(sl.SoftlookupError, match=r"expected one of entropy, .*got 'entropi'"):
        seen.layers["attn"].mean("entropi")
    with pytest.raises(sl.SoftlookupError, match="expected statistics among"):
        seen.table(("entropi",))
    with pytest.raises(sl.SoftlookupError, match="at most 6"):
        Seen(sl.CHEAP).table(sl.CHEAP)
    with pytest.raises(sl.SoftlookupError, match='"heads", "rows" or "graph"'):
        Seen(NAMES, "all")


def test_the_table_fits_80_columns_and_has_a_line_per_head(rng):
    seen = Seen(sl.CHEAP)
    for i in range(3):
        one = call(rng, layer=f"a_very_long_model_name.with_blocks.{i}.attention.self_attention", mask=sl.Causal())
        _, stats = sl.attend(one.query, one.key, one.value, stats=True, scale=1e6 if i == 2 else None, **one.arguments)
        seen.record(one, stats)
    lines = str(seen.table()).splitlines()
    assert len(lines) == 1 + 3 * 3 and max(map(len, lines)) <= 80
    assert lines[0].split() == ["layer", "head", "entropy", "H/logn", "max", "p", "max", "s", "sink", "dist"]
    assert lines[1].startswith("…") and "0.attention.self_attention" in lines[1]


def test_a_table_of_one_statistic(rng):
    seen = Seen(NAMES)
    record(seen, call(rng))
    assert seen.table("max_logit").columns == ("max_logit",) and str(seen.table("max_logit")) == str(seen.table(["max_logit"]))


def test_to_frame_needs_pandas_and_says_so(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(sl.SoftlookupError, match="pandas"):
        Seen(NAMES).to_frame()


def test_to_frame_has_a_row_per_layer_and_head(rng):
    pytest.importorskip("pandas")
    seen = Seen(NAMES)
    record(seen, call(rng))
    frame = seen.to_frame()
    assert len(frame) == 3 and {"layer", "head", "count", "entropy_mean", "entropy_median"} <= set(frame.columns)
