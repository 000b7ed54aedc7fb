"""One lookup as one operator of a traced graph: what `attend` is under torch.compile and torch.export.

A graph holds tensors and text, not objects. So the arguments of `attend` are written down as an expression, such as
`And(Causal(), Window(4))`, in which `t[3]` is the fourth of a list of tensors; the operator reads it back when it runs. It
also returns the readings that the backward needs, so that nothing is computed twice.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey

from .biases import ALiBi, DenseBias, RelativeTable
from .engines import node
from .errors import UnsupportedError
from .masks import (
    And,
    Causal,
    Dense,
    Dilated,
    Documents,
    Everything,
    Lengths,
    Not,
    NotHidden,
    Or,
    Padding,
    Prefix,
    Window,
)
from .normalizers import Softmax
from .problem import Problem, Shapes, flatten
from .running import StatsLike, autocast, choose, value_and_stats
from .scores import Additive, Bilinear, Cosine, Dot, Gaussian, Hyperbolic, Mahalanobis, ScaledDot
from .summary import Stats, Summary, chosen, needed
from .version import __version__

# ---- arguments as text -----------------------------------------------------------------------------------------------

# What can be written down: its class, and which attributes are the arguments of its constructor, in their order (with "=": by
# name; with "*": all of a tuple).
_WRITABLE: dict[type, tuple[str, ...]] = {
    **{kind: () for kind in (Dot, Cosine, Hyperbolic, Causal, Everything)},
    ScaledDot: ("softcap", "ssmax"),
    Bilinear: ("w",),
    Gaussian: ("bandwidth",),
    Mahalanobis: ("a",),
    Additive: ("u", "w_q", "w_k"),
    Window: ("width",),
    Dilated: ("rate",),
    Prefix: ("length",),
    Lengths: ("length",),
    Padding: ("keep",),
    Documents: ("ids", "query_ids"),
    Dense: ("tensor",),
    NotHidden: ("bias",),
    And: ("a", "b"),
    Or: ("a", "b"),
    Not: ("a",),
    ALiBi: ("tensor",),
    DenseBias: ("tensor",),
    RelativeTable: ("tensor", "bidirectional=", "max_distance="),
    Softmax: ("temperature", "sink"),
}
_BY_NAME = {kind.__name__: kind for kind in _WRITABLE}


def writable(kind: type, *attributes: str) -> None:
    """Let things of this kind be written down too, by these attributes, the arguments of its constructor."""
    _WRITABLE[kind] = attributes
    _BY_NAME[kind.__name__] = kind


def written(thing: Any, tensors: list[Tensor]) -> str | None:
    """`thing` as text; its tensors are appended to `tensors`. None where it is of a kind that text cannot say."""
    if isinstance(thing, Tensor):
        tensors.append(thing)
        return f"t[{len(tensors) - 1}]"
    if thing is None or isinstance(thing, (bool, str)):
        return repr(thing)
    # Numbers in ways that make torch take them for constants, also where it expects that numbers change.
    if isinstance(thing, int):
        return f"{operator.index(thing)}"
    if isinstance(thing, float):
        return f"number('{thing.hex()}')"
    if isinstance(thing, tuple):
        name, items = "", [("", item) for item in thing]
    elif type(thing) in _WRITABLE:
        name = type(thing).__name__
        items = []
        for x in _WRITABLE[type(thing)]:
            if x.startswith("*"):
                items += [("", item) for item in getattr(thing, x[1:])]
            else:
                items.append((x if x.endswith("=") else "", getattr(thing, x.removesuffix("="))))
    else:
        return None
    parts = []
    for by_name, item in items:
        part = written(item, tensors)
        if part is None:
            return None
        parts.append(f"{by_name}{part}, ")
    return f"{name}({''.join(parts)})"


def text_of(arguments: dict[str, Any], tensors: list[Tensor]) -> str | None:
    """Arguments of one call by their names, as `written`."""
    parts = []
    # torch keeps compiled graphs on disk by what they contain: the version keeps those of another one out.
    for name, argument in {"softlookup": __version__, **arguments}.items():
        part = written(argument, tensors)
        if part is None:
            return None
        parts.append(f"{name!r}: {part}")
    return "{" + ", ".join(parts) + "}"


def read(text: str, tensors: list[Tensor]) -> Any:
    """What `written` wrote."""
    return _value(ast.parse(text, mode="eval").body, tensors)


def _names(text: str) -> tuple[str, ...]:
    """The statistics that a call's text asks for. Nothing else is read: tensors may have no numbers while a graph is traced."""
    arguments = ast.parse(text, mode="eval").body
    assert isinstance(arguments, ast.Dict)
    by_name = {_value(key, []): value for key, value in zip(arguments.keys, arguments.values, strict=True) if key is not None}
    return chosen(_value(by_name["stats"], []))


