"""What runs between the parts of a compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def eager(function: Function) -> Function:
    """`torch.compiler.disable`, which forgets a function's types; this keeps them."""
    disabled: Function = torch.compiler.disable(function)
    return disabled
