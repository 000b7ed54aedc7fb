"""Every measure against dense float64 matrices, on planted structure, and on random weights, where it must be chance's."""

from __future__ import annotations

import math

import pytest
import torch

import softlookup as sl
from softlookup.geometry import (
    LayerWeights,
    composition,
    compositions,
    diversity,
    joint_rank,
    likeness,
    measure,
    principal_cosines,
    singular_pairs,
)


def random(heads: int = 6, groups: int = 2, d: int = 40, k: int = 8, v: int = 6, seed: int = 0) -> LayerWeights:
    make = torch.Generator().manual_seed(seed)
    shapes = (heads, d, k), (groups, d, k), (groups, d, v), (heads, v, d)
    return LayerWeights(*(torch.randn(shape, dtype=torch.float64, generator=make) for shape in shapes))


def orthonormal(d: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q


def one(query, key, value=None, output=None) -> LayerWeights:
    d, k = query.shape
    value = orthonormal(d, k, 91) if value is None else value
    output = orthonormal(d, k, 92).mT if output is None else output
    return LayerWeights(query[None], key[None], value[None], output[None])


def dense(layer: LayerWeights, h: int, root: torch.Tensor | None = None) -> dict[str, float]:
    """The definitions as they are written, with matrices of model size."""
    d, g = layer.query.shape[1], h * len(layer.key) // layer.heads
    root = torch.eye(d, dtype=torch.float64) if root is None else root
    plain = layer.query[h], layer.key[g], layer.value[g]
    q, k, v = (root @ x for x in plain)
    o = layer.output[h]

    def basis(w):
        return torch.linalg.svd(w, full_matrices=False)

    (uq, sq, _), (uk, sk, _), (uv, _, _) = basis(q), basis(k), basis(v)
    m, ov = q @ k.mT, layer.value[g] @ o
    s, s_out = torch.linalg.svdvals(m)[: q.shape[1]], torch.linalg.svdvals(ov)
    p = s.square() / s.square().sum()
    eigen = torch.linalg.eigvals(ov)
    c = root.mT @ root

    def read(w):
        w = w / torch.linalg.matrix_norm(w, 2)
        return (w.mT @ c @ w).trace() / c.trace()

    found = {
        "overlap": (uq.mT @ uk).square().sum() / q.shape[1],
        "weighted_overlap": (sq.diag() @ uq.mT @ uk @ sk.diag()).square().sum() / (sq.square().norm() * sk.square().norm()),
        "symmetric_share": (m + m.mT).square().sum() / (4 * m.square().sum()),
        "rank": s.square().sum() ** 2 / s.pow(4).sum(),
        "entropy_rank": torch.exp(-(p * p.log()).sum()),
        "query_value_overlap": (uq.mT @ uv).square().sum() / min(q.shape[1], v.shape[1]),
        "key_value_overlap": (uk.mT @ uv).square().sum() / min(k.shape[1], v.shape[1]),
        "query_read": read(plain[0]),
        "key_read": read(plain[1]),
        "value_read": read(plain[2]),
        "write": (o / torch.linalg.matrix_norm(o, 2)).square().sum() / d,
        "copying": eigen.sum().real / eigen.abs().sum(),
        "output_rank": s_out.square().sum() ** 2 / s_out.pow(4).sum(),
    }
    return {name: float(x) for name, x in found.items()}


@pytest.mark.parametrize("with_inputs", [False, True])
def test_against_matrices_of_model_size(with_inputs):
    layer = random()
    inputs, root = None, None
    if with_inputs:
        inputs = torch.randn(70, 40, dtype=torch.float64) @ torch.diag(torch.linspace(0.1, 3, 40, dtype=torch.float64)) + 1
        centred = inputs - inputs.mean(0)
        values, vectors = torch.linalg.eigh(centred.mT @ centred / 70)
        root = vectors @ values.clamp(min=0).sqrt().diag() @ vectors.mT
    got = measure(layer, inputs)
    for h in range(layer.heads):
        want = dense(layer, h, root)
        assert set(want) == set(got)
        for name, x in want.items():
            assert float(got[name].value[h]) == pytest.approx(x, rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize("with_inputs", [False, True])
def test_random_weights_are_at_chance(with_inputs):
    layer = random(heads=200, groups=200, d=96, k=12, v=12, seed=5)
    inputs = torch.randn(300, 96) * torch.linspace(0.2, 2, 96) if with_inputs else None
    for name, each in measure(layer, inputs).items():
        error = float(each.value.std()) * math.sqrt(1 / 200 + 1 / 64)  # chance may be a mean of 64 heads
        assert abs(float((each.value - each.chance).mean())) < 3.5 * error, name


def test_a_head_that_matches_alike():
    u = orthonormal(40, 8)
    alike, opposite = measure(one(u, u)), measure(one(u, -u))
    for found in (alike, opposite):
        assert float(found["symmetric_share"].value) == pytest.approx(1)
        assert float(found["overlap"].value) == pytest.approx(1) and float(found["weighted_overlap"].value) == pytest.approx(1)
    turned = torch.block_diag(*[torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)] * 4)
    assert float(measure(one(u, u @ turned))["symmetric_share"].value) == pytest.approx(0, abs=1e-12)


def test_a_head_of_rank_three():
    narrow = torch.zeros(40, 8, dtype=torch.float64)
    narrow[:, :3] = orthonormal(40, 3)
    found = measure(one(narrow, torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))))
    exact = measure(one(narrow, narrow))
    assert float(exact["rank"].value) == pytest.approx(3) and float(exact["entropy_rank"].value) == pytest.approx(3)
    assert float(found["rank"].value) < 3.0001
    assert float(exact["overlap"].value) == pytest.approx(1)
    assert float(exact["overlap"].chance) == pytest.approx(3 / 40)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_head_that_copies(sign):
    u = orthonormal(40, 8)
    assert float(measure(one(u, u, u, sign * u.mT))["copying"].value) == pytest.approx(sign)