def _value(expression: ast.expr, tensors: list[Tensor]) -> Any:
    match expression:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, tensors)
        case ast.Call(func=ast.Name(id="number"), args=[ast.Constant(value=str(text))]):
            return float.fromhex(text)
        case ast.Subscript(slice=ast.Constant(value=int(place))):
            return tensors[place]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords) if name in _BY_NAME:
            by_name = {x.arg: _value(x.value, tensors) for x in keywords}
            return _BY_NAME[name](*(_value(x, tensors) for x in arguments), **by_name)  # type: ignore[misc, arg-type]
        case ast.Tuple(elts=items):
            return tuple(_value(x, tensors) for x in items)
        case ast.Dict(keys=keys, values=values):
            return {key.value: _value(x, tensors) for key, x in zip(keys, values, strict=True)}  # type: ignore[union-attr]
    raise ValueError(f"not an argument of attend: {ast.unparse(expression)}")


# ---- the operator ----------------------------------------------------------------------------------------------------


def _readings(needs: frozenset[str]) -> list[str]:
    """Names of what an engine's forward gives and its backward needs."""
    more = {"excess"} if needs & {"entropy", "expected_logit_var"} else set()
    return [*node.ALWAYS, *sorted((needs | more) - set(node.ALWAYS))]


@contextmanager
def _autograd() -> Iterator[None]:
    """Gradients inside of an operator, where the dispatcher has autograd switched off."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in (DispatchKey.AutogradFunctionality, DispatchKey.AutogradOther, DispatchKey.AutogradNestedTensor):
        excluded = excluded.remove(key)
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded), torch.enable_grad():
        yield


class _Call:
    """The arguments of one call of `attend`, read back."""

    def __init__(self, tensors: list[Tensor], text: str):
        self.arguments = read(text, tensors)
        del self.arguments["softlookup"]
        self.names = chosen(self.arguments.pop("stats"))
        if isinstance(self.arguments.get("seed"), Tensor):
            self.arguments["seed"] = int(self.arguments["seed"])

    def outputs(self, query: Tensor, key: Tensor, value: Tensor, run: Callable[[Problem], Summary]) -> list[Tensor]:
        """The value and the statistics, by `run`."""
        value, stats = value_and_stats(query, key, value, self.names, run, **self.arguments)
        return [value, *stats.values()]


@torch.library.custom_op("softlookup::attend", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, tensors: list[Tensor], text: str) -> list[Tensor]:
    """[value, statistics in the order of their names, readings in the order of `_readings`]."""
    kept: dict[str, Tensor] = {}

    def run(problem: Problem) -> Summary:
        engine = choose(problem)
        if not hasattr(engine, "backward"):
            raise UnsupportedError(f"torch.compile: expected the native or the streaming engine, got {engine.name}")
        kept.update(engine.forward(problem))
        return node.summarized(problem, kept)

    call = _Call(tensors, text)
    outputs = call.outputs(query, key, value, run)
    given = {x.untyped_storage().data_ptr() for x in (query, key, value, *tensors)}
    readings = [kept[name] for name in _readings(needed(call.names))]
    return _without_aliases([*outputs, *readings], given)


def _without_aliases(outputs: list[Tensor], given: set[int]) -> list[Tensor]:
    """The same, contiguous and each with memory of its own, as operators must have it."""
    own = []
    for x in outputs:
        x = x.contiguous()
        if x.untyped_storage().data_ptr() in given:
            x = x.clone()
        given.add(x.untyped_storage().data_ptr())
        own.append(x)
    return own


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, tensors: list[Tensor], text: str) -> list[Tensor]:
    names = _names(text)
    q, k, v, shapes = flatten(query, key, value)
    assert v is not None
    single = torch.float64 if v.dtype == torch.float64 else torch.float32

    def plane(name: str, length: int = q.shape[2]) -> Tensor:
        whole = name in ("argmax", "visible", "support")
        return query.new_empty((*q.shape[:2], length), dtype=torch.int64 if whole else single)

    value = query.new_empty((*q.shape[:3], v.shape[3]))
    outputs = [_user(value, shapes, 1)]
    outputs += [_user(plane(name, k.shape[2] if name == "received" else q.shape[2]), shapes) for name in names]
    readings = [plane(name) for name in _readings(needed(names))]
    readings[0] = query.new_empty(value.shape, dtype=single)
    return outputs + readings


def _user(x: Tensor, shapes: Shapes, trailing: int = 0) -> Tensor:
    return x.new_empty(shapes.restore(x, trailing).shape)


@torch.library.custom_op("softlookup::attend_backward", mutates_args=())
def _attend_backward(
    grads: list[Tensor | None], saved: list[Tensor], wanted: list[bool], count: int, text: str
) -> list[Tensor]:
    """Gradients of those of saved[: len(wanted)] that are wanted. saved: inputs, their tensors, readings."""
    inputs, readings = saved[:count], saved[count:]
    with _autograd():
        leaves = [t.detach().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
        call = _Call(leaves[3:], text)
        known = dict(zip(_readings(needed(call.names)), readings, strict=True))

        def run(problem: Problem) -> Summary:
            return node.summarize(problem, lambda _: known, choose(problem).backward)

        outputs = call.outputs(leaves[0], leaves[1], leaves[2], run)
        pairs = [(y, g) for y, g in zip(outputs, grads, strict=False) if g is not None and y.requires_grad]
        into = [t for t in leaves if t.requires_grad]
        if not pairs:
            return [torch.zeros_like(t) for t in into]
        some = torch.autograd.grad([y for y, _ in pairs], into, [g for _, g in pairs], allow_unused=True)
    found = [torch.zeros_like(t) if g is None else g for t, g in zip(into, some, strict=True)]
    return _without_aliases(found, {x.untyped_storage().data_ptr() for x in (*saved, *(g for g in grads if g is not None))})


@_attend_backward.register_fake
def _(grads: list[Tensor | None], saved: list[Tensor], wanted: list[bool], count: int, text: str) -> list[Tensor]:
    return [t.new_empty(t.shape) for t, w in zip(saved[:count], wanted, strict=True) if w]


def _setup(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    query, key, value, tensors, text = inputs
    names = _names(text)
    ctx.text, ctx.outputs = text, 1 + len(names)
    ctx.save_for_backward(query, key, value, *tensors, *output[ctx.outputs :])
    ctx.count = 3 + len(tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple:
    saved = list(ctx.saved_tensors)
    inputs = saved[: ctx.count]
    wanted = [t.requires_grad and t.is_floating_point() for t in inputs]
    found = iter(_attend_backward(list(grads[: ctx.outputs]), saved, wanted, ctx.count, ctx.text))
    into = [next(found) if w else None for w in wanted]
    return (*into[:3], into[3:], None)


_attend.register_autograd(_backward, setup_context=_setup)


# ---- what dynamo traces ----------------------------------------------------------------------------------------------


def attend(
    query: Tensor, key: Tensor, value: Tensor, stats: StatsLike | None, arguments: dict[str, Any]
) -> Tensor | tuple[Tensor, Stats] | None:
    """`attend` as one node of the graph, or None where its arguments are of a kind that text cannot say."""
    tensors: list[Tensor] = []
    if arguments["dropout_p"] > 0 and arguments["seed"] is None:
        arguments = {**arguments, "seed": torch.randint(2**62, ())}
    names = chosen(stats)
    text = text_of({**arguments, "stats": names}, tensors)
    if text is None:
        return None
    query, key, value = autocast(query, key, value)
    outputs = _attend(query, key, value, tensors, text)
    if stats is None or stats is False:
        return outputs[0]
    return outputs[0], Stats(dict(zip(names, outputs[1:], strict=False)))
