"""How heads relate: what one layer's outputs feed in a later one, and which heads of a layer do the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .weights import LayerWeights


def composition(earlier: LayerWeights, later: LayerWeights) -> tuple[dict[str, Tensor], float]:
    """How strongly what earlier heads write is read by later queries, keys and values (Elhage et al. 2021, "Q-, K- and
    V-composition"): |W_OV W| / (|W_OV| |W|), W = W_Q W_K^T, W_K W_Q^T or W_V W_O, Frobenius norms.

    Returns:
        "query", "key", "value": (H earlier, H later); and the chance level, 1 / sqrt(d).
    """
    return _Writes(earlier).into(_Reads(later)), earlier.output.shape[2] ** -0.5


def compositions(layers: Sequence[LayerWeights]) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """`composition` of every layer with every later one: (earlier, later, what it gives)."""
    writes, reads = [_Writes(layer) for layer in layers], [_Reads(layer) for layer in layers]
    for i in range(len(layers)):
        for j in range(i + 1, len(layers)):
            yield i, j, writes[i].into(reads[j])


class _Reads:
    """What a layer reads by: for queries, keys and values the projections (d, G k) side by side, which a head uses, and
    the rest of the head's matrix in coordinates of its own (H, n, k), which change no norm."""

    def __init__(self, layer: LayerWeights):
        heads, groups = torch.arange(layer.heads), layer.of_head(torch.arange(len(layer.key)))
        r_q, r_k, r_v = (torch.linalg.qr(x).R for x in (layer.query, layer.key, layer.value))
        r_o = torch.linalg.qr(layer.output.mT).R
        parts = {
            "query": (layer.query, heads, r_q, r_k[groups]),
            "key": (layer.key, groups, r_k[groups], r_q),
            "value": (layer.value, groups, r_v[groups], r_o),
        }
        self.parts = {
            name: (w.transpose(0, 1).flatten(1), which, rest, torch.linalg.matrix_norm(own @ rest.mT))
            for name, (w, which, own, rest) in parts.items()
        }


class _Writes:
    """What a layer's heads move, W_V W_O, in coordinates of its own: (H, v, d)."""

    def __init__(self, layer: LayerWeights):
        self.moves = layer.of_head(torch.linalg.qr(layer.value).R) @ layer.output
        self.size = torch.linalg.matrix_norm(self.moves)

    def into(self, reads: _Reads) -> dict[str, Tensor]:
        heads, v, _ = self.moves.shape
        found = {}
        for name, (flat, which, rest, size) in reads.parts.items():
            width = rest.shape[2]
            joint = (self.moves.flatten(0, 1) @ flat).view(heads, v, -1, width)[:, :, which]  # (H, v, H', k)
            joint = joint.permute(2, 0, 1, 3).flatten(1, 2) @ rest.mT  # (H', H v, n)
            norms = torch.linalg.vector_norm(joint.view(len(rest), heads, -1), dim=-1).mT
            found[name] = norms / (self.size[:, None] * size).clamp(min=1e-300)
        return found


def likeness(layer: LayerWeights) -> dict[str, Tensor]:
    """(H, H) cosines between heads of a layer, as matrices of model space: "attends", of W_Q W_K^T; "moves", of W_V W_O. Heads
    that do the same have 1; 0 by chance."""

    def inner(x: Tensor) -> Tensor:
        """(H, d, k) -> (H, H, k, k) products of all heads' factors."""
        flat = x.transpose(0, 1).flatten(1)
        return (flat.mT @ flat).view(len(x), x.shape[2], len(x), x.shape[2]).permute(0, 2, 1, 3)

    found = {}
    for name, a, b in (
        ("attends", layer.query, layer.of_head(layer.key)),
        ("moves", layer.of_head(layer.value), layer.output.mT),
    ):
        products = (inner(a) * inner(b)).sum((-2, -1))
        size = products.diagonal().sqrt()
        found[name] = products / (size[:, None] * size).clamp(min=1e-300)
    return found


def joint_rank(layer: LayerWeights) -> tuple[int, int]:
    """In how many directions all heads of a layer together can write, the numerical rank of W_O; and the most that it could be,
    the smaller of H v and d. Less where heads write to common directions."""
    joint = layer.output.flatten(0, 1)
    return int(torch.linalg.matrix_rank(joint)), min(joint.shape)


def diversity(contributions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's heads as an ensemble (Krogh & Vedelsby 1995): the output is the mean of H c_h, so its square is their mean
    square less their spread around it. contributions: (H, n, d), what each head adds for each input.

    Returns:
        square of the output, mean square of the heads, spread: means over inputs, the first the second less the third.
    """
    each = contributions * len(contributions)
    whole = contributions.sum(0)
    square = whole.square().sum(-1).mean()
    return square, each.square().sum(-1).mean(), (each - whole).square().sum(-1).mean()
