"""Associative memory against its formulas written out, and what Ramsauer et al. (2021) say of its fixed points."""

from __future__ import annotations

import pytest
import torch

import softlookup as sl
from softlookup.memory import separation, settle

from ..integrations.conftest import rng as rng


def made(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def energy(q, x, t):
    """Their eq. 2."""
    lse = torch.logsumexp(q @ x.T / t, 1)
    return q.square().sum(1) / 2 - t * lse + t * torch.tensor(len(x)).log() + x.square().sum(1).max() / 2


@pytest.mark.parametrize("t", [0.3, 1.0, 4.0])
def test_one_update_is_a_softmax(t, rng):
    q, x = made(rng, 5, 6), made(rng, 20, 6)
    got = settle(q, x, temperature=t, steps=1)
    p = torch.softmax(q @ x.T / t, 1)
    torch.testing.assert_close(got.state, p @ x)
    torch.testing.assert_close(got.energy, energy(q, x, t)[None])
    torch.testing.assert_close(got.moved, (p @ x - q).norm(dim=1))
    torch.testing.assert_close(got.entropy, -(p * p.log()).sum(1))
    torch.testing.assert_close(got.effective_patterns, 1 / p.square().sum(1))


def test_updates_in_turn_are_updates_at_once(rng):
    q, x = made(rng, 5, 6), made(rng, 20, 6)
    state = q
    for _ in range(4):
        state = settle(state, x, steps=1).state
    torch.testing.assert_close(settle(q, x, steps=4, tolerance=0).state, state)


@pytest.mark.parametrize("t", [0, 0.1, 0.5, 1.0, 3.0, torch.tensor([0.1, 0.2, 0.5, 1.0, 3.0], dtype=torch.float64)], ids=str)
def test_energy_never_rises_and_stays_in_its_bounds(t, rng):
    q, x = made(rng, 5, 6), made(rng, 40, 6)
    q[:2] *= 5
    got = settle(q, x, temperature=t)
    assert got.energy.diff(dim=0).max() < 1e-12
    largest = x.square().sum(1).max()
    assert got.energy[1:].min() >= 0 and got.energy[1:].max() <= 2 * largest  # from the first update on in the patterns' hull
    assert len(got.energy) < 100 and got.moved.max() <= 1e-5 * largest.sqrt()


def test_well_separated_patterns_are_fixed_points(rng):
    x = torch.nn.functional.normalize(made(rng, 30, 64), dim=1) * 8
    assert separation(x).min() > 20
    noisy = x + 0.5 * made(rng, 30, 64)
    got = settle(noisy, x)
    torch.testing.assert_close(got.state, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(got.effective_patterns, torch.ones_like(got.moved), rtol=0, atol=1e-4)
    assert len(got.energy) <= 4


def test_a_tight_cluster_is_a_metastable_state_at_its_mean(rng):
    far = torch.nn.functional.normalize(made(rng, 3, 32), dim=1) * 6
    cluster = far[:1] + 0.01 * made(rng, 5, 32)
    got = settle(far[:1] + 0.3 * made(rng, 1, 32), torch.cat([cluster, far[1:]]))
    torch.testing.assert_close(got.state, cluster.mean(0, keepdim=True), rtol=0, atol=0.01)
    assert abs(got.effective_patterns.item() - 5) < 0.1


def test_at_a_large_temperature_all_states_are_the_mean_of_all(rng):
    q, x = made(rng, 5, 6), made(rng, 20, 6)
    got = settle(q, x, temperature=1e6)
    torch.testing.assert_close(got.state, x.mean(0).expand(5, -1), rtol=0, atol=1e-4)
    torch.testing.assert_close(got.effective_patterns, torch.full_like(got.moved, 20))


def test_temperature_0_takes_the_pattern_of_the_largest_product(rng):
    q, x = made(rng, 5, 6), made(rng, 20, 6)
    torch.testing.assert_close(settle(q, x, temperature=0, steps=1).state, x[(q @ x.T).argmax(1)])


@pytest.mark.parametrize("engine", ["native", "streaming"])
def test_separation_is_the_dense_formula(engine, rng):
    x = made(rng, 300, 6).to(torch.float32 if engine == "native" else torch.float64)
    products = x @ x.T
    want = products.diagonal() - products.masked_fill(torch.eye(300, dtype=torch.bool), -torch.inf).max(1).values
    with sl.engine(engine):
        torch.testing.assert_close(separation(x), want, rtol=1e-5, atol=1e-5)


def test_patterns_that_are_alike_are_not_apart(rng):
    x = made(rng, 4, 6)
    assert separation(torch.cat([x, x])).abs().max() < 1e-12


def test_gradients(rng):
    q, x = made(rng, 3, 4).requires_grad_(), made(rng, 5, 4).requires_grad_()
    t = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def all_of(q, x, t):
        got = settle(q, x, temperature=t, steps=3, tolerance=0)
        return got.state, got.energy, got.entropy, got.effective_patterns

    assert torch.autograd.gradcheck(all_of, (q, x, t))
    assert torch.autograd.gradcheck(separation, (x,))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: settle(x[0], x), r"settle: expected state \(n, d\) and patterns .*, got \(6,\) and \(20, 6\)"),
        (lambda x: settle(x[:, :5], x), r"settle: expected .*, got \(20, 5\) and \(20, 6\)"),
        (lambda x: settle(x, x[:0]), r"settle: expected .* N of at least 1, got \(20, 6\) and \(0, 6\)"),
        (lambda x: settle(x, x, steps=0), "steps: expected at least 1, got 0"),
        (lambda x: settle(x, x, temperature=-1.0), "temperature: expected a finite number >= 0, got -1.0"),
        (lambda x: settle(x, x, temperature=torch.ones(3)), r"temperature: expected shape \(\) or \(20,\), got \(3,\)"),
        (lambda x: separation(x[:1]), r"separation: expected patterns \(N, d\) with N of at least 2, got \(1, 6\)"),
    ],
)
def test_errors_are_one_line(call, said, rng):
    with pytest.raises(sl.SoftlookupError, match=said) as error:
        call(made(rng, 20, 6))
    assert "\n" not in str(error.value)
