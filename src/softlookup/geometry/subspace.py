"""Subspaces of model space from tall factors: thin SVDs by way of QR, and how two of them lie to each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Factored:
    """W = basis diag(singular) right^T, (…, d, k) with d >= k: basis (…, d, k), singular (…, k) descending, right (…, k, k).

    Columns of the basis whose singular value is 0 up to rounding are zeros: no direction of the subspace."""

    basis: Tensor
    singular: Tensor
    right: Tensor

    @property
    def rank(self) -> Tensor:
        """(…) int64 number of directions."""
        return (self.singular > 0).sum(-1)

    @property
    def core(self) -> Tensor:
        """(…, k, k) diag(singular) right^T: W in the coordinates of its basis."""
        return self.singular.unsqueeze(-1) * self.right.mT


def factored(w: Tensor) -> Factored:
    """The thin SVD of (…, d, k)."""
    q, r = torch.linalg.qr(w)
    u, s, vh = torch.linalg.svd(r, full_matrices=False)
    least = s.amax(-1, keepdim=True) * max(w.shape[-2:]) * torch.finfo(w.dtype).eps
    s = torch.where(s > least, s, 0.0)
    return Factored((q @ u) * (s > 0).unsqueeze(-2), s, vh.mT)


def cosines(a: Factored, b: Factored) -> Tensor:
    """(…, k) cosines of the principal angles between two subspaces, descending (Björck & Golub 1973)."""
    return torch.linalg.svdvals(a.basis.mT @ b.basis).clamp(max=1.0)


def overlap(a: Factored, b: Factored) -> tuple[Tensor, Tensor]:
    """|U_a^T U_b|^2 over the smaller rank: 1 where one subspace contains the other; and its chance level, larger rank / d."""
    ranks = torch.stack([a.rank, b.rank])
    shared = (a.basis.mT @ b.basis).square().sum((-2, -1))
    return shared / ranks.amin(0).clamp(min=1), ranks.amax(0) / a.basis.shape[-2]


def weighted_overlap(a: Factored, b: Factored) -> tuple[Tensor, Tensor]:
    """|S_a U_a^T U_b S_b|^2 / (|S_a^2| |S_b^2|), directions counted by how strongly they are read; and its chance level, that
    of the same strengths in random directions: |S_a|^2 |S_b|^2 / (d |S_a^2| |S_b^2|)."""
    size = a.singular.square().norm(dim=-1) * b.singular.square().norm(dim=-1)
    joint = (a.singular.unsqueeze(-1) * (a.basis.mT @ b.basis) * b.singular.unsqueeze(-2)).square().sum((-2, -1))
    loose = a.singular.square().sum(-1) * b.singular.square().sum(-1) / a.basis.shape[-2]
    return joint / size, loose / size


def participation(singular: Tensor) -> Tensor:
    """(sum s^2)^2 / sum s^4, how many directions carry the strength."""
    squares = singular.square()
    return squares.sum(-1).square() / squares.square().sum(-1).clamp(min=torch.finfo(squares.dtype).tiny)


def entropy_rank(singular: Tensor) -> Tensor:
    """exp of the entropy of s^2 / sum s^2 (Roy & Vetterli 2007, of squares)."""
    p = singular.square() / singular.square().sum(-1, keepdim=True)
    return torch.special.entr(p).sum(-1).exp()
