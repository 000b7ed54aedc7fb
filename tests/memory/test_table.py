"""A table answers as the dense formula does, however its rows came to lie where they lie."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch.nn.functional import normalize

import softlookup as sl
from softlookup.errors import SoftlookupError
from softlookup.memory import SoftTable

pytest.importorskip("faiss")


def clustered(rows=2000, cells=40, width=16, spread=0.2, values=3, seed=0):
    """Unit centres, rows within `spread` of them, values, and queries near rows."""
    draw = torch.Generator().manual_seed(seed)
    centres = normalize(torch.randn(cells, width, generator=draw), dim=1)
    around = normalize(torch.randn(rows, width, generator=draw), dim=1) * spread * torch.rand(rows, 1, generator=draw)
    keys = centres[torch.randint(cells, (rows,), generator=draw)] + around
    queries = keys[torch.randint(rows, (50,), generator=draw)]
    return keys, torch.randn(rows, values, generator=draw), queries


def dense(query, keys, values, temperature):
    """Value and weights by the formula, in float64."""
    weights = ((query.double() @ keys.double().T) / temperature).softmax(1)
    return weights @ values.double(), weights


@pytest.fixture(params=["memory", "folder", "folder in small shards"])
def make(request, tmp_path):
    """Makes a table of these rows."""
    made = []

    def table(keys, values=None, payloads=None, ids=None):
        if request.param == "memory":
            return SoftTable.of(keys, values, payloads, ids)
        rows = 300 if request.param.endswith("shards") else None
        width = 0 if values is None else values.shape[1]
        made.append(SoftTable.create(tmp_path / f"table{len(made)}", keys.shape[1], width, shard_rows=rows))
        made[-1].add(keys, values, payloads, ids)
        return made[-1]

    yield table
    for each in made:
        each.close()


def test_equals_the_formula(make):
    keys, values, queries = clustered()
    table = make(keys, values)
    found = table.lookup(queries, 0.1)
    value, weights = dense(queries, keys, values, 0.1)
    torch.testing.assert_close(found.value.double(), value, rtol=1e-5, atol=1e-5)
    entropy = -(weights * weights.log()).sum(1)
    torch.testing.assert_close(found.stats.entropy.double(), entropy, rtol=1e-4, atol=1e-4)
    assert found.certified and found.missed.max() == 0 and found.ids is None
    one = table.lookup(queries[0], 0.1)
    torch.testing.assert_close(one.value, found.value[0])
    assert one.stats.entropy.shape == ()


def test_changes_then_lookup(make):
    keys, values, queries = clustered()
    table = make(keys[:1000], values[:1000])
    more = table.add(keys[1000:], values[1000:])
    assert more.tolist() == list(range(1000, 2000))
    gone, changed = list(range(0, 2000, 7)), list(range(1, 2000, 7))
    table.delete(gone)
    table.update(changed, values=-values[changed])
    table.update([2], keys=keys[:1] * 2)
    for compacted in (False, True):
        if compacted:
            table.compact()
        keep = torch.ones(2000, dtype=torch.bool)
        keep[gone] = False
        now, others = values.clone(), keys.clone()
        now[changed] *= -1
        others[2] = keys[0] * 2
        value, _ = dense(queries, others[keep], now[keep], 0.1)
        found = table.lookup(queries, 0.1)
        torch.testing.assert_close(found.value.double(), value, rtol=1e-5, atol=1e-5)
        assert len(table) == int(keep.sum()) and bool((found.stats.visible == len(table)).all())
        assert table.verify() == [] and table.stats()["deleted"] == (0 if compacted else len(gone) + len(changed) + 1)
    assert table.add(keys[:1], values[:1]).tolist() == [2000]  # an id is not given twice


@settings(max_examples=25, deadline=None)
@given(some.data())
def test_any_changes_equal_a_dictionary(data):
    table, known, fresh = SoftTable.of(torch.ones(1, 2), torch.ones(1, 1), [None]), {0: ([1.0, 1.0], [1.0], None)}, 1
    numbers = some.floats(-2, 2, width=16)
    row = some.tuples(
        some.lists(numbers, min_size=2, max_size=2), some.lists(numbers, min_size=1, max_size=1), some.text(max_size=3)
    )
    for _ in range(data.draw(some.integers(1, 8))):
        kind = data.draw(some.sampled_from(("add", "update", "delete", "compact")))
        ids = [i for i in known if data.draw(some.booleans())]
        if kind == "add":
            rows = data.draw(some.lists(row, min_size=1, max_size=4))
            ids, fresh = list(range(fresh, fresh + len(rows))), fresh + len(rows)
        else:
            rows = [data.draw(row) for _ in ids]
        columns = [list(column) for column in zip(*rows, strict=True)]
        if kind == "add":
            table.add(torch.tensor(columns[0]), torch.tensor(columns[1]), columns[2])
        elif kind == "update" and rows:
            table.update(ids, torch.tensor(columns[0]), torch.tensor(columns[1]), columns[2])
        elif kind == "delete":
            table.delete(ids)
            known = {i: r for i, r in known.items() if i not in ids}
        elif kind == "compact":
            table.compact()
        if kind in ("add", "update"):
            known |= dict(zip(ids, rows, strict=True))
    found = table.get()
    got = zip(found.ids.tolist(), found.keys.tolist(), found.values.tolist(), found.payloads, strict=True)
    assert {i: (k, v, p) for i, k, v, p in got} == {i: tuple(r) for i, r in known.items()}
    assert len(table) == len(known) and table.verify() == []


def test_payloads_and_ids(make):
    keys = torch.eye(4)
    payloads = [b"\x00\xff", {"word": "é"}, "text", None]
    table = make(keys, None, payloads, [7, 3, 2**62 - 1, 1])
    assert table.get([1, 2**62 - 1, 3, 7]).payloads == [None, "text", {"word": "é"}, b"\x00\xff"]
    found = table.lookup(keys[1] * 5, top_k=2)
    assert found.value is None and found.ids[0] == 3 and table.get(found.ids[:1]).payloads == [{"word": "é"}]
    table.update([7], payloads=["other"])
    assert table.get([7]).payloads == ["other"] and torch.equal(table.get([7]).keys, keys[:1])


def test_temperature_zero_retrieves(make):
    keys, values, queries = clustered()
    table = make(keys, values)
    best = (queries @ keys.T).argmax(1)
    found = table.lookup(queries, 0)
    assert torch.equal(found.value, values[best])
    named = table.lookup(queries, 0, top_k=1)
    assert torch.equal(named.ids[:, 0], best) and torch.equal(named.value, values[best]) and bool((named.weights == 1).all())
    table.index("cells", 40)
    celled = table.lookup(queries, 0, tolerance=0.5, top_k=1)
    assert torch.equal(celled.ids[:, 0], best) and torch.equal(celled.value, values[best]) and celled.missed.max() == 0


def test_temperature_of_each_query(make):
    keys, values, queries = clustered()
    table, each = make(keys, values), torch.linspace(0.05, 0.5, 50)
    table.index("cells", 40)
    for said in ({}, {"tolerance": 1e-6}, {"top_k": 2000}):
        found = table.lookup(queries, each, **said)
        for n in (0, 49):
            value, _ = dense(queries[n : n + 1], keys, values, each[n].item())
            torch.testing.assert_close(found.value[n].double(), value[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [1, 5, 3000])
def test_best_rows(make, k):
    keys, values, queries = clustered()
    table = make(keys, values)
    table.delete(list(range(0, 2000, 3)))
    keep = torch.arange(2000) % 3 != 0
    k = min(k, int(keep.sum()))
    scores, where = (queries @ keys[keep].T).topk(k, 1)
    found = table.lookup(queries, 0.05, top_k=k)
    torch.testing.assert_close(found.scores, scores, rtol=1e-5, atol=1e-6)
    assert (found.ids == keep.nonzero()[where, 0]).float().mean() > 0.99  # but for ties
    torch.testing.assert_close(found.weights.sum(1), torch.ones(50), rtol=1e-4, atol=1e-4)
    _, weights = dense(queries, keys[keep], values[keep], 0.05)
    missed = 1 - weights.gather(1, where).sum(1)
    assert bool((missed <= found.missed.double() + 1e-6).all())
    chosen = weights.gather(1, where)
    value = (chosen / chosen.sum(1, keepdim=True))[:, None] @ values[keep][where].double()
    torch.testing.assert_close(found.value.double(), value[:, 0], rtol=1e-4, atol=1e-4)


def adversarial():
    """Rows that make bounds bad: one cell's worth far away, many alike, a few huge, all at one place."""
    draw = torch.Generator().manual_seed(1)
    far = torch.randn(300, 8, generator=draw)
    far[::50] *= 30
    yield "outliers", far
    yield "alike", torch.ones(300, 8)
    yield "on a line", torch.linspace(-1, 1, 300)[:, None] * torch.ones(8)
    yield "two heaps", torch.cat([torch.full((299, 8), -1.0), torch.full((1, 8), 3.0)])
    yield "tiny", torch.randn(300, 8, generator=draw) * 1e-20


