"""The running moments of one block of queries, as keys stream past (online softmax, Milakov & Gimelshein 2018, with moments).

Everything is kept relative to the running maximum m, so that nothing overflows or cancels:

    Z = sum e^t    O = sum e^t v    A1 = sum e^t t    C = sum e^2t    V = sum e^t (t - A1/Z)^2        with t = s - m.

When m moves by d = m_old - m_new <= 0 and r = e^d:

    Z' = rZ    O' = rO    A1' = r(A1 + dZ)    C' = r^2 C    V' = rV

V, taken from its own mean (as A2 - A1^2/Z it would cancel), merges with that of the next block like any second moment.
Mean and variance over visible keys, each counted once, merge as in Chan, Golub & LeVeque (1983).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .blocks import FLOOR, ScoreBlock
from .tiling import Block
from .workspace import Workspace

_CHUNK = 64
_TINY = 1e-30
_EXPECTATIONS = ("sink_mass", "distance")

Expect = Callable[[Block, Tensor, dict[str, Tensor]], None]
"""Writes sum e f over a block, for the functions f whose expectations are asked for, into its planes (n, R)."""


class Moments:
    """Accumulates blocks of scores for R query rows of n entries; tensors are (n, R).

    A step is a few passes over a block that lies in cache, and some operations on rows. At this size an operation on rows
    costs its call more than its work, so what scales alike is kept in one tensor: `total` (K, n, R) with a plane for each
    of Z, A1, V, C and the expectations asked for, and `part`, the same sums over the block at hand.
    """

    def __init__(
        self, needs: frozenset[str], hard: bool, work: Workspace, entries: int, rows: int, expect: Expect | None = None
    ):
        self.hard, self.work, self.expect = hard, work, expect
        self.floor = FLOOR[work.dtype]
        self.squared = "expected_logit_var" in needs
        self.tempered = self.squared or bool(needs & {"excess", "entropy"})
        self.colliding = "collision" in needs
        self.counted = bool(needs & {"logit_mean", "logit_var"})
        planes = ["z", *["a1"] * self.tempered, *["v"] * self.squared, *["c"] * self.colliding]
        planes += [name for name in _EXPECTATIONS if name in needs]
        self.total = work("total", len(planes), entries, rows).zero_()
        self.part = work("part", len(planes), entries, rows)
        self.sums = dict(zip(planes, self.total.unbind(), strict=True))
        self.here = dict(zip(planes, self.part.unbind(), strict=True))
        self.m = work("m", entries, rows).fill_(-math.inf)
        self.next = work("next", entries, rows)
        self.argmax = torch.full_like(self.m, -1, dtype=torch.int64) if "argmax" in needs else None
        self.visible: Tensor | int = 0
        self.started = False
        self.complete = False  # every row has seen a key: no maximum is -inf

    def add(self, block: ScoreBlock) -> tuple[Tensor, Tensor]:
        """Fold in a block of scores (n, R, S'), which are used up.

        Gives the weights e^t (n, R, S') and what sums over earlier weights must be multiplied by, (n, R). `expect` writes the
        planes of expectations.
        """
        s, visible, position = block.scores, block.at.visible, block.at.tile.region.j0
        self.complete = self.complete or visible is None
        if self.counted:
            self._count(block)
        self.visible = self.visible + (s.shape[-1] if visible is None else visible.count)
        if visible is not None:
            s.add_(visible.low)
        m = torch.maximum(self.m, self._top(s, position), out=self.next)
        if not self.complete:  # an empty row's maximum of -inf must not enter a difference
            m = m.masked_fill(m == -math.inf, 0)
        e = self.work("weights", *s.shape)
        if self.hard:
            t, e = s, e.copy_(s == m.unsqueeze(-1))
        else:
            t = s.sub_(m.unsqueeze(-1))
            if visible is not None or not block.mild:
                t.clamp_(min=self.floor)
            block.hide(torch.exp(t, out=e))
        rescale = self._move(m)
        torch.sum(e, -1, out=self.here["z"])
        if self.colliding:
            torch.linalg.vector_norm(e, dim=-1, out=self.here["c"]).square_()
        if self.tempered:
            x = torch.mul(t, e, out=self.work("scratch", *e.shape)) if not self.hard else t.zero_()
            torch.sum(x, -1, out=self.here["a1"])
            if self.squared:
                off = t.sub_((self.here["a1"] / self.here["z"].clamp(min=_TINY)).unsqueeze(-1))
                torch.sum(torch.mul(off, e, out=x).mul_(off), -1, out=self.here["v"])
        if self.expect is not None:
            self.expect(block.at, e, self.here)
        self._close()
        return e, rescale

    def _close(self) -> None:
        """Add the sums over the block at hand to the totals."""
        if self.squared and self.started:
            z, here = self.sums["z"].clamp(min=_TINY), self.here["z"].clamp(min=_TINY)
            apart = (self.here["a1"] / here).sub_(self.sums["a1"] / z)
            self.sums["v"].addcmul_(apart.square_(), z * (here / (z + here)))
        self.total.add_(self.part)
        self.started = True

    def _top(self, s: Tensor, position: int) -> Tensor:
        """The maximum of each row; where it is a new one, also the position of its first occurrence, if asked for.

        torch finds a maximum many times faster than its index, so: the maxima of chunks, the best chunk, and the index in
        it only for the rows whose maximum moved.
        """
        if self.argmax is None:
            return s.amax(-1)
        columns = s.shape[-1]
        chunks = columns // _CHUNK
        if columns % _CHUNK or chunks == 1:
            top, best = s.max(-1)
            self.argmax = torch.where(top > self.m, best.add_(position), self.argmax)
            return top
        tops = s.view(-1, chunks, _CHUNK).amax(-1)
        top = tops.amax(-1).view(self.m.shape)
        moved = (top > self.m).view(-1).nonzero().squeeze(-1)
        if len(moved):
            chunk = tops.index_select(0, moved).max(-1).indices
            best = s.view(-1, _CHUNK).index_select(0, moved.mul(chunks).add_(chunk)).max(-1).indices
            self.argmax.view(-1).index_copy_(0, moved, best.add_(chunk, alpha=_CHUNK).add_(position))
        return top

    def _count(self, block: ScoreBlock) -> None:
        """Mean and sum of squared differences from it, in two passes over the block, then merged into the total."""
        s, visible = block.scores, block.at.visible
        off = self.work("scratch", *s.shape)
        if visible is None:
            seen: Tensor | int = s.shape[-1]
            mean = s.mean(-1)
            torch.sub(s, mean.unsqueeze(-1), out=off)
        else:
            seen = visible.count
            mean = block.hide(off.copy_(s)).sum(-1).div_(seen.clamp(min=1))
            block.hide(torch.sub(s, mean.unsqueeze(-1), out=off))
        squares = torch.linalg.vector_norm(off, dim=-1).square_()
        if not self.started:
            self.mean, self.squares = mean, squares
            return
        delta = mean.sub_(self.mean)
        self.squares.add_(squares)
        if isinstance(seen, int) and isinstance(self.visible, int):
            share = seen / (self.visible + seen)
            self.squares.addcmul_(delta, delta, value=share * self.visible)
            self.mean.add_(delta, alpha=share)
        else:
            part = seen / torch.as_tensor(self.visible + seen).clamp(min=1).to(s.dtype)
            self.squares.add_(delta.square() * part * self.visible)
            self.mean.addcmul_(delta, part)

    def _move(self, m: Tensor) -> Tensor:
        """Move the totals from the old maximum to m; gives r = e^d."""
        d = (self.m - m).clamp_(min=self.floor)  # an empty row's -inf too: its sums are 0
        self.m, self.next = self.next, self.m
        r = (d == 0).to(d.dtype) if self.hard else d.exp()
        if self.tempered and self.started and not self.hard:
            self.sums["a1"].addcmul_(d, self.sums["z"])
        self.total.mul_(r)
        if self.colliding:
            self.sums["c"].mul_(r)
        return r

    def readings(self) -> dict[str, Tensor]:
        """Optional fields of a `Summary`, and log_z, max_logit, visible; each (n, R), finite for empty rows."""
        visible = torch.as_tensor(self.visible, device=self.m.device).expand(self.m.shape)
        none = visible == 0
        z = self.sums["z"].masked_fill(none, 1)
        log_z = z.log()
        out = {"max_logit": self.m, "log_z": log_z, "visible": visible}
        if self.argmax is not None:
            out["argmax"] = self.argmax
        if self.colliding:
            out["collision"] = self.sums["c"] / z.square()
        if self.tempered:
            out["excess"] = excess = self.sums["a1"] / z
            out["entropy"] = log_z - excess
            if self.squared:
                out["expected_logit_var"] = self.sums["v"] / z
        if self.counted:
            zero = torch.zeros_like(z)
            out["logit_mean"] = self.mean if self.started else zero
            out["logit_var"] = self.squares / visible.clamp(min=1) if self.started else zero
        for name in _EXPECTATIONS:
            if name in self.sums:
                out[name] = self.sums[name] / z
        return out
