"""What was seen goes to a callback, to TensorBoard, and to all processes of a group."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp

import softlookup as sl
from softlookup.watching import Callback, Seen, TensorBoard


def watched(seed: int = 0, length: int = 6) -> Seen:
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True, dropout=0.0)
    x = torch.randn(2, length, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(), sl.watch(model, stats=("entropy", "max_logit")) as seen:
        model(x)
    return seen


def test_a_callback_gets_numbers_and_the_step():
    seen, calls = watched(), []
    Callback(lambda numbers, step: calls.append((step, numbers)))(3, seen, loss=0.5)
    ((step, numbers),) = calls
    layer = seen.layers["self_attn"]
    assert step == 3 and numbers == {
        "loss": 0.5,
        "self_attn/entropy": float(layer.mean("entropy").mean()),
        "self_attn/max_logit": float(layer.max("max_logit").max()),
    }


@pytest.mark.parametrize("heads", [False, True])
def test_tensorboard_reads_what_was_written(tmp_path, heads):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    seen = watched()
    with SummaryWriter(str(tmp_path)) as writer:
        TensorBoard(writer, heads)(5, seen, loss=1.25)
    events = EventAccumulator(str(tmp_path)).Reload()
    names = {"loss", "attention/self_attn/entropy", "attention/self_attn/max_logit"}
    if heads:
        names |= {f"attention/self_attn/{stat}/{h}" for stat in ("entropy", "max_logit") for h in (0, 1)}
    assert set(events.Tags()["scalars"]) == names
    (event,) = events.Scalars("attention/self_attn/entropy")
    assert event.step == 5 and event.value == pytest.approx(float(seen.layers["self_attn"].mean("entropy").mean()))


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    together = watched(seed=rank, length=6 + 3 * rank).gathered()
    torch.save(together, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_see_together_what_one_would_have_seen(tmp_path):
    mp.spawn(_process, (str(tmp_path),), nprocs=2)
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=False).layers["self_attn"] for rank in (0, 1))
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True, dropout=0.0)
    with torch.no_grad(), sl.watch(model, stats=("entropy", "max_logit")) as seen:
        for rank in (0, 1):
            model(torch.randn(2, 6 + 3 * rank, 8, generator=torch.Generator().manual_seed(rank)))
    one = seen.layers["self_attn"]
    for each in (a, b):
        assert each.counts.tolist() == one.counts.tolist() == [30, 30]
        for of in ("mean", "std", "min", "max"):
            torch.testing.assert_close(getattr(each, of)("entropy"), getattr(one, of)("entropy"), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(each.quantile("max_logit", 0.5), one.quantile("max_logit", 0.5))
