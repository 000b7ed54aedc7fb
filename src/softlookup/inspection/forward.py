"""How a batch is handed to a model, and the state the model is in meanwhile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SoftlookupError

# What inference does not need and what would make the plain forward slower and larger than it has to be: a cache
# that nobody reads, logits of every position, n×n weights. Set only where the model knows the word and the caller
# has not chosen.
LEAN: dict[str, Any] = {"use_cache": False, "logits_to_keep": 1, "return_dict": True}


def bind(model: nn.Module, inputs: Any) -> Callable[[], Any]:
    """``inputs`` (a mapping of keywords, a tensor or a sequence of positional arguments) as a call that can be
    repeated."""
    if not isinstance(model, nn.Module):
        raise SoftlookupError(f"look: expected a torch.nn.Module, got {type(model).__name__}")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if isinstance(inputs, Mapping):  # a BatchEncoding is one too
        keywords = {str(name): _moved(value, device) for name, value in inputs.items()}
        keywords |= {name: value for name, value in _lean(model, keywords).items() if name not in keywords}
        return lambda: model(**keywords)
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if isinstance(inputs, (tuple, list)) and inputs:
        arguments = tuple(_moved(value, device) for value in inputs)
        lean = _lean(model, {})
        return lambda: model(*arguments, **lean)
    raise SoftlookupError(
        f"look: expected inputs as a mapping, a tensor or a non-empty tuple, got {type(inputs).__name__}"
    )


@contextmanager
def quietly(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; every module's own mode (a frozen layer differs from its model)
    restored after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def synchronize(model: nn.Module) -> None:
    """Wait for the accelerator, so that a clock read afterwards is the truth."""
    device = next((parameter.device for parameter in model.parameters()), None)
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def _lean(model: nn.Module, keywords: Mapping[str, Any]) -> dict[str, Any]:
    if "labels" in keywords:  # a loss needs the logits of every position
        return {}
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in LEAN.items() if name in known}


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
