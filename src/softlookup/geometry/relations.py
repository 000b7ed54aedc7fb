"""How heads relate: what one layer's outputs feed in a later one, and which heads of a layer do the same."""

from __future__ import annotations

import torch
from torch import Tensor

from .weights import LayerWeights


def composition(earlier: LayerWeights, later: LayerWeights) -> tuple[dict[str, Tensor], float]:
    """How strongly what earlier heads write is read by later queries, keys and values (Elhage et al. 2021, "Q-, K- and
    V-composition"): |W_OV W| / (|W_OV| |W|), W = W_Q W_K^T, W_K W_Q^T or W_V W_O, Frobenius norms.

    Returns:
        "query", "key", "value": (H earlier, H later); and the chance level, 1 / sqrt(d).
    """
    r_v = torch.linalg.qr(earlier.of_head(earlier.value)).R  # of V O = Q_V (R_V O): the basis changes no norm
    moves = r_v @ earlier.output  # (H, v, d)
    q, k, v = later.query, later.of_head(later.key), later.of_head(later.value)
    r_q, r_k = torch.linalg.qr(q).R, torch.linalg.qr(k).R
    r_o = torch.linalg.qr(later.output.mT).R
    found = {}
    for name, reads, rest in (("query", q, r_k), ("key", k, r_q), ("value", v, r_o)):
        shape = len(reads), reads.shape[2]
        flat = moves.flatten(0, 1) @ reads.transpose(0, 1).flatten(1)  # (H v, H' k)
        cut = flat.view(*moves.shape[:2], *shape).permute(0, 2, 1, 3)
        joint = torch.linalg.matrix_norm(cut @ rest.mT)
        whole = torch.linalg.matrix_norm(torch.linalg.qr(reads).R @ rest.mT)
        found[name] = joint / (torch.linalg.matrix_norm(moves)[:, None] * whole).clamp(min=1e-300)
    return found, earlier.output.shape[2] ** -0.5


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
