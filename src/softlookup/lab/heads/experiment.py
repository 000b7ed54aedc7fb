"""Four lookups at once, by one to four heads that share the same width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import softlookup as sl

from ..descend import descend
from ..figure import THEORY, WITH, WITHOUT
from ..run import Given

POSITIONS, LOOKUPS, PART, BATCH = 16, 4, 4, 32
STEPS, QUICK_STEPS, NOISE = 400, 200, 0.01


class Heads(torch.nn.Module):
    """Queries and keys of positions, the same for all sequences, whose values lie side by side: (B, n, c) -> (B, n, h c)."""

    def __init__(self, heads: int):
        super().__init__()
        width = LOOKUPS * PART // heads
        self.query, self.key = (torch.nn.Parameter(torch.randn(heads, POSITIONS, width)) for _ in range(2))
        self.of_value = torch.nn.Parameter(torch.randn(heads, PART, width) / PART**0.5)
        self.out = torch.nn.Parameter(torch.randn(heads, width, LOOKUPS * PART) / (heads * width) ** 0.5)

    def forward(self, contents: Tensor) -> Tensor:
        values = torch.einsum("bnc,hcw->hnbw", contents, self.of_value)
        found = sl.attend(self.query, self.key, values.flatten(2)).view_as(values)
        return torch.einsum("hnbw,hwo->bno", found, self.out)


def error(heads: Heads, offsets: list[int], count: int) -> Tensor:
    """Of so many sequences, by the variance of what is wanted."""
    contents = torch.randn(count, POSITIONS, PART)
    wanted = torch.cat([contents.roll(-offset, 1) for offset in offsets], -1)
    return (heads(contents) - wanted - NOISE**0.5 * torch.randn_like(wanted)).square().mean()


def measure(given: Given) -> dict[str, Any]:
    torch.manual_seed(given.seed)
    offsets = torch.randperm(POSITIONS)[:LOOKUPS].tolist()
    if given.control:
        offsets = offsets[:1] * LOOKUPS
    steps, errors = QUICK_STEPS if given.quick else STEPS, []
    for count in range(1, LOOKUPS + 1):
        heads = Heads(count)
        descend(heads.parameters(), lambda: error(heads, offsets, BATCH), steps, 0.1)  # noqa: B023
        with torch.no_grad():
            errors.append(float(error(heads, offsets, 2048)))
    return {"one": errors[0], "two": errors[1], "three": errors[2], "ratio": errors[1] / errors[3], "errors": errors}


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    counts = range(1, LOOKUPS + 1)
    axes.plot(counts, [1 - n / LOOKUPS + NOISE for n in counts], color=THEORY, lw=1, label="floor, 1 − h'/h + noise")
    for results, colour, label in ((found, WITH, "four lookups"), (control, WITHOUT, "the same lookup four times")):
        for n, each in enumerate(results):
            axes.plot(counts, each["errors"], "o", color=colour, alpha=0.6, ms=5, label=None if n else label)
    axes.set(xlabel="heads, of the same width in all", ylabel="squared error / variance", xticks=counts, ylim=(-0.03, 1))
    axes.legend(frameon=False)
