"""A head learns to find a token by its form and to return its content: what its projections read afterwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softlookup.geometry import LayerWeights
from softlookup.geometry import measure as measured
from softlookup.geometry.subspace import factored, overlap
from softlookup.nn import MultiHeadAttention

from ..descend import descend
from ..figure import THEORY, WITH, WITHOUT
from ..run import Given

PART, TOKENS, BATCH, STEPS, QUICK_STEPS = 16, 12, 64, 1200, 500
OVERLAPS = {"query_form": "W_Q, form", "key_form": "W_K, form", "value_content": "W_V, content", "key_value": "W_K, W_V"}


def batch(form: Tensor, content: Tensor, returned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, 1, d), tokens (B, n, d) and what each query should get (B, 1, d), a part of the first token: it has the
    query's form. form, content, returned: (d, d/2) bases."""
    tokens = torch.randn(BATCH, TOKENS, PART) @ form.mT + torch.randn(BATCH, TOKENS, PART) @ content.mT
    wanted = tokens[:, :1]
    query = wanted @ form @ form.mT + torch.randn(BATCH, 1, PART) @ content.mT
    return query, tokens, wanted @ returned @ returned.mT


def measure(given: Given) -> dict[str, Any]:
    torch.manual_seed(given.seed)
    form, content = torch.linalg.qr(torch.randn(2 * PART, 2 * PART)).Q.chunk(2, 1)
    head = MultiHeadAttention(2 * PART, 1, head_width=PART, bias=False)

    def loss() -> Tensor:
        query, tokens, wanted = batch(form, content, form if given.control else content)
        return (head(query, tokens) - wanted).square().sum(-1).mean() / PART

    losses = descend(head.parameters(), loss, QUICK_STEPS if given.quick else STEPS, 0.03)
    projections = head.of_query.weight, head.of_key.weight, head.of_value.weight, head.out.weight
    layer = LayerWeights.of_linear(*projections, PART)

    def reads(weight: Tensor, part: Tensor) -> float:
        return float(overlap(factored(weight[0]), factored(part.to(weight)))[0])

    return {
        "error": sum(losses[-20:]) / 20,
        "query_form": reads(layer.query, form),
        "key_form": reads(layer.key, form),
        "value_content": reads(layer.value, content),
        "key_value": float(measured(layer)["key_value_overlap"].value),
    }


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    for results, colour, label, shift in ((found, WITH, "returns content", -0.1), (control, WITHOUT, "returns form", 0.1)):
        for n, name in enumerate(OVERLAPS):
            values = [each[name] for each in results]
            axes.plot([n + shift] * len(values), values, "o", color=colour, alpha=0.6, ms=5, label=None if n else label)
    axes.axhline(0.5, color=THEORY, lw=0.8, ls=":", label="chance")
    for n, least in enumerate((1, 1, 1, 0)):
        axes.plot([n - 0.25, n + 0.25], [least, least], color=THEORY, lw=1, label=None if n else "least loss")
    axes.set(ylabel="mean squared cosine", ylim=(-0.03, 1.03), xlim=(-0.5, 3.5))
    axes.set_xticks(range(4), OVERLAPS.values())
    axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.62))