def test_values_apart_from_what_is_matched():
    whole = orthonormal(40, 16)
    found = measure(one(whole[:, :8], whole[:, :8], whole[:, 8:]))
    assert float(found["query_value_overlap"].value) == pytest.approx(0, abs=1e-12)
    assert float(measure(one(whole[:, :8], whole[:, 8:], whole[:, 8:]))["key_value_overlap"].value) == pytest.approx(1)


def test_directions_that_never_occur_do_not_count():
    whole = orthonormal(40, 16)
    common, left, right = whole[:, :4], whole[:, 4:10], whole[:, 10:]
    layer = one(torch.cat([common, left], 1), torch.cat([common, right], 1), whole[:, :10], whole[:, :10].mT)
    inputs = torch.randn(500, 4, dtype=torch.float64) @ common.mT
    assert float(measure(layer)["overlap"].value) == pytest.approx(0.4)
    assert float(measure(layer, inputs)["overlap"].value) == pytest.approx(1)


def test_singular_pairs_and_cosines():
    layer = random()
    u, s, v = singular_pairs(layer, 3)
    for h in range(layer.heads):
        m = layer.query[h] @ layer.key[h // 3].mT
        assert torch.allclose(m @ v[h], u[h] * s[h])
        assert torch.allclose(torch.linalg.svdvals(m)[:3], s[h])
        q, k = (torch.linalg.qr(x).Q for x in (layer.query[h], layer.key[h // 3]))
        assert torch.allclose(principal_cosines(layer)[h], torch.linalg.svdvals(q.mT @ k))


def test_distance_turns_as_rotary_positions_do():
    layer = random(k=8)
    frequencies = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    x, y = torch.randn(2, 40, dtype=torch.float64)

    def rotate(z: torch.Tensor, position: float) -> torch.Tensor:
        turn = torch.polar(torch.ones(3, dtype=torch.float64), position * frequencies)
        pairs = torch.complex(z[:3], z[3:6]) * turn
        return torch.cat([pairs.real, pairs.imag, z[6:]])

    q, k = x @ layer.query[0], y @ layer.key[0]
    score = rotate(q, 17) @ rotate(k, 12)
    far = layer.at_distance(5, frequencies)
    assert float(x @ far.query[0] @ far.key[0].mT @ y) == pytest.approx(float(score))


def test_composition_against_matrices_of_model_size():
    a, b = random(seed=1), random(heads=4, groups=2, k=5, seed=2)
    got, chance = composition(a, b)
    assert chance == pytest.approx(40**-0.5)
    for i in range(a.heads):
        ov = a.value[i // 3] @ a.output[i]
        for j in range(b.heads):
            qk, out = b.query[j] @ b.key[j // 2].mT, b.value[j // 2] @ b.output[j]
            for name, w in (("query", qk), ("key", qk.mT), ("value", out)):
                want = (ov @ w).norm() / (ov.norm() * w.norm())
                assert float(got[name][i, j]) == pytest.approx(float(want)), name
    ((i, j, again),) = compositions([a, b])
    assert (i, j) == (0, 1) and all(torch.equal(again[name], got[name]) for name in got)
    wide, chance = composition(random(heads=1, groups=1, d=400, seed=3), random(heads=50, groups=50, d=400, seed=4))
    assert all(float(x.square().mean().sqrt()) == pytest.approx(chance, rel=0.05) for x in wide.values())


def test_likeness():
    layer = random()
    got = likeness(layer)
    m = [layer.query[h] @ layer.key[h // 3].mT for h in range(6)]
    w = [layer.value[h // 3] @ layer.output[h] for h in range(6)]
    for name, each in (("attends", m), ("moves", w)):
        flat = torch.stack(each).flatten(1)
        want = (flat @ flat.mT) / flat.norm(dim=1)[:, None] / flat.norm(dim=1)
        assert torch.allclose(got[name], want)


def test_diversity():
    contributions = torch.randn(5, 100, 12, dtype=torch.float64)
    whole, heads, spread = diversity(contributions)
    assert float(whole) == pytest.approx(float(heads - spread))
    same = torch.randn(1, 100, 12, dtype=torch.float64).expand(5, -1, -1)
    assert float(diversity(same)[2]) == pytest.approx(0, abs=1e-12)


def test_of_linear_cuts_heads_out():
    torch.manual_seed(0)
    q, k, v, o = torch.nn.Linear(24, 32), torch.nn.Linear(24, 16), torch.nn.Linear(24, 16), torch.nn.Linear(32, 24)
    layer = LayerWeights.of_linear(q.weight, k.weight, v.weight, o.weight, 8)
    x = torch.randn(3, 24)
    heads = (x @ q.weight.T).view(3, 4, 8)
    assert torch.allclose((x.double() @ layer.query[1]).float(), heads[:, 1], atol=1e-6)
    mixed = torch.randn(4, 3, 8)
    want = mixed.transpose(0, 1).flatten(1) @ o.weight.T
    assert torch.allclose(sum(mixed[h].double() @ layer.output[h] for h in range(4)).float(), want, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda w: LayerWeights(w.query, w.key[:, :, :3], w.value, w.output), "key of shape"),
        (lambda w: LayerWeights(w.query[:5], w.key, w.value, w.output[:5]), "multiple of key-value heads"),
        (lambda w: LayerWeights(w.query * math.nan, w.key, w.value, w.output), "finite weights"),
        (
            lambda w: LayerWeights.of_linear(torch.ones(9, 4), torch.ones(8, 4), torch.ones(8, 4), torch.ones(4, 8), 4),
            "multiples of 4",
        ),
        (lambda w: w.at_distance(1, torch.ones(5)), "at most 4 frequencies"),
    ],
)
def test_weights_that_do_not_fit(wrong, what):
    with pytest.raises(sl.SoftlookupError, match=what):
        wrong(random())


def test_joint_rank_counts_common_directions_once():
    make = torch.Generator().manual_seed(0)
    layer = LayerWeights(*(torch.randn(s, dtype=torch.float64, generator=make) for s in ((3, 32, 4),) * 3 + ((3, 4, 32),)))
    assert joint_rank(layer) == (12, 12)
    layer.output[2] = layer.output[0]
    layer.output[1, 3] = layer.output[0, 1] + layer.output[0, 2]
    assert joint_rank(layer) == (7, 12)
