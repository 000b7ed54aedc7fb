"""The running moments of one block of queries, as keys stream past (online softmax, Milakov & Gimelshein 2018, with moments).

Everything is kept relative to the running maximum m, so that nothing overflows or cancels:

    Z = sum e^t    O = sum e^t v    A1 = sum e^t t    A2 = sum e^t t^2    C = sum e^2t        with t = s - m.

When m moves by d = m_old - m_new <= 0 and r = e^d:  Z' = rZ, O' = rO, A1' = r(A1 + dZ), A2' = r(A2 + 2d A1 + d^2 Z), C' = r^2 C.
Mean and variance over visible keys, each counted once, merge as in Chan, Golub & LeVeque (1983).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .workspace import Workspace

_CHUNK = 64


class Moments:
    """Accumulates blocks of scores for R query rows of n entries; every tensor is (n, R, 1).

    Each step is a few passes over a block that lies in cache, and a few operations on rows: what is spent on rows counts,
    so a block in which everything is visible keeps its counts as plain numbers.
    """

    def __init__(self, needs: frozenset[str], hard: bool, work: Workspace):
        self.needs = needs
        self.work = work
        self.hard = hard
        self.squared = "expected_logit_var" in needs
        self.tempered = self.squared or bool(needs & {"excess", "entropy"})
        self.colliding = "collision" in needs
        self.counted = bool(needs & {"logit_mean", "logit_var"})
        self.m: Tensor | None = None
        self.visible: Tensor | int = 0
        self.rescale: Tensor | None = None

    def add(self, s: Tensor, hidden: Tensor | None, position: int) -> Tensor:
        """Fold in scores s (n, R, S'), -inf where hidden, of keys from `position` on; gives the weights e^t (n, R, S').

        s is used up. What the caller has summed with earlier weights must be multiplied by `rescale` (None at first).
        `z_here` is the sum of the weights of this block.
        """
        top, best = self._top(s, position)
        seen = s.shape[-1] if hidden is None else s.shape[-1] - hidden.sum(-1, keepdim=True)
        if self.counted:
            self._count(s, hidden, seen)
        self.visible = self.visible + seen
        m = top if self.m is None else torch.maximum(self.m, top)
        safe = m.masked_fill(m == -math.inf, 0)
        if self.hard:
            t, e = s, (s == safe).to(s.dtype)
        else:
            t = s.sub_(safe)
            e = torch.exp(t, out=self.work("weights", *t.shape)) if self.tempered else t.exp_()
        self._move(m, safe, top, best)
        self.z_here = e.sum(-1, keepdim=True)
        self.z = self._sum("z", self.z_here)
        if self.colliding:
            self.c = self._sum("c", torch.linalg.vector_norm(e, dim=-1, keepdim=True).square_())
        if self.tempered:
            if hidden is not None:
                t.masked_fill_(hidden, 0)
            x = torch.zeros_like(e) if self.hard else torch.mul(t, e, out=self.work("scratch", *e.shape))
            self.a1 = self._sum("a1", x.sum(-1, keepdim=True))
            if self.squared:
                self.a2 = self._sum("a2", x.mul_(t).sum(-1, keepdim=True))
        return e

    def _sum(self, name: str, part: Tensor) -> Tensor:
        return part if self.rescale is None else getattr(self, name).add_(part)

    def _top(self, s: Tensor, position: int) -> tuple[Tensor, Tensor | None]:
        """The maximum of each row, and the position of its first occurrence if that is asked for.

        torch finds a maximum many times faster than its index, so: the maxima of chunks, the best chunk, the index in it.
        """
        if "argmax" not in self.needs:
            return s.amax(-1, keepdim=True), None
        columns = s.shape[-1]
        if columns % _CHUNK or columns == _CHUNK:
            top, best = s.max(-1, keepdim=True)
            return top, best.add_(position)
        chunks = columns // _CHUNK
        top, chunk = s.view(*s.shape[:-1], chunks, _CHUNK).amax(-1).max(-1, keepdim=True)
        rows = torch.arange(0, chunk.numel() * chunks, chunks, device=s.device)
        inside = s.view(-1, _CHUNK).index_select(0, rows.add_(chunk.view(-1))).max(-1).indices
        return top, chunk.mul_(_CHUNK).add_(inside.view(chunk.shape)).add_(position)

    def _count(self, s: Tensor, hidden: Tensor | None, seen: Tensor | int) -> None:
        """Mean and sum of squared differences from it, in two passes over the block, then merged into the total."""
        if hidden is None:
            mean = s.mean(-1, keepdim=True)
            off = torch.sub(s, mean, out=self.work("scratch", *s.shape))
        else:
            s = self.work("scratch", *s.shape).copy_(s).masked_fill_(hidden, 0)
            mean = s.sum(-1, keepdim=True) / torch.as_tensor(seen).clamp(min=1)
            off = s.sub_(mean).masked_fill_(hidden, 0)
        squares = torch.linalg.vector_norm(off, dim=-1, keepdim=True).square_()
        if self.m is None:
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
            self.mean.add_(delta * part)

    def _move(self, m: Tensor, safe: Tensor, top: Tensor, best: Tensor | None) -> None:
        """Move what was accumulated from the old maximum to the new one."""
        old, self.m = self.m, m
        if old is None:
            self.argmax = best
            return
        # An empty row's -inf is cut off at a d whose e^d is 0 all the same, so that d * 0 is 0.
        d = (old - safe).clamp_(min=-1e4)
        self.rescale = r = (d == 0).to(d.dtype) if self.hard else d.exp()
        if self.tempered and not self.hard:
            a1 = torch.addcmul(self.a1, d, self.z)
            if self.squared:
                self.a2.addcmul_(d, self.a1.add_(a1)).mul_(r)
            self.a1 = a1.mul_(r)
        self.z = self.z * r
        if self.colliding:
            self.c.mul_(r).mul_(r)
        if best is not None:
            assert self.argmax is not None
            self.argmax = torch.where((top > old) | top.isnan(), best, self.argmax)

    def readings(self) -> dict[str, Tensor]:
        """The optional fields of a `Summary`, and log_z, max_logit, visible; each (n, R, 1), finite for empty rows."""
        assert self.m is not None
        visible = torch.as_tensor(self.visible, device=self.m.device).expand_as(self.m)
        none = visible == 0
        z = self.z.masked_fill(none, 1)
        log_z = z.log()
        out = {"max_logit": self.m, "log_z": log_z, "visible": visible}
        if "argmax" in self.needs:
            assert self.argmax is not None
            out["argmax"] = self.argmax.masked_fill(none, -1)
        if self.colliding:
            out["collision"] = self.c / z.square()
        if self.tempered:
            excess = self.a1 / z
            out["excess"] = excess
            out["entropy"] = log_z - excess
            if self.squared:
                out["expected_logit_var"] = (self.a2 / z - excess.square()).clamp_(min=0)
        if self.counted:
            out["logit_mean"] = self.mean
            out["logit_var"] = self.squares / visible.clamp(min=1)
        return out
