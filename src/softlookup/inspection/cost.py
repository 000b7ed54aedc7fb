"""What looking costs, measured against the plain model in the same run."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class Pass:
    """One forward: wall seconds, and the process's peak memory meanwhile in MB (None where the system does not
    tell)."""

    seconds: float
    peak_mb: float | None


@dataclass(frozen=True)
class Cost:
    """Three kinds of forward.

    plain:  the model with its own kernels
    looked: the forward that also returned every statistic
    closer: the forward that sampled logits and followed single heads through the text
    """

    plain: Pass
    looked: Pass
    closer: Pass

    @property
    def ratio(self) -> float:
        """How many times the plain forward the look took."""
        return self.looked.seconds / max(self.plain.seconds, 1e-9)

    @property
    def extra_mb(self) -> float | None:
        """Peak memory beyond the plain forward's, in MB."""
        peaks = [part.peak_mb for part in (self.looked, self.closer) if part.peak_mb is not None]
        if self.plain.peak_mb is None or not peaks:
            return None
        return max(0.0, max(peaks) - self.plain.peak_mb)

    def __str__(self) -> str:
        text = (
            f"plain forward {seconds(self.plain.seconds)}, "
            f"with statistics {seconds(self.looked.seconds)} ({self.ratio:.2f}×), "
            f"histograms and token views {seconds(self.closer.seconds)}"
        )
        return text if self.extra_mb is None else text + f"; peak memory +{self.extra_mb:.0f} MB"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio, "extra_mb": self.extra_mb}


def seconds(duration: float) -> str:
    """``0.42 s``, ``12 s``, ``850 µs``: three significant digits are more than a clock can promise."""
    if duration >= 10:
        return f"{duration:.0f} s"
    if duration >= 0.1:
        return f"{duration:.2g} s"
    return f"{duration * 1e3:.2g} ms" if duration >= 1e-3 else f"{duration * 1e6:.0f} µs"


def best(passes: Sequence[Pass]) -> Pass:
    """The fastest time and the smallest peak of several runs of the same thing: what is above them is the machine's
    noise."""
    peaks = [part.peak_mb for part in passes if part.peak_mb is not None]
    return Pass(min(part.seconds for part in passes), min(peaks, default=None))


def measured(run: Callable[[], Any], finish: Callable[[], None], device: torch.device) -> Pass:
    """Time ``run`` and take its peak memory. The result is dropped at once: an output that is kept alive would count
    as ours."""
    _reset_peak(device)
    begin = time.perf_counter()
    run()
    finish()
    return Pass(time.perf_counter() - begin, _peak_mb(device))


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    trim()
    try:  # Linux: "5" resets the high-water mark of resident memory
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def trim() -> None:
    """Give freed memory back to the system (glibc keeps it), or the leftovers of one pass would count in the next."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        pass


def _peak_mb(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MEGABYTE
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None
