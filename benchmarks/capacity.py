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

from softlookup.lab.bottleneck.experiment import SYMBOLS, bits, capacity, trained


def bound(kind: str, width: int, noise: float) -> float:
    """Bits that get through a fixed vector at most."""
    return capacity(width, noise) if noise and kind == "fixed" else math.inf


def measure(kind: str, length: int, width: int, steps: int, seed: int, noise: float) -> dict[str, float]:
    """Train a model, and count the bits that come through."""
    start = time.perf_counter()
    model = trained(kind, length, width, steps, seed, noise)
    parameters, seconds = sum(x.numel() for x in model.parameters()), time.perf_counter() - start
    return {"bits": bits(model, length), "of": length * math.log2(SYMBOLS), "parameters": parameters, "seconds": seconds}


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
