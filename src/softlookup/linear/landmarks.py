"""Attention by landmarks: softmax's n x n weights from m of its rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SoftlookupError, at_least_one
from ..operator import attend
from ..problem import flatten
from ..running import without_autocast
from ..scores import single


def nystrom(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    landmarks: int,
    scale: float | None = None,
    iterations: int | None = None,
) -> Tensor:
    """softmax(Q K~^T) softmax(Q~ K~^T)^+ softmax(Q~ K^T) V (Xiong et al. 2021, "Nyströmformer"), over all keys.

    Q~ and K~ are means of `landmarks` segments of queries and keys. Each of the three is an `sl.attend`, so that what is kept
    grows with the length, not with its square. With a landmark for every query and key it is softmax attention, as exact as
    its matrix of weights is well-conditioned. Weights of landmarks that are nearly singular have a large inverse, and values
    may then be far from all those averaged: `error_against_exact` says how far.

    Args:
        query: (…, H, L, E).
        key: (…, Hkv, S, E).
        value: (…, Hkv, S, Ev). H is a multiple of Hkv.
        landmarks: m, no more than L and S.
        scale: of the logits, 1/sqrt(E) by default.
        iterations: of the pseudo-inverse, of which the paper takes 6; None: the pseudo-inverse itself.
    """
    q, k, v, shapes = flatten(query, key, value)
    assert v is not None
    at_least_one("nystrom", landmarks=landmarks, **({} if iterations is None else {"iterations": iterations}))
    if landmarks > (shorter := min(q.shape[2], k.shape[2])):
        raise SoftlookupError(f"nystrom: expected no more landmarks than queries and keys, {shorter}, got {landmarks}")
    with without_autocast(q.device.type):
        q, k, v = single(q), single(k), single(v)
        of_query, of_key = _means(q, landmarks), _means(k, landmarks).repeat_interleave(q.shape[1] // k.shape[1], 1)
        eye = torch.eye(landmarks, dtype=of_key.dtype, device=q.device).expand(*of_key.shape[:2], -1, -1)
        weights = attend(of_query, of_key, eye, scale=scale)
        weights = weights.nan_to_num()  # of a NaN there is no inverse; what it is multiplied by has the NaN too
        inverse = torch.linalg.pinv(weights) if iterations is None else _inverse(weights, iterations)
        values = inverse @ attend(of_query.to(k.dtype), k, v, scale=scale).double()
        out = attend(q, of_key.to(k.dtype), values.to(v.dtype), scale=scale)
    return shapes.restore(out.to(value.dtype), 1)


def _means(x: Tensor, segments: int) -> Tensor:
    """(B, H, N, E) -> (B, H, m, E) in float64, of segments whose lengths differ by one at most.

    Errors of what is inverted grow by its condition, in gradients by the square: the m x m part has digits to lose."""
    return torch.stack([part.mean(2, dtype=torch.float64) for part in x.tensor_split(segments, 2)], 2)


def _inverse(weights: Tensor, iterations: int) -> Tensor:
    """The pseudo-inverse of weights (B, H, m, m), nearly, by an iteration of third order (Razavi et al. 2014)."""
    eye = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    size = weights.sum(-1).amax(-1) * weights.sum(-2).amax(-1)  # the norms of rows and of columns
    inverse = weights.mT / size[..., None, None]
    for _ in range(iterations):
        both = weights @ inverse
        inverse = inverse @ (13 * eye - both @ (15 * eye - both @ (7 * eye - both))) / 4
    return inverse
