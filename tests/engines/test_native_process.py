"""The native engine as a good neighbour in a process: memory, repeated runs, threads of torch and of Python, forks, spawns.

**After a fork.** Where a process has used several threads and then forks, its child cannot use several of its own: the pool
of libgomp, which torch and this engine share, did not survive, and the child waits for it forever. So it is with torch's own
operations. With one thread all is well, and one is what a DataLoader gives its workers. The tests assert what works, and of
what does not that it is no different from torch. Whatever could hang runs in a process of its own that is killed in time.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

import softlookup as sl
from softlookup.engines import library

pytestmark = [
    pytest.mark.skipif(library.load()[0] is None, reason=f"no native engine: {library.load()[1]}"),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here to read memory and threads from"),
]

SETTING = '''
import os, sys
import torch, softlookup as sl

def inputs(n=40, s=60, seed=0):
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(1, heads, length, 16, generator=make) for heads, length in ((2, n), (1, s), (1, s))]

def gradients(seed=0, **said):
    leaves = [t.requires_grad_() for t in inputs(seed=seed)]
    y, stats = sl.attend(*leaves, stats=True, **said)
    return torch.autograd.grad([y, stats.entropy], leaves, [torch.ones_like(y), torch.ones_like(stats.entropy)])

def report(*what):
    """One line at once: processes that share a pipe must not write into each other's."""
    os.write(1, (" ".join(map(str, what)) + "\\n").encode())

