"""The native engine against the float64 oracle: value, every statistic and every gradient, over shapes, strides and masks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import softlookup as sl
from softlookup.engines import library
from softlookup.summary import CHEAP

pytestmark = pytest.mark.skipif(library.load()[0] is None, reason=f"no native engine: {library.load()[1]}")

DIFFERENTIABLE = [name for name in CHEAP if name not in ("max_logit", "max_weight", "argmax", "visible")]
MASKS = {
    "all": lambda n, s: None,
    "causal": lambda n, s: sl.Causal(),
    "window": lambda n, s: sl.Causal() & sl.Window(37),
    "two-sided window": lambda n, s: sl.Window(20),
    "prefix": lambda n, s: sl.Prefix(torch.tensor([s // 3, s // 2])) | sl.Causal(),
    "padding left": lambda n, s: sl.Padding(torch.arange(s) >= torch.tensor([[3], [s // 2]])) & sl.Causal(),
    "documents": lambda n, s: sl.Documents(torch.arange(s) // 70),
    "dilated": lambda n, s: sl.Dilated(3) & sl.Causal(),
    "dense": lambda n, s: torch.rand(2, 1, n, s) > 0.4,
    "dense per head": lambda n, s: torch.rand(1, 4, n, s) > 0.4,
    "function": lambda n, s: sl.MaskFunction(lambda b, h, i, j: (i + b >= j + h) & (j % 7 != h)),
    "nothing": lambda n, s: ~sl.Prefix(s),
}


def inputs(n: int, s: int, width: int, value_width: int, kv_heads: int = 4, seed: int = 0) -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(seed)
    shapes = (2, 4, n, width), (2, kv_heads, s, width), (2, kv_heads, s, value_width)
    return [torch.randn(shape, generator=make) for shape in shapes]


def agrees(tensors: list[torch.Tensor], within: float = 5e-6, **arguments) -> None:
    """Value, statistics and gradients of the native engine equal the oracle's in float64."""
    single = [t.detach().requires_grad_() for t in tensors]
    stats = arguments.pop("stats", True)
    assert sl.explain(*single, **arguments).engine == "native"
    same(tensors, within, stats=stats, **arguments)


def same(tensors: list[torch.Tensor], within: float = 5e-6, **arguments) -> None:
    """Value, statistics and gradients of the engine at hand equal the oracle's in float64."""
    single = [t.detach().requires_grad_() for t in tensors]
    double = [t.detach().double().requires_grad_() for t in tensors]
    stats = arguments.pop("stats", True)
    y, got = sl.attend(*single, stats=stats, **arguments)
    with sl.engine("reference"):
        want_y, want = sl.attend(*double, stats=stats, **arguments)
    close("value", y, want_y, 2e-6)
    for name in got.names:
        close(name, got[name], want[name], within)
    torch.manual_seed(1)
    weights = [torch.randn_like(y), *(torch.randn_like(got[x]) for x in got.names if got[x].requires_grad)]
    outputs = [(y, want_y), *((got[x], want[x]) for x in got.names if got[x].requires_grad)]
    loss = sum((a * w).sum() for (a, _), w in zip(outputs, weights, strict=True))
    exact = sum((b * w.double()).sum() for (_, b), w in zip(outputs, weights, strict=True))
    grads, want_grads = torch.autograd.grad(loss, single), torch.autograd.grad(exact, double)
    for name, g, w in zip(("query", "key", "value"), grads, want_grads, strict=True):
        close(f"gradient of {name}", g, w, 1e-5)


def close(name: str, got: torch.Tensor, want: torch.Tensor, within: float) -> None:
    if not got.is_floating_point():
        assert torch.equal(got, want), name
        return
    want = want.detach()
    finite = want.isfinite()
    assert torch.equal(finite, got.isfinite()), name
    scale = want[finite].abs().max().clamp(min=1e-6) if finite.any() else 1.0
    error = ((got.detach().double() - want)[finite].abs().max() / scale).item() if finite.any() else 0.0
    assert error <= within, f"{name}: error {error:.1e} of the largest, expected at most {within}"


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("n", "s"), [(300, 300), (65, 257), (3, 5000), (2, 200)])
def test_masks(mask, n, s):
    torch.manual_seed(0)
    agrees(inputs(n, s, 16, 16), mask=MASKS[mask](n, s))


@pytest.mark.parametrize(
    ("n", "s", "width", "value_width"),
    [
        *[(1, 1, 1, 1), (1, 500, 64, 64), (16, 4097, 20, 12), (2, 3, 7, 5), (5, 7, 33, 17)],
        *[(193, 97, 8, 1), (97, 193, 1, 8), (200, 200, 80, 48), (40, 200, 512, 512)],
    ],
)
def test_shapes(n, s, width, value_width):
    names = CHEAP if n <= s else [name for name in CHEAP if name != "distance"]
    agrees(inputs(n, s, width, value_width), stats=names)


