"""The native engine where queries stand anywhere, as those that a watch draws do."""

from __future__ import annotations

import pytest
import torch

import softlookup as sl
from softlookup.engines import library

from .test_native_forms import agree

pytestmark = pytest.mark.skipif(library.load()[0] is None, reason=f"no native engine: {library.load()[1]}")

KEYS = 500
MASKS = {
    "none": lambda n: None,
    "causal": lambda n: sl.Causal(),
    "window": lambda n: sl.Causal() & sl.Window(70),
    "padded": lambda n: sl.Causal() & sl.Padding(torch.arange(KEYS) >= torch.tensor([[0], [130]])),
    "by row": lambda n: torch.rand(2, 6, n, KEYS) > 0.3,
    "by head": lambda n: torch.rand(6, 1, KEYS) > 0.3,
    "bias by row": lambda n: torch.randn(6, n, KEYS),
}


def drawn(n):
    """Places of n queries in no order, with gaps and repetitions."""
    return torch.randint(0, KEYS, (n,))


@pytest.mark.parametrize("n", [1, 2, 5, 40, 200, 400])
@pytest.mark.parametrize("mask", MASKS)
def test_values_statistics_and_gradients(n, mask):
    torch.manual_seed(n)
    q, k, v = torch.randn(2, 6, n, 16), torch.randn(2, 3, KEYS, 16), torch.randn(2, 3, KEYS, 8)
    said = {"mask": MASKS[mask](n), "query_offset": drawn(n)}
    agree([q, k, v], [], lambda: said)


def test_received_weight():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 60, 16), torch.randn(1, 2, KEYS, 16), torch.randn(1, 2, KEYS, 1)
    said = {"mask": sl.Causal(), "query_offset": drawn(60)}
    with sl.engine("reference"):
        want = sl.received(q.double(), k.double(), **said)
    assert sl.explain(q, k, v, **said).engine == "native"
    torch.testing.assert_close(sl.received(q, k, **said).double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "said",
    [{"bias": sl.ALiBi(torch.ones(4))}, {"dropout_p": 0.5}, {"key_offset": 10, "total_keys": 600}],
    ids=["alibi", "dropout", "part"],
)
def test_what_depends_on_places_otherwise_is_left_to_others(said):
    q, k, v = torch.randn(1, 4, 6, 16), torch.randn(1, 2, KEYS, 16), torch.randn(1, 2, KEYS, 8)
    plan = sl.explain(q, k, v, query_offset=drawn(6), **said)
    assert plan.engine != "native" and "stand anywhere" in plan.reasons["native"]
    many = torch.zeros(1, 1, 5000, 4)
    assert sl.explain(many, many, many, query_offset=torch.arange(5000)).engine != "native"
