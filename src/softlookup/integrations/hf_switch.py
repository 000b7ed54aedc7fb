"""Switching a model's attention implementation, and back, exactly."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


@dataclass
class _Switched:
    config: PreTrainedConfig
    original: str | None
    users: int


_LOCK = threading.Lock()
_SWITCHED: dict[int, _Switched] = {}  # by id of the config: the same model may be watched twice, in two threads


@contextmanager
def switched(model: nn.Module, name: str) -> Iterator[int]:
    """Within, every attention of `model` that goes through transformers' attention interface is the one called `name`.

    `model` is a Hugging Face model or any module that holds some. Yields how many configurations were switched. The
    last to leave restores what the first one found, in every configuration and sub-configuration.
    """
    configs = _switchable(model)
    with _LOCK:
        for config in configs:
            entry = _SWITCHED.setdefault(id(config), _Switched(config, config._attn_implementation, 0))
            entry.users += 1
            # The internal attribute, as transformers itself does: the public one overwrites all sub-configurations.
            config._attn_implementation_internal = name
    try:
        yield len(configs)
    finally:
        with _LOCK:
            for config in configs:
                entry = _SWITCHED[id(config)]
                entry.users -= 1
                if not entry.users:
                    config._attn_implementation_internal = entry.original
                    del _SWITCHED[id(config)]


def original_of(module: nn.Module) -> str | None:
    """What the model that `module` is in attends by when it is not switched; None where it is not."""
    entry = _SWITCHED.get(id(getattr(module, "config", None)))
    return None if entry is None else entry.original


def _switchable(model: nn.Module) -> list[PreTrainedConfig]:
    """The configurations that the model's attention modules read, where their code uses the attention interface."""
    found: dict[int, PreTrainedConfig] = {}
    refused: set[int] = set()

    def walk(module: nn.Module, follows: bool) -> None:
        if isinstance(module, PreTrainedModel):
            follows = module._can_set_attn_implementation()  # a heuristic on its source code, transformers' own
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            if follows:
                found[id(config)] = config
            else:
                refused.add(id(config))
        for child in module.children():
            walk(child, follows)

    walk(model, _part_of_a_model(model))
    for config in list(found.values()):
        for part in _parts(config):
            if id(part) not in refused:
                found.setdefault(id(part), part)
    return list(found.values())


def _part_of_a_model(module: nn.Module) -> bool:
    """True for a layer taken out of a Hugging Face model, if the file that defines it uses the attention interface."""
    try:
        return "ALL_ATTENTION_FUNCTIONS.get_interface(" in inspect.getsource(sys.modules[type(module).__module__])
    except (OSError, TypeError, KeyError):
        return False


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Sub-configurations at any depth: some models make their masks from one that no module owns."""
    for key in config.sub_configs:
        part = getattr(config, key, None)
        if isinstance(part, PreTrainedConfig):
            yield part
            yield from _parts(part)
