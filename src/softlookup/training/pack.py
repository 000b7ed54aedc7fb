"""A trained model to be kept and handed on: its record, its metrics and its weights in half precision, without checkpoints.

    python -m softlookup.training.pack runs/g2p-attentive models/g2p
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ..files import write
from . import checkpoint
from .runs import METRICS, MODEL, RECORD, load


def pack(run: str | Path, to: str | Path) -> None:
    """Weights are read as float32 again: a rounding of 0.05 % each."""
    run, to = Path(run), Path(to)
    load(run)  # raises unless it is a trained run
    to.mkdir(parents=True, exist_ok=True)
    tensors, facts = checkpoint.load(run / MODEL)
    checkpoint.save(to / MODEL, {name: x.to(torch.float16) for name, x in tensors.items()}, facts)
    for name in (RECORD, METRICS):
        write(to / name, (run / name).read_bytes())


if __name__ == "__main__":
    pack(*sys.argv[1:3])
