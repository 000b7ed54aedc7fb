"""softlookup's attention equals eager's to rounding, in architectures that it knows nothing about."""

import pytest
import torch

from softlookup.integrations import huggingface

from .architectures import ARCHITECTURES, LENGTH, batch, output

GENERATING = [a for a in ARCHITECTURES if a.kind in ("decoder", "seq2seq", "speech")]
each = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
each_generating = pytest.mark.parametrize("architecture", GENERATING, ids=lambda a: a.name)


@pytest.fixture(autouse=True, scope="module")
def registered():
    huggingface.register()


def assert_close(got, want, tolerance=2e-5):
    """Equal to `tolerance` of the largest entry."""
    error, size = (got - want).abs().max(), want.abs().max()
    assert error <= tolerance * size, f"error {float(error / size):.1e} of the largest entry"


@each
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_forward_and_backward(architecture, padding):
    inputs, real = batch(architecture, padding)
    model = architecture.build()
    results = []
    for implementation in ("eager", "softlookup"):
        model.set_attn_implementation(implementation)
        out = output(model, inputs)
        out = out if real is None or out.shape[1] != LENGTH else out[real]
        model.zero_grad()
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
        (out * weights).mean().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((out.detach(), grads))
    (want, want_grads), (got, got_grads) = results
    assert_close(got, want)
    assert got_grads.keys() == want_grads.keys()
    largest = max(float(g.abs().max()) for g in want_grads.values())
    for name, grad in want_grads.items():
        error = float((got_grads[name] - grad).abs().max())
        assert error <= 5e-5 * float(grad.abs().max()) + 2e-6 * largest, f"{name}: {error:.1e} of {largest:.1e}"


@each
def test_attention_is_really_ours(architecture, monkeypatch):
    calls = []
    ours = huggingface.attention
    monkeypatch.setattr(huggingface, "attention", lambda *args, **kwargs: calls.append(1) or ours(*args, **kwargs))
    huggingface.register()
    try:
        with torch.no_grad():
            output(architecture.build("softlookup"), batch(architecture, "none")[0])
    finally:
        monkeypatch.undo()
        huggingface.register()
    assert calls


@each_generating
@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
def test_greedy_generation_is_the_same(architecture, cache):
    inputs, _ = batch(architecture, "left")
    inputs = {name: x for name, x in inputs.items() if not name.startswith("decoder_")}
    model = architecture.build()
    options = {"dynamic": {}, "static": {"cache_implementation": "static"}, "none": {"use_cache": False}}[cache]
    texts = []
    for implementation in ("eager", "softlookup"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            try:
                text = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, **options)
            except Exception as error:
                if implementation == "eager":
                    pytest.skip(f"eager cannot either: {type(error).__name__}")
                raise
            texts.append(text)
    assert torch.equal(*texts)
