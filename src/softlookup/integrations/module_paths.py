"""Which module of a model is running: a stack of module paths, kept by forward hooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class Frame:
    """A module whose forward is running, and what it was called with."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class ModulePaths:
    """The running modules of one model, innermost last.

    `active` tells whether the calling thread is the one to follow: hooks fire in every thread that runs the model.
    """

    def __init__(self, model: nn.Module, active: Callable[[], bool]):
        # torch.compile wraps a module in another one whose only child is `_orig_mod`.
        names = ((name.replace("_orig_mod.", "").removesuffix("_orig_mod"), m) for name, m in model.named_modules())
        self._modules = {id(m): (name.removesuffix(".") or type(m).__name__, m) for name, m in names}
        self._active = active
        self._stack: list[Frame] = []
        self._calls: Counter[str] = Counter()
        self._handles: list[Any] = []
        self._pass = ExitStack()

    def attach(self, pass_: Callable[[], AbstractContextManager[Any]]) -> None:
        """Follow the model until `detach`; each pass, an outermost module from start to end, is inside a `pass_()`."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._active() and id(module) in self._modules:  # a copy of the model has its hooks and is none of ours
                if self._stack and self._stack[0].module is module:  # the pass before ended in an interrupt
                    self._stack.clear()
                    self._pass.close()
                if not self._stack:
                    self._calls.clear()
                    self._pass.enter_context(pass_())
                self._stack.append(Frame(self._modules[id(module)][0], module, args, kwargs))

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # After an exception whole frames may be missing: unwind to this module's own.
            if self._active() and any(frame.module is module for frame in self._stack):
                while self._stack.pop().module is not module:
                    pass
                if not self._stack:
                    self._pass.close()

        for _, module in self._modules.values():
            if not _cannot_attend(module):
                self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                self._handles.append(module.register_forward_hook(leave, always_call=True))

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stack.clear()
        self._pass.close()

    def frame_of(self, module: nn.Module | None = None) -> Frame | None:
        """The innermost running frame of `module` (of any module if None); None if it is not running or not ours."""
        for frame in reversed(self._stack):
            if module is None or frame.module is module:
                return frame
        if module is not None and id(module) in self._modules:
            return Frame(self._modules[id(module)][0], module, (), {})  # its submodule's forward was called directly
        return None

    def label(self, path: str) -> str:
        """The path of one more attention call: "path", then "path#2", … within a pass (as shared layers have)."""
        self._calls[path] += 1
        return path if self._calls[path] == 1 else f"{path}#{self._calls[path]}"


def _cannot_attend(module: nn.Module) -> bool:
    """torch's own leaves (linear maps, norms, activations): most of a model's modules, none worth a hook."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    own = type(module).__module__.startswith("torch.nn.modules.")
    return own and not any(True for _ in module.children()) and not isinstance(module, nn.MultiheadAttention)
