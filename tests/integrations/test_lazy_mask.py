"""A lazy mask behaves as the dense tensor that it stands for, whatever is done to it, and notices writes."""

import copy

import pytest
import torch
import torch.nn.functional as F

from softlookup.integrations.huggingface import mask
from softlookup.integrations.lazy_mask import LazyMask

PADDING = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
MODES = (torch.enable_grad, torch.no_grad, torch.inference_mode)


@pytest.fixture
def lazy() -> LazyMask:
    return mask(2, 5, 5, attention_mask=PADDING)


ARITHMETIC = {
    "add": lambda m: m + 1,
    "add to": lambda m: torch.ones(2, 3, 5, 5) + m,
    "compare": lambda m: m < -1,
    "where": lambda m: torch.where(m == 0, 1.0, 2.0),
    "masked_fill": lambda m: torch.zeros(2, 1, 5, 5).masked_fill(m != 0, 3.0),
    "reduce": lambda m: m.amin(-1),
    "bool": lambda m: m.bool(),
    "index": lambda m: m[1, 0, 2:, ::2],
    "slice keys": lambda m: m[:, :, :, :3],
    "slice rows": lambda m: m[:, :, 2:4, :],
    "slice twice": lambda m: m[:, :, 1:][:, :, 1:3, :4],
    "step": lambda m: m[:, :, ::2],
    "late keys": lambda m: m[:, :, :, 2:],
    "to half": lambda m: m.to(torch.float16),
    "to double": lambda m: m.double().clamp(min=-1),
    "expand": lambda m: m.expand(2, 4, 5, 5),
    "pad": lambda m: F.pad(m, (0, 2)),
    "concatenate": lambda m: torch.cat([m, m], -1),
    "clone": lambda m: m.clone(),
    "detach": lambda m: m.detach(),
    "deepcopy": copy.deepcopy,
    "unsqueeze": lambda m: m.unsqueeze(2).squeeze(1),
    "numpy": lambda m: torch.from_numpy(m.numpy()),
    "list": lambda m: torch.tensor(m.tolist()),
    "sdpa": lambda m: F.scaled_dot_product_attention(*[torch.arange(40.0).reshape(2, 1, 5, 4).sin()] * 3, attn_mask=m),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_is_that_of_the_dense_tensor(lazy, name, mode):
    want = ARITHMETIC[name](lazy.recipe.dense())
    with mode():
        got = ARITHMETIC[name](lazy)
        assert got.dtype == want.dtype
        torch.testing.assert_close(got.dense() if isinstance(got, LazyMask) else got, want)


@pytest.mark.parametrize(
    "name", ["slice keys", "slice rows", "slice twice", "clone", "detach", "deepcopy", "to double"]
)
def test_copies_and_slices_stay_lazy(lazy, name):
    got = copy.deepcopy(lazy) if name == "deepcopy" else ARITHMETIC[name.replace("to double", "clone")](lazy)
    assert isinstance(got, LazyMask) and got.recipe is not None and lazy._dense is None
    assert torch.equal(got.recipe.dense(), got.dense())


def test_asking_for_its_shape_builds_nothing(lazy):
    assert (lazy.shape, lazy.dtype, lazy.device, lazy.ndim) == ((2, 1, 5, 5), torch.float32, torch.device("cpu"), 4)
    assert lazy.is_contiguous() and lazy.to("cpu") is lazy and "LazyMask(2, 1, 5, 5)"[:8] in repr(lazy)
    assert lazy._dense is None


def test_gradients_pass_it_by(lazy):
    bias = torch.zeros(1, 3, 5, 5, requires_grad=True)
    (bias + lazy).clamp(-1, 1).sum().backward()
    assert torch.equal(bias.grad, (lazy.recipe.dense() == 0).float().sum(0, keepdim=True).expand(1, 3, 5, 5))


def write_item(m):
    m[:, :, 0, :2] = 5.0


WRITES = {
    "item": write_item,
    "in place": lambda m: m.add_(1),
    "through a lazy slice": lambda m: m[:, :, 1:3].fill_(2.0),
    "through a view": lambda m: m[0].mul_(0.5),
    "through a view of a lazy slice": lambda m: m[:, :, :, :3][1].zero_(),
    "copy": lambda m: m.copy_(torch.ones(2, 1, 5, 5)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WRITES)
def test_writes_are_kept_and_noticed(lazy, name, mode):
    want = lazy.recipe.dense().contiguous()
    WRITES[name](want)
    with mode():
        before = lazy[:, :, 0:4]
        WRITES[name](lazy)
    assert lazy.recipe is None and before.recipe is None
    assert torch.equal(lazy.dense(), want) and torch.equal(before.dense(), want[:, :, 0:4])


def test_a_write_to_a_copy_leaves_the_original(lazy):
    other = lazy.clone()
    other.add_(1)
    assert other.recipe is None and lazy.recipe is not None
