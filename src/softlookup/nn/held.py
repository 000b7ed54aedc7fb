"""The tensors of a score or a normalizer as parameters and buffers of a module: they move, are saved and learn with it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Held(nn.Module):
    """What `of` has as attributes: parameters, modules, and plain tensors as buffers. `of` keeps the ones that hold."""

    def __init__(self, of: object):
        super().__init__()
        self.of = of
        for name, x in vars(of).items():
            if isinstance(x, nn.Parameter):
                self.register_parameter(name, x)
            elif isinstance(x, Tensor):
                self.register_buffer(name, x)
            elif isinstance(x, nn.Module):
                self.add_module(name, x)

    def _apply(self, fn: Any, recurse: bool = True) -> Held:
        super()._apply(fn, recurse)
        self._give_back()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._give_back()  # what may have been assigned

    def _give_back(self) -> None:
        for name, x in (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)):
            object.__setattr__(self.of, name, x)  # Softmax is frozen