@pytest.mark.parametrize("name, keys", adversarial(), ids=[name for name, _ in adversarial()])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("tolerance", [1e-6, 1e-2, 0.5])
def test_the_certificate_holds(name, keys, temperature, tolerance):
    table = SoftTable.of(keys, keys[:, :2].clone())
    table.index("cells", 12)
    table.delete([4, 5])
    table.add(keys[:3] + 0.1, keys[:3, :2])
    rows = table.get()
    queries = torch.cat([keys[:20], -keys[:5], torch.randn(20, 8), torch.zeros(1, 8)])
    found = table.lookup(queries, temperature, tolerance=tolerance, top_k=1)
    _, weights = dense(queries, rows.keys, rows.values, temperature)
    assert bool((found.missed <= tolerance * (1 + 1e-5)).all())
    # What was read is a set of rows: its share of the whole is exp of the difference of the log-normalizers.
    whole = ((queries.double() @ rows.keys.double().T) / temperature).logsumexp(1)
    share = (found.stats.logsumexp.double() - whole).exp()
    rounding = 1e-5 * (1 + (queries.norm(dim=1).double() * rows.keys.norm(dim=1).max()) / temperature)
    assert bool((1 - share <= found.missed.double() + rounding).all())


def test_cells_read_less_and_as_much_as_asked(make):
    keys, values, queries = clustered(spread=0.1)
    table = make(keys, values)
    table.index("cells", 40)
    before = 0.0
    for tolerance in (0.3, 1e-2, 1e-4, 1e-8):
        found = table.lookup(queries, 0.05, tolerance=tolerance, top_k=5)
        value, weights = dense(queries, keys, values, 0.05)
        assert bool((found.missed <= tolerance).all())
        apart = (values[:, None] - values).norm(dim=-1).max()
        assert bool(((found.value - value).norm(dim=1) <= found.missed * apart + 1e-4).all())
        read = found.stats.visible.float().mean()
        assert before <= read < (2000 if tolerance > 1e-3 else 2001)
        before = read
    assert bool((found.unseen <= found.scores[:, 0]).all())
    exact = table.lookup(queries, 0.05, top_k=5)
    assert torch.equal(exact.ids[:, 0], found.ids[:, 0])


