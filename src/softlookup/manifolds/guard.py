"""What methods of geometries refuse, in one line each, and the precision that they compute in."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..errors import SoftlookupError
from ..masks import describe
from ..scores import single

if TYPE_CHECKING:
    from .base import Manifold

M = TypeVar("M", bound="Manifold")


def takes(*kinds: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """A method of "points", "tangents" or "sums", one kind for each argument, which broadcast.

    Outside of the library's own calls ("trusted") they are checked, half precision computes in single, and the result has the
    arguments' dtype.
    """

    def around(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        names = list(inspect.signature(method).parameters)[1:]

        @wraps(method)
        def checked(self: Manifold, *given: Any, **named: Any) -> Tensor:
            if self.trusted:
                return method(self, *given, **named)
            given = (*given, *(named.pop(name) for name in names[len(given) :] if name in named))
            if named or len(given) != len(names):
                return method(self, *given, **named)  # which says what is missing
            ready, taken, dtype = accept(self, dict(zip(names, given, strict=True)), kinds)
            together({name: x.shape[:-1] for name, x in zip(names, taken, strict=True)})
            return method(ready, *taken).to(dtype)

        return checked

    return around


def accept(
    manifold: M, given: dict[str, Any], kinds: tuple[str, ...], least: int = 1
) -> tuple[M, list[Tensor], torch.dtype]:
    """The manifold, trusted, its arguments in at least single precision and the dtype of the result."""
    for name, x in given.items():
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype.itemsize < 2:
            raise SoftlookupError(f"{name}: expected a tensor of real numbers, got {describe(x)}")
        if x.ndim < least:
            raise SoftlookupError(f"{name}: expected at least {least} dimensions, got {describe(x)}")
    first = next(iter(given.values()))
    dtype = first.dtype
    for (name, x), kind in zip(given.items(), kinds, strict=True):
        manifold.fit(x, name, kind)
        if kind == kinds[0] and x.shape[-1] != first.shape[-1]:
            raise SoftlookupError(f"{name}: expected {first.shape[-1]} coordinates, as the other {kind}, got {x.shape[-1]}")
        dtype = torch.promote_types(dtype, x.dtype)
    ready = manifold.ready()
    xs = [single(x) for x in given.values()]
    return ready, [ready.check(x, n) if kind == "points" else x for x, n, kind in zip(xs, given, kinds, strict=True)], dtype


def together(shapes: dict[str, torch.Size]) -> None:
    """Raise unless the shapes broadcast."""
    try:
        torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        got = ", ".join(str(tuple(shape)) for shape in shapes.values())
        raise SoftlookupError(f"{', '.join(shapes)}: expected leading dimensions that broadcast, got {got}") from None


def insist(x: Tensor, good: Tensor, got: Tensor, message: str) -> Tensor:
    """x, if all is good; else the message is raised, with the most that was got where it is not in its {}."""
    if torch.compiler.is_compiling():
        return _insist(x, good, got, message)
    _raise_unless(good, got, message)
    return x


def _raise_unless(good: Tensor, got: Tensor, message: str) -> None:
    if not bool(good.all()):
        raise SoftlookupError(message.format(f"{float(got.masked_fill(good, -math.inf).amax()):.6g}"))


@torch.library.custom_op("softlookup::insist", mutates_args=())
def _insist(x: Tensor, good: Tensor, got: Tensor, message: str) -> Tensor:
    """`insist` as one operator of a graph, which must have a result of its own."""
    _raise_unless(good, got, message)
    return x.clone()


@_insist.register_fake
def _(x: Tensor, good: Tensor, got: Tensor, message: str) -> Tensor:
    return torch.empty_like(x)


_insist.register_autograd(lambda ctx, grad: (grad, None, None, None))


def positive(curvature: Tensor) -> Tensor:
    """The curvature, if it can be one now."""
    good = (curvature > 0) & curvature.isfinite()
    return insist(curvature, good, curvature.detach(), "curvature: expected finite numbers > 0, got {}")
