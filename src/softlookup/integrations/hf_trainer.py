"""Hugging Face's Trainer: a callback that watches, records and warns while a model trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from torch import nn
from transformers import TrainerCallback

from ..errors import SoftlookupError
from ..watching import Alarm, Alarms, Seen
from .any_model import watch

_logger = logging.getLogger("softlookup")


class Recorder(Protocol):
    """`JSONLines`, `TensorBoard`, `Callback`, or anything that is called like them."""

    def __call__(self, step: int, seen: Seen, **numbers: float) -> None: ...


class WatchCallback(TrainerCallback):
    """Watches the model of a `transformers.Trainer`:

        trainer = Trainer(model, …, callbacks=[WatchCallback(JSONLines("watch.jsonl"), steps=10)])

    Args:
        recorders: called every `steps` optimizer steps, and before an evaluation, with what was seen since the last time.
        steps: how many; `every` (of `watch`) leaves out forward passes in between.
        alarms: judged at the same steps; by default `Alarms()`.
        on_alarm: called with each alarm that is raised or cleared; by
            default it is logged as a warning by the logger "softlookup".
        watching: other arguments of `watch`.

    The watch opens when training begins and closes when it ends. After an exception in training, `close()` closes it.
    """

    def __init__(
        self,
        *recorders: Recorder,
        steps: int = 1,
        alarms: Alarms | None = None,
        on_alarm: Callable[[Alarm], Any] | None = None,
        **watching: Any,
    ):
        if steps < 1:
            raise SoftlookupError(f"WatchCallback: expected steps of at least 1, got {steps}")
        self._recorders: Sequence[Recorder] = recorders
        self._steps, self._watching = steps, watching
        self._alarms = Alarms() if alarms is None else alarms
        self._on_alarm = on_alarm or (lambda alarm: _logger.warning("%s", alarm))
        self._open = ExitStack()
        self.seen: Seen | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        self.close()
        assert model is not None  # Trainer's own promise
        self.seen = self._open.enter_context(watch(model, **self._watching))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._steps == 0 or control.should_evaluate:  # before an evaluation is seen
            self._observe(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_evaluate:
            self._observe(state)

    def _observe(self, state: Any) -> None:
        if self.seen is None or not any(x.count for x in self.seen.layers.values()):
            return
        for alarm in self._alarms(state.global_step, self.seen):
            self._on_alarm(alarm)
        for record in self._recorders:
            record(state.global_step, self.seen, epoch=float(state.epoch))
        self.seen.clear()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.seen is not None:
            self.seen.clear()  # what the model did with other data is no part of the training

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the watch, if it is open: the model attends as it did before."""
        self.seen = None
        try:
            self._open.close()
        except SoftlookupError as error:  # nothing was seen: no reason to lose a run that is done
            _logger.warning("%s", error)