def test_graph_finds_most_and_claims_nothing(make):
    keys, values, queries = clustered()
    table = make(keys, values)
    exact = table.lookup(queries, 0.1, top_k=3)
    table.index("graph")
    table.delete(exact.ids[:, 0].unique())
    table.add(keys[:10], values[:10])
    found = table.lookup(queries, 0.1, top_k=3)
    assert not found.certified and bool(found.missed.isnan().all())
    assert not bool(torch.isin(found.ids, exact.ids[:, 0]).any())
    left = table.get()
    best = (queries @ left.keys.T).topk(3, 1)
    assert (found.scores[:, 0] >= best.values[:, 0] - 1e-5).float().mean() > 0.9


def test_an_index_lives_in_the_folder(tmp_path):
    keys, values, queries = clustered()
    with SoftTable.create(tmp_path / "t", 16, 3) as table:
        table.add(keys, values)
        for kind in ("graph", "cells"):
            table.index(kind)
        said = table.lookup(queries, 0.05, tolerance=1e-3)
    with SoftTable.open(tmp_path / "t") as table:
        again = table.lookup(queries, 0.05, tolerance=1e-3)
        assert torch.equal(said.value, again.value)
        assert sorted(table.stats()["index"]) == ["cells over 2,000 rows", "graph over 2,000 rows"]
        assert table.lookup(queries, top_k=2).missed.isnan().all()
        assert len(list((tmp_path / "t").glob("index-*"))) == 2
    with SoftTable.open(tmp_path / "t", write=True) as table:
        table.index("cells", 10)
        assert len(list((tmp_path / "t").glob("index-*"))) == 2
        table.compact()
        with pytest.raises(SoftlookupError, match="index\\('cells'\\)"):
            table.lookup(queries, 0.05, tolerance=1e-3)
        assert not list((tmp_path / "t").glob("index-*"))


def test_gradients():
    keys, values = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 2, dtype=torch.float64)
    query, temperature = torch.randn(4, 3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (query, temperature, keys, values)]

    def ask(query, temperature, keys, values, **said):
        table = SoftTable.of(keys, values)
        if "tolerance" in said:
            table.index("cells", 3)
        found = table.lookup(query, temperature, **said)
        return found.value, found.stats.entropy

    for said in ({}, {"top_k": 4}, {"tolerance": 0.01}, {"steps": 3}):
        assert torch.autograd.gradcheck(lambda *x, s=said: ask(*x, **s), inputs), said


def test_gradients_to_the_query_of_a_table_on_the_disk(tmp_path):
    keys, values, queries = clustered()
    with SoftTable.create(tmp_path / "t", 16, 3, shard_rows=300) as table:
        table.add(keys, values)
        query = queries.clone().requires_grad_()
        table.lookup(query, 0.1).value.square().sum().backward()
    same = queries.clone().requires_grad_()
    ((same @ keys.T / 0.1).softmax(1) @ values).square().sum().backward()
    torch.testing.assert_close(query.grad, same.grad, rtol=1e-4, atol=1e-4)


