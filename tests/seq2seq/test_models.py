"""Laws of every encoder-decoder: steps equal the whole, padding has no influence, alignments are what was read."""

from __future__ import annotations

import pytest
import torch

import softlookup as sl
from softlookup.seq2seq import Attentive, FixedVector, Transformer

SYMBOLS = 20


def models():
    small = {"width": 16, "embedding": 8}
    yield "fixed", FixedVector(SYMBOLS, SYMBOLS, **small)
    yield "fixed, lstm, two layers", FixedVector(SYMBOLS, SYMBOLS, **small, cell="lstm", layers=2)
    for order in ("bahdanau", "luong"):
        for score in ("additive", "bilinear", "dot", "scaled", sl.Cosine()):
            name = score if isinstance(score, str) else type(score).__name__
            yield f"{order}, {name}", Attentive(SYMBOLS, SYMBOLS, **small, order=order, score=score)
        yield f"{order}, lstm", Attentive(SYMBOLS, SYMBOLS, **small, order=order, cell="lstm")
    yield "transformer", Transformer(SYMBOLS, SYMBOLS, width=16, heads=2, layers=2)


torch.manual_seed(0)
MODELS = {name: model.eval() for name, model in models()}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


def batch():
    torch.manual_seed(1)
    lengths = torch.tensor([9, 4, 7, 1])
    source = torch.randint(3, SYMBOLS, (4, 9)) * (torch.arange(9) < lengths[:, None])
    target = torch.randint(3, SYMBOLS, (4, 6))
    target[:, 0] = 1
    return source, lengths, target


def test_steps_equal_teacher_forcing(model):
    source, lengths, target = batch()
    with torch.no_grad():
        whole = model(source, lengths, target).log_softmax(-1)
        state, steps = model.start(source, lengths), []
        for t in range(6):
            scores, state = model.step(target[:, t : t + 1], state)
            steps.append(scores)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)


def test_partial_outputs_side_by_side_and_taken_over(model):
    source, lengths, target = batch()
    other = target.roll(1, 0)
    other[:, 0] = 1
    with torch.no_grad():
        state = model.start(source, lengths)
        _, state = model.step(target[:, :1], state)
        state = state.take(torch.zeros(4, 2, dtype=torch.long))
        for t in range(1, 4):
            _, state = model.step(torch.stack([target[:, t], other[:, t]], 1), state)
        state = state.take(torch.tensor([[1, 0, 1]]).expand(4, -1))  # from now on: other, target, other
        scores, _ = model.step(torch.stack([other[:, 4], target[:, 4], target[:, 4]], 1), state)
        mixed = torch.cat([other[:, :4], target[:, 4:]], 1)
        for k, outputs in enumerate((other, target, mixed)):
            want = model(source, lengths, outputs).log_softmax(-1)[:, 4]
            torch.testing.assert_close(scores[:, k], want, rtol=1e-4, atol=1e-5)


def test_padding_and_company_have_no_influence(model):
    source, lengths, target = batch()
    with torch.no_grad():
        whole = model(source, lengths, target)
        for entry, n in enumerate(lengths.tolist()):
            alone = model(source[entry : entry + 1, :n], lengths[entry : entry + 1], target[entry : entry + 1])
            torch.testing.assert_close(alone, whole[entry : entry + 1], rtol=1e-4, atol=1e-5)
        garbage = torch.where(source == 0, 5, source)
        torch.testing.assert_close(model(garbage, lengths, target), whole)


def test_statistics_are_those_of_the_alignment(model):
    source, lengths, target = batch()
    if not model.attends:
        with pytest.raises(sl.UnsupportedError, match="no attention"):
            model(source, lengths, target, stats="entropy")
        with pytest.raises(sl.UnsupportedError, match="attention"):
            model.alignment(source, lengths, target)
        return
    with torch.no_grad():
        logits, seen = model(source, lengths, target, stats=("entropy", "max_weight", "argmax"))
        weights = model.alignment(source, lengths, target)
    torch.testing.assert_close(logits, model(source, lengths, target))
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 6))
    for entry, n in enumerate(lengths.tolist()):
        assert not weights[entry, :, n:].any()
    if seen.entropy.shape[1] == 1:  # the transformer's alignment is the mean of heads
        torch.testing.assert_close(torch.special.entr(weights).sum(-1), seen.entropy.squeeze(1), rtol=1e-4, atol=1e-5)
        assert torch.equal(weights.argmax(-1), seen.argmax.squeeze(1))


def test_every_parameter_learns(model):
    source, lengths, target = batch()
    model.zero_grad()
    model(source, lengths, target).log_softmax(-1)[..., 3].sum().backward()
    still = [name for name, x in model.named_parameters() if x.grad is None or not x.grad.any()]
    # A bias of all keys alike shifts every score of a row by as much: softmax does not see it.
    assert not [name for name in still if not name.endswith("of_key.bias")]
    model.zero_grad()


def test_a_fixed_vector_is_all_that_the_decoder_gets(monkeypatch):
    model = MODELS["fixed"]
    source, lengths, target = batch()
    with torch.no_grad():
        encoded = model.encoder(source, lengths)
        vector = encoded.final
        got = model._decode(target, model.bridge(vector), vector.unsqueeze(1))[0]
        torch.testing.assert_close(got, model(source, lengths, target))
    assert vector.shape == (4, 32)


def test_outputs_are_of_the_sources(model):
    """A batch of another size is no batch, though shapes might fit."""
    source, lengths, target = batch()
    for other in (target[:2], target.repeat(2, 1), target[0], target[:, :0]):
        with pytest.raises(sl.SoftlookupError, match=r"target: expected int \(4, T\)"):
            model(source, lengths, other)


def test_statistics_between_two_sequences(model):
    """What keys received adds up over steps; there is no distance; and outputs may be longer than sources."""
    if not model.attends:
        return
    source, lengths, target = batch()
    _, seen = model(source, lengths, target, stats=("received", "entropy"))
    weights = model.alignment(source, lengths, target)
    assert seen.received.shape[-1] == 9 and seen.entropy.shape[-1] == 6
    torch.testing.assert_close(seen.received.mean(1), weights.sum(1), rtol=1e-4, atol=1e-5)
    _, seen = model(source[:, :4], lengths.clamp(max=4), target, stats=True)
    assert "entropy" in seen.names and "distance" not in seen.names
    with pytest.raises(sl.UnsupportedError, match="distance: expected one sequence"):
        model(source, lengths, target, stats="distance")


def test_bad_input_is_told():
    model = MODELS["fixed"]
    source, lengths, target = batch()
    for said, message in (
        ((source[0], lengths, target), r"source: expected int \(B, S\)"),
        ((source, lengths[:2], target), r"lengths \(B,\)"),
        ((source, lengths * 2, target), "lengths: expected 1 to 9, got 2 to 18"),
        ((source, lengths * 0, target), "lengths: expected 1 to 9, got 0 to 0"),
        ((source, lengths.tolist(), target), "lengths: expected an int tensor, got list"),
        ((source.float(), lengths, target), "source: expected an int tensor, got torch.float32"),
    ):
        with pytest.raises(sl.SoftlookupError, match=message):
            model(*said)
    for said, message in (
        ({"order": "vaswani"}, "order: expected bahdanau or luong"),
        ({"score": "cosine"}, "score: expected additive"),
        ({"cell": "rnn"}, "cell: expected gru or lstm"),
    ):
        with pytest.raises(sl.SoftlookupError, match=message):
            Attentive(SYMBOLS, SYMBOLS, **said)
