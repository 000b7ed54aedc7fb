"""A mask tensor without storage: it turns dense only if someone does arithmetic on it.

Hugging Face models hand the mask that they were given on to the attention function, and most never look inside. Some
do: they slice it, add a bias to it, write into it. For those a `LazyMask` is a tensor like any other, of shape
(B, 1, L, S) with additive values (0 where visible, the dtype's minimum where hidden), built the moment that an
operation needs them. Until then no n x n tensor exists, and the attention function reads the recipe instead.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_aten = torch.ops.aten

# Inside `__torch_dispatch__` torch has switched off what lies above it, vmap among it, which a recipe may need.
_TOP = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()


class Recipe(Protocol):
    """How to make the mask. shape: (B, 1, L, S)."""

    @property
    def shape(self) -> tuple[int, int, int, int]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...

    def dense(self) -> Tensor:
        """The additive mask itself."""

    def cut(self, first: int, last: int, keys: int) -> Recipe:
        """The same mask for rows [first, last) and the first `keys` keys."""

    def cast(self, dtype: torch.dtype) -> Recipe:
        """The same mask in another floating dtype."""


class LazyMask(Tensor):
    """A (B, 1, L, S) additive mask made by `recipe` when needed; a slice of it is a view, as slices of tensors are."""

    _recipe: Recipe
    _view: tuple[LazyMask, int, int, int] | None  # source, first row, last row, keys
    _dense: Tensor | None
    made: dict[str, Any]
    """The same mask as other implementations have it, by name."""

    @staticmethod
    def __new__(cls, recipe: Recipe, view: tuple[LazyMask, int, int, int] | None = None) -> LazyMask:
        # A tensor made in inference mode has no version counter, which `recipe` reads.
        with torch.inference_mode(False):
            self = Tensor._make_wrapper_subclass(cls, recipe.shape, dtype=recipe.dtype, device=recipe.device)
        self._recipe, self._view, self._dense, self.made = recipe, view, None, {}
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # results are plain tensors

    @property
    def recipe(self) -> Recipe | None:
        """How this mask is made; None once it, or a view of it, was written to: then only `dense()` knows."""
        return self._recipe if self._version == 0 else None

    def dense(self) -> Tensor:
        """The mask as a plain tensor, built once; a view's is a view of its source's, so that every write is seen."""
        if self._dense is None:
            if self._view is not None:
                source, first, last, keys = self._view
                self._dense = source.dense()[:, :, first:last, :keys]
            else:
                with torch.inference_mode(False), torch.no_grad(), torch._C._ForceDispatchKeyGuard(*_TOP):
                    self._dense = self._recipe.dense().clone(memory_format=torch.contiguous_format)
        return self._dense

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """As of a dense tensor."""
        return self.dense().numpy(*args, **kwargs)

    def tolist(self) -> Any:
        """As of a dense tensor."""
        return self.dense().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.clone()

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"LazyMask({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        mask = args[0] if args and isinstance(args[0], LazyMask) else None
        if mask is not None and (lazy := _stay_lazy(mask, func, args[1:], kwargs)) is not None:
            return lazy
        args, kwargs = pytree.tree_map_only(LazyMask, LazyMask.dense, (args, kwargs))
        result = func(*args, **kwargs)
        # An operation that writes returns its target: the caller must go on holding the mask, not the tensor inside it.
        return mask if mask is not None and result is mask._dense else result


def _stay_lazy(mask: LazyMask, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LazyMask | None:
    """The result of `func` if it is a lazy mask again, else None: copies, casts, slices of rows or first keys."""
    recipe = mask.recipe
    if recipe is None:
        return None
    rows, keys = mask.shape[2:]
    if func in (_aten.detach.default, _aten.alias.default):
        return LazyMask(recipe, (mask, 0, rows, keys))
    if func is _aten.clone.default:
        return LazyMask(recipe)
    if func is _aten._to_copy.default:
        dtype, device = kwargs.get("dtype") or mask.dtype, kwargs.get("device") or mask.device
        if dtype.is_floating_point and torch.device(device) == mask.device:
            return LazyMask(recipe.cast(dtype))
    if func is _aten.slice.Tensor:
        given: tuple[Any, ...] = (0, None, None, 1)
        dim, start, end, step = args + given[len(args) :]
        size = mask.shape[dim]
        first, last, step = slice(start, end, step).indices(size)
        if step == 1 and first < last:
            dim %= 4
            if dim == 2:
                return LazyMask(recipe.cut(first, last, keys), (mask, first, last, keys))
            if dim == 3 and first == 0:
                return LazyMask(recipe.cut(0, rows, last), (mask, 0, rows, last))
            if (first, last) == (0, size):
                return LazyMask(recipe, (mask, 0, rows, keys))
    return None
