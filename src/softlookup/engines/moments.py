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

_CHUNK = 64


class Moments:
    """Accumulates blocks of scores for R query rows of n entries; every tensor is (n, R, 1), `average` (n, R, Ev)."""

    def __init__(self, needs: frozenset[str], hard: bool):
        self.needs = needs
        self.hard = hard
        self.tempered = bool(needs & {"excess", "entropy", "expected_logit_var"})
        self.counted = bool(needs & {"logit_mean", "logit_var"})
        self.m: Tensor | None = None

    def add(self, s: Tensor, hidden: Tensor | None, position: int) -> Tensor:
        """Fold in scores s (n, R, S'), -inf where hidden, of keys from `position` on; gives the weights e^t (to be used up).

        The caller adds e^t v to `average` with `self.rescale` (None for the first block) applied first.
        """
        top, best = self._top(s, position)
        seen = s.shape[-1] if hidden is None else (s.shape[-1] - hidden.sum(-1, keepdim=True)).expand_as(top)
        if self.counted:
            self._count(s, hidden, seen)
        self._seen(seen, top)
        m = top if self.m is None else torch.maximum(self.m, top)
        safe = m.masked_fill(m == -math.inf, 0)
        if self.hard:
            e = (s == safe).to(s.dtype)
            t = s
        else:
            t = s.sub_(safe)
            e = torch.exp(t)
        self._move(m, safe, top, best)
        z = e.sum(-1, keepdim=True)
        self.z = z if self.rescale is None else self.z.add_(z)
        if "collision" in self.needs:
            c = torch.linalg.vector_norm(e, dim=-1, keepdim=True).square_()
            self.c = c if self.rescale is None else self.c.add_(c)
        if self.tempered:
            if hidden is not None:
                t = t.masked_fill_(hidden, 0)
            x = torch.zeros_like(e) if self.hard else t * e
            a1 = x.sum(-1, keepdim=True)
            self.a1 = a1 if self.rescale is None else self.a1.add_(a1)
            if "expected_logit_var" in self.needs:
                a2 = x.mul_(t).sum(-1, keepdim=True)
                self.a2 = a2 if self.rescale is None else self.a2.add_(a2)
        return e

    def _top(self, s: Tensor, position: int) -> tuple[Tensor, Tensor | None]:
        """The maximum of each row, and the position of its first occurrence if that is asked for.

        torch finds a maximum many times faster than its index, so: the maxima of chunks, the best chunk, the index in it.
        """
        if "argmax" not in self.needs:
            return s.amax(-1, keepdim=True), None
        columns = s.shape[-1]
        if columns % _CHUNK or columns == _CHUNK:
            top, best = s.max(-1, keepdim=True)
            return top, best + position
        chunks = s.view(*s.shape[:-1], columns // _CHUNK, _CHUNK)
        top, chunk = chunks.amax(-1).max(-1, keepdim=True)
        inside = chunks.gather(-2, chunk.unsqueeze(-1).expand(*chunk.shape, _CHUNK)).squeeze(-2).argmax(-1, keepdim=True)
        return top, chunk * _CHUNK + inside + position

    def _seen(self, seen: Tensor | int, top: Tensor) -> None:
        if not isinstance(seen, Tensor):
            seen = torch.full_like(top, seen, dtype=torch.int64)
        self.visible = seen if self.m is None else self.visible + seen

    def _count(self, s: Tensor, hidden: Tensor | None, seen: Tensor | int) -> None:
        """Mean and sum of squared differences from it, in two passes over the block, then merged into the total."""
        if hidden is not None:
            s = s.masked_fill(hidden, 0)
            n = seen.to(s.dtype)  # type: ignore[union-attr]
            mean = s.sum(-1, keepdim=True) / n.clamp(min=1)
            off = (s - mean).masked_fill_(hidden, 0)
        else:
            mean = s.mean(-1, keepdim=True)
            n = torch.full_like(mean, s.shape[-1])
            off = s - mean
        squares = torch.linalg.vector_norm(off, dim=-1, keepdim=True).square_()
        if self.m is None:
            self.mean, self.squares = mean, squares
            return
        share = n / (self.visible + n).clamp(min=1)
        delta = mean - self.mean
        self.squares = self.squares + squares + delta.square() * share * self.visible
        self.mean = self.mean + delta * share

    def _move(self, m: Tensor, safe: Tensor, top: Tensor, best: Tensor | None) -> None:
        """Move what was accumulated from the old maximum to the new one."""
        self.rescale: Tensor | None = None
        if self.m is None:
            self.m = m
            self.argmax = best
            return
        # An empty row's -inf is cut off at a d whose e^d is 0 all the same, so that d * 0 is 0.
        d = (self.m - safe).clamp_(min=-1e4)
        self.rescale = r = (d == 0).to(d.dtype) if self.hard else torch.exp(d)
        if "expected_logit_var" in self.needs:
            self.a2 = r * (self.a2 + d * (2 * self.a1 + d * self.z)) if not self.hard else self.a2
        if self.tempered and not self.hard:
            self.a1 = r * (self.a1 + d * self.z)
        self.z = self.z * r
        if "collision" in self.needs:
            self.c = self.c * r * r
        if best is not None:
            self.argmax = torch.where((top > self.m) | top.isnan(), best, self.argmax)
        self.m = m

    def readings(self) -> dict[str, Tensor]:
        """The optional fields of a `Summary`, and log_z, max_logit, visible; each (n, R, 1), finite for empty rows."""
        assert self.m is not None
        none = self.visible == 0
        z = self.z.masked_fill(none, 1)
        log_z = z.log()
        out = {"max_logit": self.m, "log_z": log_z, "visible": self.visible}
        if "argmax" in self.needs:
            assert self.argmax is not None
            out["argmax"] = self.argmax.masked_fill(none, -1)
        if "collision" in self.needs:
            out["collision"] = self.c / z.square()
        if self.tempered:
            excess = self.a1 / z
            out["excess"] = excess
            out["entropy"] = log_z - excess
            if "expected_logit_var" in self.needs:
                out["expected_logit_var"] = (self.a2 / z - excess.square()).clamp_(min=0)
        if self.counted:
            out["logit_mean"] = self.mean
            out["logit_var"] = self.squares / self.visible.clamp(min=1)
        return out
