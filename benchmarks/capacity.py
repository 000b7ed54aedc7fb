"""How much gets through: encoder-decoders reproduce fresh random sequences, and the bits that arrive are counted.

    python benchmarks/capacity.py [--out benchmarks/capacity.jsonl] [--model fixed …] [--length 16 …] [--width 32 …]
                                  [--steps 4000] [--noise 0.25]

A sequence of T symbols, each of V with equal chance, holds T log2 V bits. Of a trained model that says it with cross-entropy C
(nats per sequence, teacher forcing) at most T log2 V - C / ln 2 bits have come through, as the symbols before tell nothing
of the next. Every batch is new, so nothing can be learned by heart. Each cell is trained twice, the second time for twice as
many steps: what does not grow with training is a limit of the model.

A state of real numbers has no such limit, only one of what training finds. With --noise every component of what the encoder
hands over, which lies between -1 and 1, has normal noise of that standard deviation; then at most log2(1 + 2 / (noise
sqrt(2 pi e))) bits get through each (McKellips 2004), and the fixed vector has two components for each of its width.

Cells that the file holds already are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from softlookup.seq2seq import Attentive, FixedVector, Model
from softlookup.seq2seq.recurrent import Encoded

SYMBOLS = 16
BATCH = 64
BEGIN, FIRST = 1, 3


def fresh(length: int, batch: int = BATCH) -> tuple[Tensor, Tensor, Tensor]:
    """Sources, their lengths and what is given to the decoder."""
    source = torch.randint(FIRST, FIRST + SYMBOLS, (batch, length))
    given = torch.cat([torch.full((batch, 1), BEGIN), source[:, :-1]], 1)
    return source, torch.full((batch,), length), given


def build(kind: str, width: int, noise: float) -> Model:
    """A model over the symbols."""
    sizes = FIRST + SYMBOLS, FIRST + SYMBOLS
    if kind == "fixed":
        model: Model = FixedVector(*sizes, width=width, embedding=32)
    else:
        model = Attentive(*sizes, width=width, embedding=32, order="luong")  # all steps ask at once

    def noisy(module: object, given: object, out: Encoded) -> Encoded:
        return Encoded(*(x + noise * torch.randn_like(x) for x in (out.states, out.final)))

    if noise:
        model.encoder.register_forward_hook(noisy)
    return model


def bound(kind: str, width: int, noise: float) -> float:
    """Bits that get through a fixed vector at most."""
    return 2 * width * math.log2(1 + 2 / (noise * math.sqrt(2 * math.pi * math.e))) if noise and kind == "fixed" else math.inf


def nats(model: Model, length: int, batch: int = BATCH) -> Tensor:
    """The cross-entropy of fresh sequences, in nats per sequence."""
    source, lengths, given = fresh(length, batch)
    logits = model(source, lengths, given)
    assert isinstance(logits, Tensor)
    return F.cross_entropy(logits.flatten(0, 1), source.flatten(), reduction="sum") / batch


def measure(kind: str, length: int, width: int, steps: int, seed: int, noise: float) -> dict[str, float]:
    """Train a model, and count the bits that come through."""
    torch.manual_seed(seed)
    model = build(kind, width, noise)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        # Lengths grow to the whole within the first half: position is learned on short sequences first.
        done = schedule.last_epoch / steps
        now = min(length, max(4, math.ceil(length * done * 2)))
        (nats(model, now) / now).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        loss = float(torch.stack([nats(model, length, 256) for _ in range(8)]).mean())
    whole = length * math.log2(SYMBOLS)
    parameters = sum(x.numel() for x in model.parameters())
    seconds = time.perf_counter() - start
    return {"bits": whole - loss / math.log(2), "of": whole, "parameters": parameters, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="benchmarks/capacity.jsonl")
    parser.add_argument("--model", nargs="+", default=["fixed", "attentive"], choices=["fixed", "attentive"])
    parser.add_argument("--length", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--width", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    out = Path(said.out)
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for kind in said.model:
        for width in said.width:
            for length in said.length:
                for steps in (said.steps, 2 * said.steps):
                    cell = {"model": kind, "width": width, "length": length, "steps": steps}
                    cell |= {"seed": said.seed, "noise": said.noise}
                    found = next((each for each in known if cell.items() <= each.items()), None)
                    if found is None:
                        found = cell | measure(kind, length, width, steps, said.seed, said.noise)
                        with out.open("a") as file:
                            file.write(json.dumps(found) + "\n")
                    share = f"{found['bits']:6.1f} of {found['of']:5.0f} bits ({found['bits'] / found['of']:.0%})"
                    cost = f"{found['parameters']:,} parameters, {found['seconds']:.0f} s"
                    most = bound(kind, width, said.noise)
                    limit = f", at most {most:.0f}" if most < found["of"] else ""
                    print(f"{kind:9s} width {width:3d}  T {length:3d}  {steps:6d} steps  {share}{limit}  {cost}", flush=True)


if __name__ == "__main__":
    main()
