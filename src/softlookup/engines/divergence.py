"""KL(p || r) between two attention distributions of the same queries over the same keys, in one pass.

    KL = E_p[s_p - s_r] - lse_p + lse_r        ds_p = g p (D - E_p[D]),  ds_r = g (r - p),   D = s_p - s_r

It is infinite where a key with p > 0 is hidden from r; such rows have no gradient.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..problem import Problem
from .blocks import Blocks, ScoreBlock
from .moments import Moments
from .node import hand_out, revive, skeleton
from .streaming import inverse_z, unnormalized
from .tiling import Block, Tiling


def divergence(first: Problem, second: Problem) -> Tensor:
    """(B, H, L) in the accumulation dtype; both problems have the same shape of scores and the same place."""
    return _Divergence.apply(first, second, *first.tensors(), *second.tensors())


class _Pair:
    """Two sets of scores walked together, block by block of the keys that either distribution sees."""

    def __init__(self, first: Problem, second: Problem):
        self.p, self.r = Blocks(first), Blocks(second)
        self.tiling = Tiling(replace(first, mask=first.mask | second.mask))

    def sides(self, block: Block) -> tuple[Block, Block]:
        """The block as each distribution sees it."""
        sides = ((walk, walk.problem.mask.visible(block.tile)) for walk in (self.p, self.r))
        return tuple(replace(block, visible=walk.tiling.fold(seen, block.tile)) for walk, seen in sides)  # type: ignore


def _gap(p: ScoreBlock, r: ScoreBlock) -> tuple[Tensor, Tensor]:
    """s_p - s_r where both see the key, else 0; and where p sees a key that r does not."""
    p_sees, r_sees = (x.at.visible.seen for x in (p, r))  # type: ignore[union-attr]
    return torch.where(p_sees & r_sees, p.scores - r.scores, 0), p_sees & ~r_sees


def _forward(first: Problem, second: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL, E_p[D], and the log-normalizers' pieces (m, log Z) of p and r, each (B, H, L, 1) or (B, H, L, 2)."""
    pair = _Pair(first, second)
    batch, heads, length, _ = first.query.shape
    new = first.query.new_zeros
    kl, gap = (new((batch, heads, length, 1), dtype=pair.p.dtype) for _ in range(2))
    pieces = [new((batch, heads, length, 2), dtype=pair.p.dtype) for _ in range(2)]
    for at in pair.tiling.queries():
        qp, qr = pair.p.query(at), pair.r.query(at)
        rows = at.entries, qp.rows.shape[1]
        mp, mr = (Moments(frozenset(), False, side.work, *rows) for side in (pair.p, pair.r))
        total, lost = (qp.rows.new_zeros(rows) for _ in range(2))
        for block in pair.tiling.blocks(at):
            bp, br = pair.sides(block)
            p, r = pair.p.scores(qp, bp), pair.r.scores(qr, br)
            d, missing = _gap(p, r)
            e, rescale = mp.add(p)
            mr.add(r)
            total.mul_(rescale).add_((e * d).sum(-1))
            lost.mul_(rescale).add_((e * missing).sum(-1))
        rp, rr = mp.readings(), mr.readings()
        expected = (total * torch.exp(-rp["log_z"])).unsqueeze(-1)
        rp, rr = ({k: x.unsqueeze(-1) for k, x in read.items()} for read in (rp, rr))
        (m_p, z_p), (m_r, z_r) = ((x["max_logit"].masked_fill(x["visible"] == 0, 0), x["log_z"]) for x in (rp, rr))
        both = expected - (m_p - m_r) - (z_p - z_r)
        both = torch.where(lost.unsqueeze(-1) > 0, math.inf, torch.where(rp["visible"] == 0, 0, both))
        pair.p.put(at, kl, both)
        pair.p.put(at, gap, expected)
        for into, (m, z) in zip(pieces, ((m_p, z_p), (m_r, z_r)), strict=True):
            pair.p.put(at, into, torch.cat([m, z], -1))
    return kl, gap, pieces[0], pieces[1]


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, first: Problem, second: Problem, *tensors: Tensor) -> Tensor:  # noqa: ANN001
        ctx.count = len(first.tensors())
        ctx.skeletons = skeleton(first), skeleton(second)
        plain = [t.detach() for t in tensors]
        saved = _forward(first.with_tensors(plain[: ctx.count]), second.with_tensors(plain[ctx.count :]))
        ctx.save_for_backward(*tensors, *saved)
        return saved[0].squeeze(-1).clone()

    @staticmethod
    def backward(ctx, grad: Tensor):  # noqa: ANN001, ANN205
        *tensors, kl, gap, piece_p, piece_r = ctx.saved_tensors
        n = ctx.count
        first = revive(ctx.skeletons[0], tuple(tensors[:n]))
        second = revive(ctx.skeletons[1], tuple(tensors[n:]))
        g = torch.where(kl.isinf(), 0, grad.unsqueeze(-1))
        with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
            pair = _Pair(first, second)
            sums = pair.p.zeros(), pair.r.zeros()
            for at in pair.tiling.queries():
                qp, qr = pair.p.query(at), pair.r.query(at)
                g_rows, gap_rows = pair.p.query_rows(at, g), pair.p.query_rows(at, gap)
                m_p, z_p = pair.p.query_rows(at, piece_p).split(1, -1)
                m_r, z_r = pair.p.query_rows(at, piece_r).split(1, -1)
                dq_p = dq_r = None
                for block in pair.tiling.blocks(at):
                    bp, br = pair.sides(block)
                    p, r = pair.p.scores(qp, bp, graph=True), pair.r.scores(qr, br, graph=True)
                    d, _ = _gap(p, r)
                    w_p = unnormalized(p, m_p, False, pair.p.work, keep=True)[1].mul_(inverse_z(z_p))
                    w_r = unnormalized(r, m_r, False, pair.r.work, keep=True)[1].mul_(inverse_z(z_r))
                    ds_p = p.hide(w_p * (d - gap_rows) * g_rows)
                    dq_p = pair.p.pull(qp, p, ds_p, sums[0], dq_p)
                    ds_r = r.hide((w_r - w_p) * g_rows)
                    dq_r = pair.r.pull(qr, r, ds_r, sums[1], dq_r)
                for walk, into, dq in ((pair.p, sums[0], dq_p), (pair.r, sums[1], dq_r)):
                    if dq is not None:
                        walk.put(at, into[0], walk.finish_query(dq))
        wanted = ctx.needs_input_grad[2:]
        out_p = hand_out(sums[0], tuple(tensors[:n]), wanted[:n])
        out_r = hand_out(sums[1], tuple(tensors[n:]), wanted[n:])
        return None, None, *out_p, *out_r