STEPS = {
    "scaled": {},
    "cool": {"normalizer": sl.Softmax(temperature=0.7), "scale": 0.4},
    "gaussian": {"score": sl.Gaussian(2.0)},
    "soft-cap": {"score": sl.ScaledDot(softcap=2.0)},
    "dropout": {"dropout_p": 0.3, "seed": 3},
    "bias": {"bias": sl.ALiBi(torch.tensor([0.5, 0.25, 0.1, 0.0]))},
    "sink": {"normalizer": sl.Softmax(sink=0.5)},
    "additive": {"score": lambda width: additive(width)},
}


def additive(width: int) -> sl.Additive:
    make = torch.Generator().manual_seed(5)
    shapes = (4, 19), (4, 19, width), (4, 19, width)
    return sl.Additive(*(torch.randn(shape, generator=make) * 0.5 for shape in shapes))


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(("n", "s", "kv_heads"), [(1, 7, 4), (1, 33, 2), (3, 500, 1)])
def test_steps_of_a_decoder_that_is_trained(name, n, s, kv_heads):
    arguments = dict(STEPS[name])
    if callable(arguments.get("score")):
        arguments["score"], kv_heads = arguments["score"](18), 4
    mask = sl.Lengths(torch.tensor([s, s // 2]))
    agrees(inputs(n, s, 18, 35, kv_heads), mask=mask, **arguments)
    agrees(inputs(n, s, 18, 35, kv_heads), **arguments)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_groups_of_query_heads(kv_heads):
    agrees(inputs(250, 250, 24, 24, kv_heads), mask=sl.Causal())


def test_temperature_scale_and_key_bias():
    tensors = inputs(150, 220, 16, 16)
    agrees(tensors, normalizer=sl.Softmax(temperature=0.7), scale=0.4)
    agrees(tensors, score=sl.Gaussian(2.0), mask=sl.Causal(), normalizer=sl.Softmax(temperature=1.3))
    agrees(tensors, score=sl.Cosine(), scale=5.0)
    agrees(tensors, score=sl.ScaledDot(ssmax=0.4), mask=sl.Causal())


BIASES = {
    "slopes": lambda: sl.ALiBi(torch.tensor([0.5, 0.25, 0.1, 0.0])),
    "table": lambda: sl.RelativeTable(torch.randn(8, 4), max_distance=40),
    "dense": lambda: torch.randn(2, 4, 201, 301),
    "one for all": lambda: torch.randn(201, 301).mT.contiguous().mT,
    "per key": lambda: torch.randn(2, 1, 1, 301),
}


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("name", BIASES)
def test_biases(name, few):
    torch.manual_seed(0)
    bias = BIASES[name]()
    tensors = inputs(201, 301, 16, 16)
    if few:
        tensors[0] = tensors[0][:, :, -3:]
        bias = bias[..., -3:, :] if isinstance(bias, torch.Tensor) else bias
    agrees(tensors, bias=bias, mask=sl.Causal())
    agrees(tensors, bias=bias, score=sl.ScaledDot(softcap=3.0), normalizer=sl.Softmax(temperature=0.8))


@pytest.mark.parametrize("few", [False, True])
def test_a_float_mask_hides_and_adds(few):
    torch.manual_seed(0)
    tensors = inputs(3 if few else 201, 201, 16, 16)
    mask = torch.randn(tensors[0].shape[2], 201).masked_fill_(torch.rand(tensors[0].shape[2], 201) > 0.5, -torch.inf)
    agrees(tensors, mask=mask)


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_soft_cap(size):
    q, k, v = inputs(150, 150, 16, 16)
    agrees([q * size, k, v], score=sl.ScaledDot(softcap=20.0))


@pytest.mark.parametrize("make", [lambda w: sl.ALiBi(w), lambda w: sl.RelativeTable(w, max_distance=40)])
def test_learned_biases(make):
    torch.manual_seed(0)
    start = torch.rand(4) if make(torch.rand(4, 4)).__class__ is sl.ALiBi else torch.randn(8, 4)
    tensors, wants = inputs(100, 230, 16, 16), []
    for dtype, engine in ((torch.float32, "native"), (torch.float64, "reference")):
        w = start.to(dtype).requires_grad_()
        with sl.engine(engine):
            y, stats = sl.attend(*(t.to(dtype) for t in tensors), bias=make(w), mask=sl.Causal(), stats=True)
        wants.append(torch.autograd.grad(y.square().sum() + stats.entropy.sum(), w)[0])
    close("gradient of the bias", *wants, 1e-5)


def test_strides():
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in inputs(130, 130, 16, 16))
    packed = torch.randn(2, 4, 130, 48)
    agrees([q, k, v], mask=sl.Causal())
    agrees([packed[..., :16], packed[..., 16:32], packed[..., 32:]], mask=sl.Causal())
    agrees([t.mT.contiguous().mT for t in (q, k, v)], mask=sl.Causal())
    agrees([q[..., ::1, :], k[:1].expand(2, -1, -1, -1), v[:, :1].expand(-1, 4, -1, -1)])


@pytest.mark.parametrize("size", [1e-20, 1e-3, 30.0, 1e4])
def test_magnitudes(size):
    """Logits to 1e4 and denormal products; the oracle is the materialized formula in float32 there, which rounds alike."""
    q, k, v = inputs(120, 120, 16, 16)
    y = sl.attend(q * size, k, v, mask=sl.Causal())
    with sl.engine("reference"):
        want = sl.attend((q * size).double(), k.double(), v.double(), mask=sl.Causal())
        single = sl.attend(q * size, k, v, mask=sl.Causal())
    assert (y - want).abs().max() <= 2 * (single - want).abs().max() + 1e-6


def test_parts_of_the_keys():
    q, k, v = inputs(200, 333, 16, 16)
    mask = sl.Causal() & sl.Window(120)
    whole, stats = sl.attend(q, k, v, mask=mask, stats=True)
    cuts = (0, 50, 51, 250, 333)
    parts = [
        sl.lookup(q, k[:, :, a:b], v[:, :, a:b], mask=mask, key_offset=a, total_keys=333)
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    merged = sl.merge(*parts)
    close("value", merged.value, whole, 2e-6)
    for name in CHEAP:
        close(name, merged.stats(name), stats[name], 5e-6)


ELSEWHERE = """
import sys
sys.path.insert(0, "tests/engines")
import test_native as t, softlookup as sl
from softlookup.engines import library
assert library.load()[1] == sys.argv[1], library.load()[1]
for n, s in ((200, 300), (7, 300)):
    for mask in (None, sl.Causal() & sl.Window(100)):
        t.agrees(t.inputs(n, s, 20, 36, 2), mask=mask)
        t.agrees(t.inputs(n, s, 20, 36), mask=mask, score=sl.ScaledDot(softcap=3.0))
with sl.engine("streaming"):
    t.same(t.inputs(50, 300, 20, 36), mask=sl.Causal())
"""


@pytest.mark.parametrize("instructions", ["AVX-512", "AVX2", "portable"])
def test_every_set_of_instructions(instructions):
    """In processes of their own; a set that this processor lacks cannot be tested here."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if {"AVX-512": "avx512f", "AVX2": "avx2", "portable": ""}[instructions] not in flags:
        pytest.skip(f"this processor has no {instructions}")
    out = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, instructions],
        env=os.environ | {"SOFTLOOKUP_INSTRUCTIONS": instructions},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert out.returncode == 0, out.stderr


def test_the_same_twice_and_for_any_number_of_threads():
    q, k, v = inputs(400, 400, 32, 32)
    y, stats = sl.attend(q, k, v, mask=sl.Causal(), stats=True)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        again, other = sl.attend(q, k, v, mask=sl.Causal(), stats=True)
        assert torch.equal(y, again)
        assert all(torch.equal(stats[name], other[name]) for name in CHEAP)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_torch(dtype):
    """Inputs and output in half precision, everything between in float32; the measure is torch's own kernel."""
    tensors = [t.to(dtype).requires_grad_() for t in inputs(200, 200, 32, 32)]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    assert sl.explain(*tensors, mask=sl.Causal()).engine == "native"
    y, stats = sl.attend(*tensors, mask=sl.Causal(), stats=True)
    assert y.dtype == dtype and stats.entropy.dtype == torch.float32
    theirs = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True)
    with sl.engine("reference"):
        want, want_stats = sl.attend(*exact, mask=sl.Causal(), stats=True)
    close("entropy", stats.entropy, want_stats.entropy, 5e-6)
    assert (y - want).abs().max() <= 2 * (theirs - want).abs().max()
    g = torch.randn(y.shape, dtype=dtype)
    ours = torch.autograd.grad(y, tensors, g)
    for a, b, w in zip(
        ours, torch.autograd.grad(theirs, tensors, g), torch.autograd.grad(want, exact, g.double()), strict=True
    ):
        assert a.dtype == dtype
        assert (a - w).abs().max() <= 2 * (b - w).abs().max()
