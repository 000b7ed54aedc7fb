"""The peers with a runtime of their own: JAX, ONNX Runtime and KeOps. Each is imported when it is built first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from contenders import Contender, Refused, TorchContender, no_additive
from shapes import Inputs
from torch import Tensor


class JAX(Contender):
    """`jax.nn.dot_product_attention`, or the additive score in jax.numpy, under jit."""

    title = "JAX"
    packages = ("jax",)
    matrices = 3, 6

    def __init__(self, inputs: Inputs):
        import jax
        from jax import numpy as jnp

        super().__init__(inputs)

        def own(x: Tensor) -> Any:
            """(B, H, L, E) -> JAX's (B, L, H, E)."""
            return jnp.from_dlpack(x.transpose(1, 2).contiguous())

        attention: Callable[..., Any] = jax.nn.dot_product_attention
        if self.shape.additive:
            u, w_q, w_k = (jnp.asarray(x.numpy()) for x in (inputs.u, inputs.w_q, inputs.w_k))

            def attention(q: Any, k: Any, v: Any) -> Any:
                a, b = jnp.einsum("blhe,hae->bhla", q, w_q), jnp.einsum("blhe,hae->bhla", k, w_k)
                s = (jnp.tanh(a[:, :, :, None] + b[:, :, None]) * u[:, None, None]).sum(-1)
                return jnp.einsum("bhls,bshe->blhe", jax.nn.softmax(s, -1), v)
        elif self.shape.documents:
            assert inputs.visible is not None
            attention = partial(attention, mask=jnp.asarray(inputs.visible.numpy())[None, None])
        elif self.shape.window:
            attention = partial(attention, is_causal=True, local_window_size=(self.shape.window - 1, 0))
        elif self.shape.causal:
            attention = partial(attention, is_causal=True)
        self.arrays = tuple(own(x) for x in (inputs.query, inputs.key, inputs.value))
        self.grad = own(inputs.grad)
        self.ready = jax.block_until_ready
        self.attention = jax.jit(attention)
        self.linearized = jax.jit(partial(jax.vjp, attention))
        self.pull = jax.jit(lambda pullback, grad: pullback(grad))

    def forward(self) -> Any:
        return self.ready(self.attention(*self.arrays))

    def prepare(self) -> Callable[[], Any]:
        _, pullback = self.ready(self.linearized(*self.arrays))
        return lambda: self.ready(self.pull(pullback, self.grad))

    def value(self, result: Any) -> Tensor:
        return torch.from_dlpack(result).transpose(1, 2)

    def gradients(self, result: Any) -> Sequence[Tensor]:
        return [self.value(x) for x in result]


class ONNX(Contender):
    """The fastest of ONNX Runtime's attention operators that can do the shape, found when it is built."""

    title = "ONNX Runtime"
    packages = ("onnxruntime", "onnx")
    matrices = 3, 0

    def __init__(self, inputs: Inputs):
        super().__init__(inputs)
        no_additive(self)
        candidates, took = self.candidates(), {}
        for name, run in candidates.items():
            run()
            start = time.perf_counter()
            run()
            took[name] = time.perf_counter() - start
        self.how = min(took, key=lambda name: took[name])
        self.run = candidates[self.how]

    def candidates(self) -> dict[str, Callable[[], Any]]:
        shape, x = self.shape, self.inputs
        tensors: dict[str, Tensor | None] = {"q": x.query, "k": x.key, "v": x.value}
        flat: dict[str, Tensor | None] = {"q": _flat(x.query), "k": _flat(x.key), "v": _flat(x.value)}
        attributes: dict[str, Any]
        found = {}
        if not shape.window:
            masked = {"mask": x.visible} if shape.documents else {}
            found["Attention"] = _operator("Attention", tensors | masked, is_causal=int(shape.causal and not masked))
        if shape.heads == shape.kv_heads and not (shape.window or shape.documents):
            attributes = {"num_heads": shape.heads, "unidirectional": int(shape.causal)}
            found["MultiHeadAttention"] = _operator("MultiHeadAttention", flat, "com.microsoft", **attributes)
        if shape.causal and not shape.documents:
            attributes = {"num_heads": shape.heads, "kv_num_heads": shape.kv_heads, "local_window_size": shape.window or -1}
            lengths = {
                "past_key": None,
                "past_value": None,
                "last_key": torch.full((shape.batch,), shape.keys - 1, dtype=torch.int32),
                "keys": torch.tensor(shape.keys, dtype=torch.int32),
            }
            found["GroupQueryAttention"] = _operator(
                "GroupQueryAttention", flat | lengths, "com.microsoft", outputs=("y", "new_k", "new_v"), **attributes
            )
        return found

    def forward(self) -> Any:
        return self.run()

    def prepare(self) -> Callable[[], Any]:
        raise Refused("ONNX Runtime differentiates nothing in its ordinary build")

    def value(self, result: Any) -> Tensor:
        y = torch.from_numpy(result[0])
        if y.ndim == 4:
            return y
        return y.unflatten(2, (self.shape.heads, self.shape.width)).transpose(1, 2)


def _flat(x: Tensor) -> Tensor:
    """(B, H, L, E) -> (B, L, H E), the layout of Microsoft's operators."""
    return x.transpose(1, 2).flatten(2).contiguous()


def _operator(
    name: str, inputs: dict[str, Tensor | None], domain: str = "", outputs: Sequence[str] = ("y",), **attributes: Any
) -> Callable[[], Any]:
    """A session with this one operator, whose threads stop spinning when it is done, as others run after it."""
    import onnxruntime
    from onnx import helper

    given = {key: x.numpy() for key, x in inputs.items() if x is not None}
    names = [key if key in given else "" for key in inputs]
    node = helper.make_node(name, names, outputs, domain=domain, **attributes)
    infos = [
        helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)
        for key, x in given.items()
    ]
    results = [helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(given["q"].dtype), None) for key in outputs]
    graph = helper.make_graph([node], name, infos, results)
    domains = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=11)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(outputs[:1], given)


class KeOps(TorchContender):
    """A LazyTensor's softmax-weighted sum, compiled by KeOps for the shape's widths."""

    title = "KeOps"
    packages = ("pykeops",)

    def __init__(self, inputs: Inputs):
        super().__init__(inputs)
        self.refuse_above(2**29)
        from pykeops.torch import LazyTensor

        self.lazy = LazyTensor

    def refuse_above(self, products: int) -> None:
        if self.shape.width * self.shape.rows * self.shape.keys > products:
            raise Refused("it takes seconds per call")

    def prepare(self) -> Callable[[], Any]:
        self.refuse_above(2**27)
        return super().prepare()

    def compute(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        lazy, x = self.lazy, self.inputs
        if self.shape.additive:
            a, b = query @ x.w_q.mT, key @ x.w_k.mT
            u = lazy(x.u[None, :, None, None].contiguous())
            mixed = lazy(a[:, :, :, None]) + lazy(b[:, :, None])
            tanh = 1 - 2 / (1 + (2 * mixed).exp())  # KeOps has none of its own
            scores = (tanh * u).sum(-1)
        else:
            scores = (lazy(query[:, :, :, None]) * lazy(key[:, :, None])).sum(-1) * x.scale
        if self.shape.causal:
            position = torch.arange(self.shape.keys, dtype=torch.float32)[None, None]
            behind = lazy(position[..., None, None]) - lazy(position[:, :, None, :, None])
            scores = behind.ifelse(scores, -1e30)
        return scores.sumsoftmaxweight(lazy(value[:, :, None]), dim=3)
