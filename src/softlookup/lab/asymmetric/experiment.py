"""A head learns which token follows which, with projections of their own for queries and keys, and with one for both."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from softlookup.geometry import LayerWeights, principal_cosines
from softlookup.geometry import measure as measured
from softlookup.nn import MultiHeadAttention

from ..descend import descend
from ..figure import THEORY, WITH, WITHOUT
from ..run import Given

CYCLES, WIDTH, HEAD, STEPS = 16, 64, 16, 400
TOKENS = torch.arange(3 * CYCLES)
SUCCESSOR = TOKENS.view(CYCLES, 3).roll(-1, 1).flatten()
OTHERS = ~torch.eye(len(TOKENS), dtype=torch.bool)


def trained(tokens: Tensor, tied: bool, quick: bool) -> tuple[MultiHeadAttention, list[float]]:
    """A head that attends to successors, and its losses."""
    head = MultiHeadAttention(WIDTH, 1, head_width=HEAD, bias=False)
    if tied:
        head.of_key = head.of_query

    def loss() -> Tensor:
        return -head.weights(tokens, mask=OTHERS)[0, 0, TOKENS, SUCCESSOR].log().mean()

    return head, descend(head.parameters(), loss, STEPS // 2 if quick else STEPS, 0.03)


def measure(given: Given) -> dict[str, Any]:
    torch.manual_seed(given.seed)
    tokens = torch.linalg.qr(torch.randn(WIDTH, len(TOKENS))).Q.mT[None]
    tied = trained(tokens, True, given.quick)
    head, losses = tied if given.control else trained(tokens, False, given.quick)
    projections = head.of_query.weight, head.of_key.weight, head.of_value.weight, head.out.weight
    layer = LayerWeights.of_linear(*projections, HEAD)
    best = head.weights(tokens, mask=OTHERS)[0, 0].argmax(1)
    return {
        "loss": losses[-1],
        "accuracy": float((best == SUCCESSOR).float().mean()),
        "gap": tied[1][-1] - losses[-1],
        "overlap": float(principal_cosines(layer).square().mean()),
        "symmetric_share": float(measured(layer)["symmetric_share"].value),
        "losses": [(step, round(losses[step], 4)) for step in range(0, len(losses), 5)],
    }


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    for results, colour, label in ((found, WITH, "W_Q and W_K"), (control, WITHOUT, "W_Q = W_K")):
        for n, each in enumerate(results):
            axes.plot(*zip(*each["losses"], strict=True), color=colour, alpha=0.6, lw=1.2, label=label if n == 0 else None)
    axes.axhline(math.log(2), color=THEORY, lw=0.8, ls=":", label="least of symmetric scores, log 2")
    axes.set(xlabel="step of training", ylabel="−log weight on the successor (nats)", ylim=(0, 4))
    axes.legend(frameon=False)