assert sl.explain(*inputs()).engine == "native"
'''


def run(tmp_path: Path, code: str, timeout: float = 60) -> list[str]:
    """The lines that a script of its own prints; it must end in time."""
    script = tmp_path / "script.py"
    script.write_text(SETTING + textwrap.dedent(code))
    out = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=timeout)
    assert out.returncode == 0, out.stderr
    return out.stdout.split("\n")[:-1]


# ---- memory ----------------------------------------------------------------------------------------------------------

LOOPS = {
    "forward and backward": (3000, "gradients(seed=k % 7, mask=sl.Causal())"),
    "decoding": (4000, "sl.attend(*inputs(1, 40 + k % 50), stats=True)"),
    "a boolean tensor as mask": (1500, "sl.attend(*inputs(), mask=torch.rand(1, 1, 40, 60) > 0.5)"),
    "padding": (6000, "sl.attend(*inputs(), mask=sl.Padding(torch.rand(1, 60) > 0.5) & sl.Causal(), stats=['entropy'])"),
    "a dense bias": (300, "gradients(bias=torch.randn(40, 60, requires_grad=True), mask=lambda b, h, i, j: i - j > k % 5)"),
    "not finite": (300, "q, *kv = inputs(1 + k % 20); q[..., 0, 0] = torch.nan; sl.attend(q, *kv, stats=True)"),
}
"""How often, and what."""


def test_memory_does_not_grow(tmp_path):
    """10,000 calls. The first half of each kind fills caches and arenas; the second may take 64 KB and 100 bytes a call."""
    assert sum(calls for calls, _ in LOOPS.values()) >= 10_000
    loops = "\n".join(f"def loop{n}(k): {code}" for n, (_, code) in enumerate(LOOPS.values()))
    grown = run(
        tmp_path,
        f"{loops}\nLOOPS = {[calls // 2 for calls, _ in LOOPS.values()]}"
        + """
def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024

torch.set_num_threads(2)
for half in range(2):
    for n, calls in enumerate(LOOPS):
        before = resident()
        for k in range(calls):
            globals()[f"loop{n}"](k)
        report(resident() - before)
""",
    )[len(LOOPS) :]
    for (name, (calls, _)), more in zip(LOOPS.items(), grown, strict=True):
        assert int(more) <= 64 * 1024 + 100 * (calls // 2), f"{name}: {more} bytes more after {calls // 2} calls"


# ---- runs and threads ------------------------------------------------------------------------------------------------


def tensors(n: int = 300, s: int = 400, seed: int = 0) -> list[Tensor]:
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(2, heads, length, 24, generator=make) for heads, length in ((6, n), (3, s), (3, s))]


CALLS = {
    "causal": lambda: {"mask": sl.Causal()},
    "learned bias": lambda: {"bias": sl.ALiBi(torch.rand(6, generator=torch.Generator().manual_seed(1)).requires_grad_())},
    "dense bias": lambda: {"bias": torch.randn(1, 6, 1, 400, generator=torch.Generator().manual_seed(1)).requires_grad_()},
    "key bias": lambda: {"score": sl.Gaussian(3.0), "mask": sl.Window(100)},
    "dropout": lambda: {"dropout_p": 0.3, "seed": 1, "score": sl.ScaledDot(softcap=5.0)},
}


def everything(call: str, queries: int = 300) -> list[Tensor]:
    """Value, all statistics and all gradients of one call."""
    arguments = CALLS[call]()
    leaves = [t.requires_grad_() for t in tensors(queries)]
    with sl.engine("native"):
        y, stats = sl.attend(*leaves, **arguments, stats=[*sl.CHEAP, "received"])
        outputs = [y, *(stats[name] for name in stats)]
        real = [x for x in outputs if x.requires_grad]
        bias = arguments.get("bias")
        leaves += [] if bias is None else [getattr(bias, "tensor", bias)]
        grads = torch.autograd.grad(real, leaves, [torch.linspace(-1, 1, x.numel()).view_as(x) for x in real])
        with torch.no_grad():
            decoded = sl.attend(leaves[0][:, :, -3:], *leaves[1:3], stats=True)
    return [*(x.detach() for x in outputs), *grads, decoded[0], *(decoded[1][name] for name in sl.CHEAP)]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("call", CALLS)
def test_the_same_bits_every_time(call, threads):
    torch.set_num_threads(threads)
    first = everything(call)
    assert all(equal(first, everything(call)) for _ in range(4))


@pytest.mark.parametrize("call", CALLS)
def test_any_number_of_threads_is_correct(call):
    """Gradients are summed in other parts, so only all but their last digits are the same."""
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(everything(call))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * max(1.0, float(a[a.isfinite()].abs().max())))


def test_no_more_threads_than_torch_may_use(tmp_path):
    """Threads that are there after a call, beyond those before the first one: none for one, as the caller works too."""
    lines = run(
        tmp_path,
        """
        q, k, v = (torch.randn(1, 16, 500, 16) for _ in range(3))
        torch.set_num_threads(1)
        before = len(os.listdir("/proc/self/task"))
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sl.attend(q, k, v, mask=sl.Causal(), stats=True)
            sl.attend(q[:, :, :1], k, v, stats=True)
            report(len(os.listdir("/proc/self/task")) - before)
        """,
    )
    assert all(int(more) < threads for threads, more in enumerate(lines, 1)), lines


def test_several_python_threads_at_once():
    torch.set_num_threads(2)
    work = list(product(CALLS, (300, 90, 7)))
    alone = {job: everything(*job) for job in work}
    with ThreadPoolExecutor(4) as pool:
        for job, result in [(job, pool.submit(everything, *job)) for job in work * 3]:
            assert equal(result.result(timeout=60), alone[job]), job


# ---- processes -------------------------------------------------------------------------------------------------------

FORKING = """
import time, warnings
from torch.utils.data import DataLoader, Dataset

warnings.simplefilter("ignore", DeprecationWarning)
LENGTH = 6

def result(k, queries=300):
    make = torch.Generator().manual_seed(k)
    q, k, v = (torch.randn(1, 4, length, 16, generator=make) for length in (queries, 300, 300))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    with sl.engine("native"):
        y, stats = sl.attend(*leaves, mask=sl.Causal(), stats=True)
        grads = torch.autograd.grad([y, stats.entropy], leaves, [torch.ones_like(y), torch.ones_like(stats.entropy)])
        with torch.no_grad():
            few = sl.attend(q[:, :, -2:], *leaves[1:])
    return torch.cat([x.detach().flatten() for x in (y, stats.entropy, *grads, few)])

class Attended(Dataset):
    def __len__(self):
        return LENGTH

    def __getitem__(self, k):
        return result(k)

def right(results):
    torch.set_num_threads(1)
    return all(torch.equal(x, result(k)) for k, x in enumerate(results))

def loaded(**how):
    return list(DataLoader(Attended(), batch_size=None, num_workers=2, timeout=30, **how))
"""


def test_forks(tmp_path):
    """Children of os.fork and workers of a DataLoader, before and after the parent has used the engine by itself."""
    lines = run(
        tmp_path,
        FORKING
        + """
def child(job, threads):
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(threads)
        os._exit(0 if job() else 1)
    finally:
        os._exit(2)

def outcomes(children, seconds):
    left, ended, until = dict(children), {}, time.monotonic() + seconds
    while left and time.monotonic() < until:
        for name, pid in list(left.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended[name] = os.waitstatus_to_exitcode(status)
                del left[name]
        time.sleep(0.02)
    for name, pid in left.items():
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        ended[name] = "hangs"
    return dict(sorted(ended.items()))

def works():
    return bool(result(0).isfinite().any())

def torch_works():
    return bool(torch.ones(3000, 1000).exp().isfinite().any())

report("before any use:", outcomes({str(threads): child(works, threads) for threads in (1, 2)}, 30))
workers = loaded(multiprocessing_context="fork")
torch.set_num_threads(2)
works(), torch_works()
again = loaded(multiprocessing_context="fork")
report("after:", outcomes({"1": child(works, 1)}, 30))
both = {"torch": child(torch_works, 2), "softlookup": child(works, 2)}
report("several threads after:", outcomes(both, 4))
report("workers:", right(workers), right(again), len(workers), len(again))
""",
        timeout=120,
    )
    assert lines[0] == "before any use: {'1': 0, '2': 0}"
    assert lines[1] == "after: {'1': 0}"
    assert "'softlookup': 0" in lines[2] or "'torch': 'hangs'" in lines[2], lines[2]
    assert lines[3] == "workers: True True 6 6"


def test_spawned_processes(tmp_path):
    """A DataLoader's worker that is spawned, and one of torch.multiprocessing that is given tensors in shared memory."""
    lines = run(
        tmp_path,
        FORKING
        + """
def fill(inputs, into):
    torch.set_num_threads(2)
    with sl.engine("native"):
        into.copy_(sl.attend(*inputs, mask=sl.Causal()))

if __name__ == "__main__":
    context = torch.multiprocessing.get_context("spawn")
    inputs = [t.share_memory_() for t in inputs(300, 300)]
    into = torch.zeros(1, 2, 300, 16).share_memory_()
    worker = context.Process(target=fill, args=(inputs, into))
    worker.start()
    results = list(DataLoader(Attended(), batch_size=None, num_workers=1, timeout=60, multiprocessing_context="spawn"))
    worker.join(60)
    torch.set_num_threads(2)
    report(worker.exitcode, torch.equal(into, sl.attend(*inputs, mask=sl.Causal())))
    report(right(results), len(results))
""",
        timeout=120,
    )
    assert lines == ["0 True", "True 6"]
