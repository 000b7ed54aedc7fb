"""`Moments` in one pass over each block, by the compiled kernels (csrc/fold.h): the same readings, many times faster."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from ..problem import Problem
from . import library
from .blocks import Blocks, ScoreBlock
from .tiling import Queries

_STATE = ("m", "z", "mean", "var", "c", "distance", "sink", "count", "flat_mean", "flat_var", "fade")


def serves(problem: Problem) -> bool:
    """Whether blocks of this problem can be folded by the compiled kernels."""
    here = problem.query.device.type == "cpu" and problem.accumulate == torch.float32 and not problem.hard
    return here and library.load()[0] is not None


class FusedMoments:
    """Accumulates blocks of scores for R query rows of n entries; see `Moments`."""

    def __init__(self, walk: Blocks, at: Queries, rows: int):
        problem = walk.problem
        native, _ = library.load()
        assert native is not None
        self.fold, self.at, self.shape, self.needs = native.sl_fold_block, at, (at.entries, rows), problem.needs
        self.state = walk.work("fold", len(_STATE), *self.shape).zero_()
        self.planes = dict(zip(_STATE, self.state.unbind(), strict=True))
        self.planes["m"].fill_(-math.inf)
        self.argmax = torch.full(self.shape, -1, dtype=torch.int64) if "argmax" in problem.needs else None
        self.positions = at.i.contiguous()
        first = torch.as_tensor(problem.first_key).expand(problem.query.shape[0])[at.b0 : at.b1]
        self.first_sink = first.cpu().repeat_interleave(at.g1 - at.g0).to(torch.int64).contiguous()
        self.struct = library.Fold(
            rows=at.entries * rows,
            entry_rows=rows,
            query_position=self.positions.data_ptr(),
            queries=len(self.positions),
            first_sink=self.first_sink.data_ptr(),
            sinks=problem.sinks,
            statistics=bool(problem.needs),
            threads=torch.get_num_threads(),
            best=None if self.argmax is None else self.argmax.data_ptr(),
            **{name: plane.data_ptr() for name, plane in self.planes.items()},
        )

    def add(self, block: ScoreBlock) -> tuple[Tensor, Tensor]:
        """Fold in a block of scores (n, R, S'), which become the weights e^t; also what earlier sums are multiplied by."""
        s, visible, struct = block.scores.contiguous(), block.at.visible, self.struct
        struct.scores, struct.columns, struct.position = s.data_ptr(), s.shape[-1], block.at.tile.region.j0
        if visible is None:
            struct.seen = None
        else:
            seen = visible.bytes.expand(*self.shape, -1)
            struct.seen, struct.seen_entry, struct.seen_row = seen.data_ptr(), *seen.stride()[:2]
        self.fold(ctypes.byref(struct))
        return s, self.planes["fade"]

    def readings(self) -> dict[str, Tensor]:
        """Optional fields of a `Summary`, and log_z, max_logit, visible; each (n, R), finite for empty rows."""
        p = self.planes
        none = p["count"] == 0
        z = p["z"].masked_fill(none, 1)
        log_z = z.log()
        out = {"max_logit": p["m"], "log_z": log_z, "visible": p["count"].to(torch.int64)}
        if self.argmax is not None:
            out["argmax"] = self.argmax
        if self.needs:
            out |= {
                "excess": p["mean"],
                "entropy": log_z - p["mean"],
                "expected_logit_var": p["var"] / z,
                "collision": p["c"] / z.square(),
                "logit_mean": p["flat_mean"],
                "logit_var": p["flat_var"] / p["count"].clamp(min=1),
                "sink_mass": p["sink"] / z,
                "distance": p["distance"] / z,
            }
        return out