def test_parts_on_several_tables_merge():
    keys, values, queries = clustered()
    tables = SoftTable.of(keys[:700], values[:700]), SoftTable.of(keys[700:], values[700:])
    whole = sl.merge(*(table.lookup(queries, 0.1).summary for table in tables))
    torch.testing.assert_close(whole.value.double(), dense(queries, keys, values, 0.1)[0], rtol=1e-5, atol=1e-5)


def test_steps_are_repeated_lookups(make):
    keys, values, queries = clustered()
    table, asked = make(keys, values), queries
    for _ in range(2):
        asked = dense(asked, keys, keys, 0.05)[0].float()
    torch.testing.assert_close(
        table.lookup(queries, 0.05, steps=3).value, table.lookup(asked, 0.05).value, rtol=1e-3, atol=1e-3
    )


def test_other_scores(make):
    keys, values, queries = clustered()
    found = make(keys, values).lookup(queries, score=sl.Gaussian(0.2))
    weights = (-(queries[:, None] - keys).square().sum(-1) / (2 * 0.2**2)).softmax(1)
    torch.testing.assert_close(found.value, weights @ values, rtol=1e-4, atol=1e-4)


WRONG = [
    (lambda t: t.lookup(torch.ones(3)), r"query: expected a tensor \(n, 4\) or \(4,\), got \(1, 3\)"),
    (lambda t: t.lookup([1.0]), "query: expected a tensor"),
    (lambda t: t.lookup(torch.full((4,), float("nan"))), "query: expected finite"),
    (lambda t: t.lookup(torch.ones(4), -1), "temperature"),
    (lambda t: t.lookup(torch.ones(4), torch.ones(3)), "temperature"),
    (lambda t: t.lookup(torch.ones(4), top_k=0), "top_k"),
    (lambda t: t.lookup(torch.ones(4), tolerance=1e-3), "index"),
    (lambda t: t.lookup(torch.ones(4), tolerance=2), "tolerance"),
    (lambda t: t.lookup(torch.ones(4), steps=0), "steps"),
    (lambda t: t.lookup(torch.ones(4), top_k=1, score=sl.Gaussian(1.0)), "score"),
    (lambda t: t.lookup(torch.ones(4), stats="distance"), "stats"),
    (lambda t: t.add(torch.ones(2, 3), torch.ones(2, 2)), "keys: expected"),
    (lambda t: t.add(torch.ones(2, 4)), "values: expected"),
    (lambda t: t.add(torch.ones(2, 4), torch.ones(3, 2)), "values: expected one for each"),
    (lambda t: t.add(torch.ones(1, 4), torch.full((1, 2), float("inf"))), "values: expected finite"),
    (lambda t: t.add(torch.ones(1, 4), torch.ones(1, 2), [object()]), "payload"),
    (lambda t: t.add(torch.ones(1, 4), torch.ones(1, 2), ids=[0]), "ids: expected ids that are not in use, got 0"),
    (lambda t: t.add(torch.ones(1, 4), torch.ones(1, 2), ids=["a"]), "ids: expected whole numbers"),
    (lambda t: t.add(torch.ones(2, 4), torch.ones(2, 2), ids=[5, 5]), "each once"),
    (lambda t: t.update([9], torch.ones(1, 4)), "ids: expected ids of rows, found none of 9"),
    (lambda t: t.delete([0, 0]), "each once"),
    (lambda t: t.delete([0, 9]), "none of 9"),
    (lambda t: t.get([9]), "none of 9"),
    (lambda t: t.index("tree"), "index: expected 'cells' or 'graph', got 'tree'"),
    (lambda t: t.index("cells", 99), "cells: expected"),
    (lambda t: t.index("graph", 2), "cells: expected with"),
    (lambda t: t.lookup(torch.ones(4), "hot"), "temperature"),
]


@pytest.mark.parametrize("act, said", WRONG)
def test_one_line_says_what_was_wrong(make, act, said):
    table = make(torch.eye(4), torch.ones(4, 2))
    with pytest.raises(SoftlookupError, match=said) as caught:
        act(table)
    assert "\n" not in str(caught.value)
    assert len(table) == 4 and table.verify() == [] and torch.equal(table.get().keys, torch.eye(4))


def test_folders(tmp_path):
    with pytest.raises(SoftlookupError, match="expected the folder of a table"):
        SoftTable.open(tmp_path)
    SoftTable.create(tmp_path / "a" / "b", 2).close()
    with pytest.raises(SoftlookupError, match="new or empty"):
        SoftTable.create(tmp_path / "a" / "b", 2)
    with SoftTable.open(tmp_path / "a" / "b") as table, pytest.raises(SoftlookupError, match="expected rows"):
        table.lookup(torch.ones(2))
    (tmp_path / "a" / "b" / "table.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(SoftlookupError, match="not a database"):
        SoftTable.open(tmp_path / "a" / "b")
