"""softlookup and the peers that run in torch. Those that bring a runtime of their own are in runtimes.py.

A contender is built for one set of inputs, in its own layout, and refuses what it cannot do with one line. What is timed
is `forward()`, and what `prepare()` returns: the backward alone, after an untimed forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from shapes import Inputs, Shape
from torch import Tensor
from torch.nn import functional as F

import softlookup as sl


class Refused(Exception):
    """What a contender cannot do, in one line."""


class Contender:
    """One way to compute the output of given inputs."""

    title = ""
    packages: tuple[str, ...] = ("torch",)
    how = ""
    """The variant that runs, where there are several."""
    whole_set = False
    """Whether it computes the cheap set, where the shape asks for it."""
    matrices = 0, 0
    """Arrays of B x H x L x S that it holds at once, forward and backward."""

    def __init__(self, inputs: Inputs):
        self.inputs, self.shape = inputs, inputs.shape

    @classmethod
    def memory(cls, shape: Shape, backward: bool) -> int:
        """Bytes that it holds at once, beside what is small."""
        return 4 * cls.matrices[backward] * shape.rows * shape.keys

    def forward(self) -> Any:
        raise NotImplementedError

    def prepare(self) -> Callable[[], Any]:
        """Runs the forward and returns the backward, which may be called again and again."""
        raise Refused("it has no backward")

    def value(self, result: Any) -> Tensor:
        """What `forward` returned, as a torch tensor (B, H, L, E)."""
        return result

    def statistics(self, result: Any) -> Mapping[str, Tensor]:
        """Those in what `forward` returned, (B, H, L)."""
        return {}

    def gradients(self, result: Any) -> Sequence[Tensor]:
        """What the backward returned, as those of query, key and value."""
        return result


Result = tuple[Tensor, Any]
"""The output, and statistics by name."""


class TorchContender(Contender):
    """Computes by `compute`, and differentiates by autograd with a gradient for the output and for every statistic."""

    def __init__(self, inputs: Inputs):
        super().__init__(inputs)
        self.tensors = inputs.query, inputs.key, inputs.value
        self.leaves = tuple(x.clone().requires_grad_() for x in self.tensors)

    def compute(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | Result:
        raise NotImplementedError

    def forward(self) -> Any:
        return self.compute(*self.tensors)

    def prepare(self) -> Callable[[], Any]:
        result = self.compute(*self.leaves)
        outputs, grads = [self.value(result)], [self.inputs.grad]
        for each in self.statistics(result).values():
            if each.requires_grad:
                outputs.append(each)
                grads.append(torch.ones_like(each))
        return lambda: torch.autograd.grad(outputs, self.leaves, grads, retain_graph=True)

    def value(self, result: Any) -> Tensor:
        return result[0] if isinstance(result, tuple) else result

    def statistics(self, result: Any) -> Mapping[str, Tensor]:
        return result[1] if isinstance(result, tuple) else {}


class Softlookup(TorchContender):
    """The engine that softlookup chooses, or the one that is asked for; with the cheap set where the shape says so."""

    title = "softlookup"
    engine: str | None = None

    def __init__(self, inputs: Inputs):
        super().__init__(inputs)
        self.whole_set = self.shape.statistics
        self.set_up()

    def set_up(self) -> None:
        x = self.inputs
        score = sl.Additive(x.u, x.w_q, x.w_k) if self.shape.additive else sl.ScaledDot()
        self.arguments: dict[str, Any] = {"mask": x.mask, "score": score}
        if self.whole_set:
            self.arguments["stats"] = True
        try:
            with self.forced():
                self.how = sl.explain(*self.tensors, **self.arguments).engine
        except sl.SoftlookupError as error:
            raise Refused(str(error)) from error

    def forced(self) -> AbstractContextManager[None]:
        return sl.engine(self.engine) if self.engine else nullcontext()

    def compute(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | Result:
        with self.forced():
            return sl.attend(query, key, value, **self.arguments)

    def statistics(self, result: Any) -> Mapping[str, Tensor]:
        return {name: result[1][name] for name in result[1]} if self.whole_set else {}


class Plain(Softlookup):
    """The same without statistics: what they cost."""

    title = "without statistics"

    def __init__(self, inputs: Inputs):
        TorchContender.__init__(self, inputs)
        self.set_up()


class Streaming(Softlookup):
    """softlookup in torch operations, as where there is no C++ compiler."""

    title = "streaming engine"
    engine = "streaming"


def no_additive(contender: Contender) -> None:
    if contender.shape.additive:
        raise Refused("its scores are functions of the product of query and key")


class SDPA(TorchContender):
    """torch's fused kernel; a window or documents as a boolean mask."""

    title = "torch SDPA"

    def __init__(self, inputs: Inputs):
        super().__init__(inputs)
        no_additive(self)
        dense = self.shape.window or self.shape.documents
        self.arguments: dict[str, Any] = {
            "attn_mask": inputs.visible if dense else None,
            "is_causal": self.shape.causal and not dense,
            "enable_gqa": self.shape.heads != self.shape.kv_heads,
        }
        self.how = "boolean mask" if dense else ""

    @classmethod
    def memory(cls, shape: Shape, backward: bool) -> int:
        """Of the mask, which torch adds in float32."""
        return 5 * shape.queries * shape.keys if shape.window or shape.documents else 0

    def compute(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, **self.arguments)


