"""Laws of attention within clusters."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

import softlookup as sl
from softlookup import sparse


def cluster_of(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    return (x @ centres.mT).argmax(-1)


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_attention_under_the_mask_of_equal_clusters(causal):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 70, 8), torch.randn(2, 2, 70, 8), torch.randn(2, 2, 70, 3)
    every = k.repeat_interleave(2, 1)
    centres = sparse.k_means(every.flatten(0, 1), 5, seed=3).unflatten(0, (2, 4))
    same = cluster_of(q, centres)[..., None] == cluster_of(every, centres)[..., None, :]
    names = ("entropy", "visible", "max_logit")
    inputs = [x.double().requires_grad_() for x in (q, k, v)]
    got, stats = sparse.route(*inputs, clusters=5, causal=causal, seed=3, stats=names)
    want, other = sl.attend(*inputs, mask=same & sl.Causal() if causal else same, stats=names)
    torch.testing.assert_close(got, want)
    for name in names:
        torch.testing.assert_close(stats[name], other[name])
    weights = torch.randn_like(got)
    for x, y in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (got, want)), strict=True):
        torch.testing.assert_close(x, y)


def test_one_cluster_is_exact_and_shapes_are_kept():
    q, k, v = (torch.randn(3, 2, 2, 40, 8) for _ in range(3))
    torch.testing.assert_close(sparse.route(q, k, v, clusters=1), sl.attend(q, k, v))
    torch.testing.assert_close(sparse.route(q[0, 0, 0], k[0, 0, 0], v[0, 0, 0], clusters=1), sl.attend(q, k, v)[0, 0, 0])
    assert sparse.route(q.bfloat16(), k.bfloat16(), v.bfloat16(), clusters=99).dtype == torch.bfloat16


def test_k_means_finds_clusters_that_are_there():
    torch.manual_seed(0)
    centres = normalize(torch.randn(6, 16), dim=-1)
    topic = torch.arange(300) % 6
    keys = centres[topic] * 5 + 0.1 * torch.randn(1, 1, 300, 16)
    found = sparse.k_means(keys[0], 6)
    assert ((normalize(centres, dim=-1) @ found[0].mT).amax(-1) > 0.99).all()
    q = centres[topic.flip(0)] * 5 + torch.zeros(1, 1, 1, 1)
    _, stats = sparse.route(q, keys, keys, clusters=6, stats=("visible", "entropy"))
    assert (stats.visible == 50).all()


def lloyd(points: torch.Tensor, clusters: int, start: int, steps: int) -> torch.Tensor:
    """Spherical k-means of unit vectors (S, E), point by point."""
    rows, centres = list(points), [points[start]]
    while len(centres) < min(clusters, len(rows)):
        centres.append(min(rows, key=lambda x: max(float(x @ c) for c in centres)))
    for _ in range(steps):
        members: list[list[torch.Tensor]] = [[] for _ in centres]
        for x in rows:
            members[max(range(len(centres)), key=lambda c: float(x @ centres[c]))].append(x)
        centres = [normalize(sum(some), dim=0) if some else c for c, some in zip(centres, members, strict=True)]
    return torch.stack(centres)


@pytest.mark.parametrize("clusters", [1, 4, 50])
@pytest.mark.parametrize("steps", [0, 1, 2, 10])
def test_k_means_are_the_steps_of_lloyd(steps, clusters, monkeypatch):
    points = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
    if steps != 10:  # the default
        monkeypatch.setattr(sparse.routing, "STEPS", steps)
    found = sparse.k_means(points, clusters, seed=47)
    for x, got in zip(normalize(points, dim=-1), found, strict=True):
        torch.testing.assert_close(got, lloyd(x, clusters, 7, steps))


def test_steps_of_k_means_bring_centres_nearer_until_they_are_the_directions_of_their_clusters(monkeypatch):
    points = normalize(torch.randn(2, 200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)
    near = []
    for steps in (0, 1, 2, 5, 10, 100):
        monkeypatch.setattr(sparse.routing, "STEPS", steps)
        centres = sparse.k_means(points, 5)
        near.append(float((points @ centres.mT).amax(-1).sum()))
    assert near == sorted(near) and near[-1] > near[0] + 1
    members = torch.nn.functional.one_hot(cluster_of(points, centres), 5).to(points)
    torch.testing.assert_close(centres, normalize(members.mT @ points, dim=-1))


def test_a_key_that_is_not_finite_leaves_other_clusters_alone():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 1, 60, 8), torch.randn(1, 1, 60, 8), torch.randn(1, 1, 60, 8)
    bad = k.clone()
    bad[0, 0, 7] = torch.nan
    _, stats = sparse.route(q, bad, v, clusters=6, stats=("visible",))
    assert stats.visible.unique().numel() > 1 and stats.visible.max() < 50


def test_blocks_of_other_clusters_are_skipped():
    """One key of another cluster that is not finite spoils nobody else."""
    q = torch.eye(2).repeat_interleave(200, 0)[None, None]
    v = torch.ones_like(q)
    v[0, 0, 399] = torch.nan
    got = sparse.route(q, q * 3, v, clusters=2, seed=0)
    assert got[0, 0, :200].isfinite().all() and got[0, 0, 200:].isnan().all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"clusters": 0}, "route: expected clusters of at least 1, got 0"),
        ({"clusters": 2, "causal": True}, "causal: expected as many keys as queries, 5, got 6"),
        ({"clusters": 2, "stats": ("distance",)}, "route: expected statistics that do not tell positions, got distance"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, said):
    with pytest.raises(sl.SoftlookupError) as error:
        sparse.route(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4), **arguments)
    assert str(error.value) == said
    with pytest.raises(sl.SoftlookupError, match="expected queries and keys of the same width, got 4 and 3"):
        sparse.route(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 6, 3), torch.randn(1, 2, 6, 4), clusters=2)
    with pytest.raises(sl.SoftlookupError, match="k_means: expected clusters of at least 1, got 0"):
        sparse.k_means(torch.randn(2, 6, 3), 0)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([1], "points (N, S, E) of real numbers, got list"),
        (torch.ones(1, 4, 2).int(), "points (N, S, E) of real numbers, got a int32 tensor of shape (1, 4, 2)"),
        (torch.ones(4, 2), "points (N, S, E) of real numbers, got a float32 tensor of shape (4, 2)"),
        (torch.ones(1, 0, 2), "points (N, S, E) of real numbers, got a float32 tensor of shape (1, 0, 2)"),
        (torch.full((1, 4, 2), torch.nan), "finite numbers, got some that are not"),
        (torch.full((1, 4, 2), torch.inf), "finite numbers, got some that are not"),
    ],
)
def test_points_that_k_means_cannot_be_of_are_one_line(points, said):
    with pytest.raises(sl.SoftlookupError) as error:
        sparse.k_means(points, 2)
    assert str(error.value) == f"k_means: expected {said}"
