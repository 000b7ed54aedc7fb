"""A state says by what map it was made, and is kept in a file as tensors are."""

from __future__ import annotations

import io
from copy import deepcopy

import pytest
import torch

import softlookup as sl
from softlookup import linear

MAPS = {
    "elu": lambda: linear.EluPlusOne(),
    "random": lambda: linear.RandomFeatures(8, 16),
    "hedgehog": lambda: linear.Hedgehog(8, 4),
}


class Learned(linear.FeatureMap):
    def __init__(self):
        super().__init__()
        self.of = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Softplus())

    def forward(self, x, first=0):
        return self.of(x)


def tensors() -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, 12, w, generator=make) for n, w in ((4, 8), (2, 8), (2, 5))]


def through_a_file(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", MAPS)
def test_a_state_goes_on_from_a_file(name):
    made = MAPS[name]()
    early, late = ([x[:, :, some] for x in tensors()] for some in (slice(7), slice(7, None)))
    state = linear.advance(*early, None, features=made)[1]
    want, want_after = linear.advance(*late, state, features=made)
    got, after = linear.advance(*late, through_a_file(state), features=made)
    assert torch.equal(got, want) and torch.equal(after.sums, want_after.sums) and after.position == 12


DRAWN = {
    "random": lambda seed: linear.RandomFeatures(8, seed=seed),
    "hedgehog": lambda seed: linear.Hedgehog(8, 4),
    "own": lambda seed: Learned(),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_map_goes_on_from_what_its_like_has_read(name):
    """What was loaded into it tells a map, not how it was begun; and what has changed since is another."""
    one, other = (DRAWN[name](seed) for seed in (0, 1))
    with torch.no_grad():
        for x in one.parameters():
            x.add_(torch.rand_like(x))
    state = linear.advance(*tensors(), None, features=one)[1]
    with pytest.raises(sl.SoftlookupError, match="^state: expected one of .* with .*, got one of .* with [^\n]*$"):
        linear.advance(*tensors(), state, features=other)
    with pytest.raises(sl.SoftlookupError, match="^state: expected one of"):
        linear.advance(*(x[:, :, :0] for x in tensors()), state, features=other)
    other.load_state_dict(through_a_file(one.state_dict()))
    torch.testing.assert_close(
        linear.advance(*tensors(), state, features=other)[0], linear.advance(*tensors(), state, features=one)[0], rtol=0, atol=0
    )
    assert deepcopy(one).double().identity() == one.identity()


def test_scales_that_are_near_are_not_one():
    state = linear.advance(*tensors(), None, features=linear.RandomFeatures(8, scale=0.3))[1]
    with pytest.raises(sl.SoftlookupError, match="state: expected one of"):
        linear.advance(*tensors(), state, features=linear.RandomFeatures(8, scale=0.30001))