class ByHand(TorchContender):
    """SDPA on what a mask leaves, cut by hand: a call per document, or blocks of queries that see two blocks of keys."""

    title = "SDPA by hand"

    def __init__(self, inputs: Inputs):
        super().__init__(inputs)
        if not (self.shape.window or self.shape.documents):
            raise Refused("there is nothing to cut")
        self.how = "window in blocks" if self.shape.window else "a call per document"
        if self.shape.window:
            w = self.shape.window
            distance = torch.arange(w)[:, None] + w - torch.arange(2 * w)
            self.band = ((distance >= 0) & (distance < w)).expand(self.shape.keys // w, 1, w, 2 * w).clone()
            self.band[0, :, :, :w] = False

    def compute(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.blocks(query, key, value) if self.shape.window else self.documents(query, key, value)

    def documents(self, *tensors: Tensor) -> Tensor:
        cut = zip(*(x.split(self.shape.lengths, 2) for x in tensors), strict=True)
        return torch.cat([F.scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in cut], 2)

    def blocks(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads, length, width, w = self.shape.heads, self.shape.queries, self.shape.width, self.shape.window

        def pairs(x: Tensor) -> Tensor:
            """(1, H, S, E) -> (blocks, H, 2 w, E): each block of keys behind the one before it."""
            return F.pad(x[0], (0, 0, w, 0)).unfold(1, 2 * w, w).permute(1, 0, 3, 2)

        folded = query[0].view(heads, length // w, w, width).transpose(0, 1)
        out = F.scaled_dot_product_attention(folded, pairs(key), pairs(value), attn_mask=self.band)
        return out.transpose(0, 1).reshape(1, heads, length, width)


class Flex(TorchContender):
    """FlexAttention compiled for the shape; its block mask is made beforehand."""

    title = "FlexAttention"

    def __init__(self, inputs: Inputs):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        super().__init__(inputs)
        no_additive(self)
        torch.compiler.reset()
        self.block_mask = None
        if self.shape.causal:
            seen = self.mask_mod()
            self.block_mask = create_block_mask(seen, None, None, self.shape.queries, self.shape.keys, device="cpu")
        self.compiled = torch.compile(flex_attention, dynamic=False)

    @classmethod
    def memory(cls, shape: Shape, backward: bool) -> int:
        """Of the mask that the block mask is made from."""
        return 2 * shape.queries * shape.keys if shape.causal else 0

    def mask_mod(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        return lambda b, h, i, j: self.inputs.sees(i, j)

    def compute(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped = self.shape.heads != self.shape.kv_heads
        return self.compiled(query, key, value, block_mask=self.block_mask, enable_gqa=grouped)

    def prepare(self) -> Callable[[], Any]:
        raise Refused("FlexAttention does not support backward on CPU")


class Eager(TorchContender):
    """The same statistics by their definitions, from scores and weights that are materialized."""

    title = "eager, same statistics"
    whole_set = True
    matrices = 5, 14

    def __init__(self, inputs: Inputs):
        super().__init__(inputs)
        if self.shape.rows * self.shape.keys > 2**28:
            raise Refused("2 GiB for each of its matrices")
        i, j = torch.arange(self.shape.keys - self.shape.queries, self.shape.keys), torch.arange(self.shape.keys)
        self.distance = (i[:, None] - j).abs().to(torch.float32)
        self.count = torch.full((self.shape.queries,), self.shape.keys)
        if inputs.visible is not None:
            self.count = inputs.visible.sum(-1)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        x = self.inputs
        if self.shape.additive:
            mixed = torch.tanh((query @ x.w_q.mT)[:, :, :, None] + (key @ x.w_k.mT)[:, :, None])
            return (mixed @ x.u[:, None, :, None])[..., 0]
        return query @ x.repeated(key).mT * x.scale

    def compute(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | Result:
        s, visible, count = self.scores(query, key), self.inputs.visible, self.count
        if visible is not None:
            s = s.masked_fill(~visible, -torch.inf)
        p = torch.softmax(s, -1)
        average = p @ self.inputs.repeated(value)
        if not self.shape.statistics:
            return average
        lse, (top, argmax) = s.logsumexp(-1), s.detach().max(-1)
        if visible is not None:
            s = s.masked_fill(~visible, 0)
        expected, mean = (p * s).sum(-1), s.sum(-1) / count
        spread = s - mean[..., None] if visible is None else (s - mean[..., None]).masked_fill(~visible, 0)
        entropy, collision = lse - expected, p.square().sum(-1)
        return average, {
            "logsumexp": lse,
            "max_logit": top,
            "max_weight": (top - lse.detach()).exp(),
            "argmax": argmax,
            "expected_logit": expected,
            "expected_logit_var": (p * (s - expected[..., None]).square()).sum(-1),
            "entropy": entropy,
            "entropy_ratio": torch.where(count > 1, entropy / count.clamp(min=2).log(), 0),
            "logit_mean": mean,
            "logit_var": spread.square().sum(-1) / count,
            "collision": collision,
            "effective_keys": 1 / collision,
            "jacobian_trace": 1 - collision,
            "visible": count.expand(argmax.shape),
            "sink_mass": p[..., 0],
            "sink_weight": torch.zeros_like(top),
            "distance": (p * self.distance).sum(-1),
        }


class Compiled(Eager):
    """The eager code through torch.compile, which fuses its passes over scores and weights."""

    title = "the same, compiled"

    def __init__(self, inputs: Inputs):
        super().__init__(inputs)
        if self.shape.rows * self.shape.keys > 2**23:
            raise Refused("left to smaller shapes, as the eager code is")
        torch.compiler.reset()
        self.compiled = torch.compile(super().compute, dynamic=False)

    def compute(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | Result:
        return self.compiled(query, key, value)


class Trick(TorchContender):
    """Values extended by keys: the kernel's log-normalizer and E_p[k] give the entropy, and nothing else of the set.

    The kernel wants queries and keys as wide as values: they are padded with zeros.
    """

    title = "[V,K] trick"

    def __init__(self, inputs: Inputs):
        super().__init__(inputs)
        no_additive(self)
        if not self.shape.statistics:
            raise Refused("it is a way to a statistic")
        self.bias = None
        if self.shape.window or self.shape.documents:
            assert inputs.visible is not None
            self.bias = torch.zeros(inputs.visible.shape).masked_fill(~inputs.visible, -torch.inf)
        self.kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        self.how = "entropy only"

    def compute(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | Result:
        width, scale = self.shape.width, self.inputs.scale
        key, value = self.inputs.repeated(key), self.inputs.repeated(value)
        wide, wide_key = F.pad(query, (0, width)), F.pad(key, (0, width))
        causal = self.shape.causal and self.bias is None
        both, lse = self.kernel(wide, wide_key, torch.cat([value, key], -1), 0.0, causal, attn_mask=self.bias, scale=scale)
        average, expected_key = both.split(width, -1)
        expected = scale * (query * expected_key).sum(-1)
        return average, {"logsumexp": lse, "expected_logit": expected, "entropy": lse - expected}

    def prepare(self) -> Callable[[], Any]:
        raise Refused("torch's log-normalizer has no gradient")
