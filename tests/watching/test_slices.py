"""Parts of a call equal the same parts of the whole, whatever masks and biases it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import softlookup as sl
from softlookup.masks import Dense
from softlookup.operator import scores_of, weights_of
from softlookup.watching import Call
from softlookup.watching.slices import at_heads, at_rows, positions_of

B, H, HKV, L, S, E = 2, 4, 2, 12, 17, 8
GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def coin(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=GENERATOR) > 0.3


SHARED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "causal window": {"mask": sl.Causal() & sl.Window(5)},
    "padding": {"mask": sl.Causal() & sl.Padding(coin(B, S))},
    "documents": {"mask": sl.Documents(torch.arange(S) // 6)},
    "documents of other queries": {"mask": sl.Documents(torch.arange(S) // 6, torch.arange(L) // 5)},
    "boolean tensor": {"mask": coin(B, 1, L, S)},
    "tensor inside": {"mask": sl.Causal() & ~(Dense(coin(1, 1, L, S)) | sl.Prefix(2))},
    "per head": {"mask": Dense(coin(1, H, L, S)) & sl.Causal()},
    "float tensor": {"mask": random(L, S).masked_fill(~coin(L, S), -torch.inf)},
    "bias": {"bias": random(1, H, L, S), "scale": 0.3},
    "bias of keys": {"bias": random(B, 1, 1, S)},
    "sinks": {"normalizer": sl.Softmax(sink=random(H)), "score": sl.ScaledDot(softcap=5.0)},
    "offset": {"mask": sl.Causal(), "query_offset": 2},
    "positions": {"mask": sl.Causal(), "query_offset": torch.arange(L) + 3},
}
OWN: dict[str, dict[str, Any]] = {
    "a plain function": {"mask": lambda b, h, i, j: (i >= j) & (j % 4 != h)},
    "a function of the head": {"mask": sl.MaskFunction(lambda b, h, i, j: (i >= j) & (j % 4 != h))},
    "slopes": {"bias": sl.ALiBi(torch.tensor([0.5, 0.25, 0.1, 0.0]))},
    "another score": {"score": sl.Cosine()},
}


def call(arguments: dict[str, Any]) -> Call:
    return Call("layer", random(B, H, L, E), random(B, HKV, S, E), random(B, HKV, S, E), arguments)


@pytest.mark.parametrize("name", [*SHARED, *OWN])
def test_rows(name: str) -> None:
    whole = call((SHARED | OWN)[name])
    rows = torch.tensor([0, 3, 4, 11])
    for of in (scores_of, weights_of):
        full = of(whole.query, whole.key, whole.value, **whole.arguments)
        query, arguments = at_rows(whole, rows)
        torch.testing.assert_close(of(query, whole.key, whole.value, **arguments), full[:, :, rows])


@pytest.mark.parametrize("name", SHARED)
def test_heads(name: str) -> None:
    whole = call(SHARED[name])
    part = at_heads(whole, torch.tensor([3, 1]))
    assert part is not None
    full = weights_of(whole.query, whole.key, whole.value, **whole.arguments)
    torch.testing.assert_close(weights_of(part.query, part.key, part.value, **part.arguments), full[:, [3, 1]])


@pytest.mark.parametrize("name", OWN)
def test_heads_are_not_taken_where_more_than_tensors_may_depend_on_them(name: str) -> None:
    assert at_heads(call(OWN[name]), torch.tensor([0])) is None


def test_positions_are_right_aligned_by_default() -> None:
    assert positions_of(call({})).tolist() == list(range(S - L, S))
    assert positions_of(call({"query_offset": 2}))[0] == 2
