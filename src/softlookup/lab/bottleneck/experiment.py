"""How many bits an encoder-decoder brings through, by one vector or by attention."""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from softlookup.seq2seq import Attentive, FixedVector, Model
from softlookup.seq2seq.recurrent import Encoded

from ..figure import THEORY, WITH, WITHOUT
from ..run import Given

SYMBOLS, BATCH, BEGIN, FIRST = 16, 64, 1, 3
WIDTH, NOISE, LENGTHS, STEPS = 8, 0.25, (16, 32), 4000


def fresh(length: int, batch: int = BATCH) -> tuple[Tensor, Tensor, Tensor]:
    """Sources, their lengths and what is given to the decoder."""
    source = torch.randint(FIRST, FIRST + SYMBOLS, (batch, length))
    given = torch.cat([torch.full((batch, 1), BEGIN), source[:, :-1]], 1)
    return source, torch.full((batch,), length), given


def build(kind: str, width: int, noise: float) -> Model:
    """A model over the symbols. kind: "fixed" or "attentive"; noise: of every component that the encoder hands over."""
    sizes = FIRST + SYMBOLS, FIRST + SYMBOLS
    if kind == "fixed":
        model: Model = FixedVector(*sizes, width=width, embedding=32)
    else:
        model = Attentive(*sizes, width=width, embedding=32, order="luong")  # all steps ask at once

    def noisy(module: object, given: object, out: Encoded) -> Encoded:
        return Encoded(*(x + noise * torch.randn_like(x) for x in (out.states, out.final)))

    if noise:
        model.get_submodule("encoder").register_forward_hook(noisy)
    return model


def capacity(width: int, noise: float) -> float:
    """Bits that get through the final state of a bidirectional encoder at most (McKellips 2004)."""
    return 2 * width * math.log2(1 + 2 / (noise * math.sqrt(2 * math.pi * math.e)))


def nats(model: Model, length: int, batch: int = BATCH) -> Tensor:
    """The cross-entropy of fresh sequences, in nats per sequence."""
    source, lengths, given = fresh(length, batch)
    logits = model(source, lengths, given)
    assert isinstance(logits, Tensor)
    return F.cross_entropy(logits.flatten(0, 1), source.flatten(), reduction="sum") / batch


def trained(kind: str, length: int, width: int, steps: int, seed: int, noise: float) -> Model:
    """A model that was trained to say sequences again."""
    torch.manual_seed(seed)
    model = build(kind, width, noise)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        # Lengths grow to the whole within the first half: position is learned on short sequences first.
        now = min(length, max(4, math.ceil(length * schedule.last_epoch / steps * 2)))
        (nats(model, now) / now).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def bits(model: Model, length: int) -> float:
    """That come through: those of the sequence without those of the cross-entropy, as the symbols before tell nothing of the
    next."""
    loss = float(torch.stack([nats(model, length, 256) for _ in range(8)]).mean())
    return length * math.log2(SYMBOLS) - loss / math.log(2)


def measure(given: Given) -> dict[str, Any]:
    """A quick run takes the trained models of the records too: to train one takes minutes."""
    kind, found = "fixed" if given.control else "attentive", []
    for length in LENGTHS:
        key = f"{kind}, {length} symbols, seed {given.seed}, {STEPS} steps"
        weights = given.records.get(key, partial(learned, kind, length, given.seed))
        model = build(kind, WIDTH, NOISE).eval()
        unpack(model, weights)
        torch.manual_seed(given.seed)
        found.append((length, bits(model, length)))
    (_, shorter), (_, longer) = found
    return {"growth": longer / shorter, "over": longer / capacity(WIDTH, NOISE), "bits": found}


def learned(kind: str, length: int, seed: int) -> str:
    """The weights of a trained model in half precision, in letters."""
    model = trained(kind, length, WIDTH, STEPS, seed, NOISE)
    flat = parameters_to_vector(model.parameters()).detach().half()
    return b64encode(flat.numpy().tobytes()).decode()


def unpack(model: Model, weights: str) -> None:
    """Put them into a model of the same shape."""
    flat = torch.frombuffer(bytearray(b64decode(weights)), dtype=torch.half)
    vector_to_parameters(flat.float(), model.parameters())


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    for results, colour, label in ((found, WITH, "attention"), (control, WITHOUT, "one vector")):
        for n, each in enumerate(results):
            axes.plot(*zip(*each["bits"], strict=True), "o-", color=colour, ms=4, lw=1, label=None if n else label)
    lengths = [length for length, _ in found[0]["bits"]]
    axes.plot(lengths, [length * math.log2(SYMBOLS) for length in lengths], color=THEORY, lw=1, ls=":", label="all of it")
    axes.axhline(capacity(WIDTH, NOISE), color=THEORY, lw=1, label="the most that one vector carries")
    axes.set(xlabel="symbols of the sequence, 4 bits each", ylabel="bits that get through", ylim=(0, None), xticks=lengths)
    axes.legend(frameon=False)
