"""The machine of a benchmark: held to a number of threads, named, and its peak of fused multiply-adds measured."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "benchmarks"
"""What the contenders compile is kept here, so that a second run compiles nothing."""

PACKAGES = ("softlookup", "torch", "jax", "jaxlib", "onnxruntime", "pykeops", "numpy")


def limit(threads: int) -> None:
    """Hold this process to `threads` cores, before any contender is imported.

    torch, softlookup, KeOps and what inductor compiles share one libgomp (`openmp_runtimes`); JAX and ONNX Runtime bring
    pools of their own. All are told the number, and the affinity of the process holds those that would not listen.
    """
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, _cores(threads))
    os.environ["PJRT_NPROC"] = str(threads)
    os.environ["KEOPS_CACHE_FOLDER"] = str(BUILD / "keops")
    os.environ["KEOPS_VERBOSE"] = os.environ["PYKEOPS_VERBOSE"] = "0"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(BUILD / "inductor")
    os.environ["JAX_PLATFORMS"] = "cpu"
    BUILD.mkdir(parents=True, exist_ok=True)


def _cores(threads: int) -> set[int]:
    """One CPU of each physical core as far as there are enough, then their siblings."""
    allowed = sorted(os.sched_getaffinity(0))
    siblings = {}
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings[cpu] = path.read_text() if path.exists() else str(cpu)
    first = [cpu for cpu in allowed if next(c for c in allowed if siblings[c] == siblings[cpu]) == cpu]
    return set((first + [cpu for cpu in allowed if cpu not in first])[:threads])


def describe(threads: int) -> dict[str, object]:
    """What a figure depends on beside the code."""
    return {
        "cpu": _cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def openmp_runtimes() -> list[str]:
    """Files of the OpenMP runtimes that are loaded; two would have two pools, whose idle threads spin against each other."""
    path = Path("/proc/self/maps")
    lines = path.read_text().splitlines() if path.exists() else []
    files = {line.split()[-1] for line in lines if "/" in line}
    return sorted(x for x in files if re.match(r"lib(gomp|iomp5|omp)\b", Path(x).name))


def spare_memory() -> int:
    """Bytes that one contender may hold: half of what is available."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return available[0] // 2 if available else 4 * 2**30


class Peak:
    """Measures the peak of fused multiply-adds, in units of 1e9 operations per second; `why` says where it cannot."""

    def __init__(self, threads: int):
        self.threads, self.steps, self.why = threads, 10_000, ""
        compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            self.why = "no C++ compiler found"
            return
        library = BUILD / "peak.so"
        command = [compiler, "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
        built = subprocess.run([*command, str(HERE / "peak.cpp"), "-o", str(library)], capture_output=True, text=True)
        if built.returncode:
            self.why = f"{compiler} could not compile peak.cpp: {built.stderr.strip()[:100]}"
            return
        self._measure = ctypes.CDLL(str(library)).fma_peak
        self._measure.restype, self._measure.argtypes = ctypes.c_double, [ctypes.c_int, ctypes.c_long]
        start = time.perf_counter()
        while (before := time.perf_counter() - start) < 0.02:
            self.steps *= 2
            self()
            start += before

    def __call__(self) -> float:
        return float(self._measure(self.threads, self.steps))
