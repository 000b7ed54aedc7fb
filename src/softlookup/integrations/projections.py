"""The projections of a model's attention layers, out of the modules that hold them: separate, fused or grouped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..geometry import LayerWeights

SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("of_query", "of_key", "of_value"),
)
OUTPUTS = ("o_proj", "out_proj", "out_lin", "o", "dense", "c_proj", "Wo", "out")
WIDTHS = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
BLOCKS, BY_HEAD = "blocks", "by head"
FUSED = {  # class -> where its fused projection is, and whether it holds queries, keys and values in turn or for each head
    "GPT2Attention": ("c_attn", BLOCKS),
    "GPTBigCodeAttention": ("c_attn", BLOCKS),
    "Phi3Attention": ("qkv_proj", BLOCKS),
    "ModernBertAttention": ("Wqkv", BLOCKS),
    "MptAttention": ("Wqkv", BLOCKS),
    "GPTNeoXAttention": ("query_key_value", BY_HEAD),
    "BloomAttention": ("query_key_value", BY_HEAD),
}
NORMS = (("q_norm", "q_layernorm", "query_norm"), ("k_norm", "k_layernorm", "key_norm"))
LATENT = ("kv_a_proj_with_mqa", "kv_b_proj", "kv_a_proj")


@dataclass(frozen=True, eq=False)
class Parts:
    """One attention layer's projections as views of its parameters: what is written into them, the model reads.

    query (H, k, d), key (G, k, d), value (G, v, d), output (d', H v), rows as torch's Linear has them. query_bias (H, k) and
    key_bias (G, k), None where there is none. reader: the module that projects queries; what it is called with is what they
    are projected from.
    """

    path: str
    module: nn.Module
    reader: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None

    @property
    def weights(self) -> LayerWeights:
        """Upcast; gains of normalized queries and keys (QK-norm) are in the columns."""
        query, key, value = (x.flatten(0, 1) for x in (self.query, self.key, self.value))
        return _with_gains(LayerWeights.of_linear(query, key, value, self.output, self.query.shape[1]), self.module)

    @property
    def normalized(self) -> bool:
        """Whether queries or keys are normalized once they are projected."""
        return any(_norm(self.module, names) is not None for names in NORMS)


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotary positions: frequencies (F,), and whether neighbouring columns are paired, not those half a width apart."""

    frequencies: Tensor
    interleaved: bool


@dataclass(frozen=True, eq=False)
class Projections:
    """One attention layer. rotary: None where there are no rotary positions that can be read; reader: as `Parts` has it."""

    path: str
    weights: LayerWeights
    rotary: Rotary | None
    reader: nn.Module

    def at_distance(self, distance: float) -> LayerWeights:
        """The weights as rotary positions have them for a key that many positions before its query; as they are without."""
        if self.rotary is None or not distance:
            return self.weights
        return self.weights.at_distance(distance, self.rotary.frequencies, self.rotary.interleaved)


def projections(model: nn.Module) -> list[Projections]:
    """Every attention layer's projections, in the order of the model's modules. Raises as `parts` does."""
    frequencies = _frequencies(model)
    return [Projections(x.path, x.weights, _rotary(x.module, frequencies), x.reader) for x in parts(model)]


def parts(model: nn.Module) -> list[Parts]:
    """The same as views of the parameters.

    Raises:
        UnsupportedError: where a layer's keys are made of a shared latent (multi-head latent attention), or none can be read.
    """
    found = [part for path, module in model.named_modules() if (part := _parts(model, path, module)) is not None]
    if not found:
        raise UnsupportedError(
            f"geometry: expected attention with projections of queries, keys and values, found none in {type(model).__name__}"
        )
    return found


def _parts(model: nn.Module, path: str, module: nn.Module) -> Parts | None:
    if any(isinstance(getattr(module, name, None), nn.Module) for name in LATENT):
        raise UnsupportedError(
            f"geometry: {path} ({type(module).__name__}) makes keys of a shared latent (multi-head latent attention): "
            "expected a projection of keys for every head"
        )
    if isinstance(module, nn.MultiheadAttention):
        return _of_torch(path, module)
    out = _output(model, path, module)
    if out is None:
        return None
    fused, layout = FUSED.get(type(module).__name__, (None, BLOCKS))
    if fused is not None:
        of, width = getattr(module, fused), _width(module, out)
        weights, biases = (_split(x, width, out.shape[1], layout) for x in (_weight(of), getattr(of, "bias", None)))
        return _by_head(path, module, of, weights, out, biases, width)
    linear = separate(module)
    if linear is None:
        return None
    weights, biases = [_weight(x) for x in linear], [x.bias for x in linear]
    return _by_head(path, module, linear[0], weights, out, biases, _width(module, weights[0]))


def separate(module: nn.Module) -> list[nn.Linear] | None:
    """The layers that project queries, keys and values, where there is one for each."""
    for names in SEPARATE:
        found = [x for name in names if isinstance(x := getattr(module, name, None), nn.Linear)]
        if len(found) == len(names):
            return found
    return None


def _of_torch(path: str, module: nn.MultiheadAttention) -> Parts:
    if module.in_proj_weight is not None:
        weights = list(module.in_proj_weight.chunk(3))
    else:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    biases: list[Any] = [None] * 3 if module.in_proj_bias is None else list(module.in_proj_bias.chunk(3))
    return _by_head(path, module, module, weights, module.out_proj.weight, biases, module.head_dim)


def _by_head(
    path: str,
    module: nn.Module,
    reader: nn.Module,
    weights: Sequence[Any],
    out: Tensor,
    biases: Sequence[Any],
    width: int,
) -> Parts:
    """From weights and biases of queries, keys and values with rows (H k, …), or (H, k, …) already."""
    query, key, value = weights
    if query.ndim == 2:
        for name, x in (("queries", query), ("keys", key)):
            if x.shape[0] % width:
                raise UnsupportedError(f"geometry: {path}: expected {name} in multiples of {width}, got {x.shape[0]} rows")
        query, key = query.unflatten(0, (-1, width)), key.unflatten(0, (-1, width))
        value = value.unflatten(0, (len(key), -1))
        biases = [None if x is None else x.unflatten(0, (-1, width)) for x in biases[:2]]
    return Parts(path, module, reader, query, key, value, out, biases[0], biases[1])


def _split(fused: Tensor | None, width: int, queries: int, layout: str) -> list[Any]:
    """A fused weight or bias as queries, keys and values, with rows (H k, …), or (H, k, …) where they are mixed by head."""
    if fused is None:
        return [None] * 3
    if layout == BY_HEAD:
        return list(fused.unflatten(0, (-1, 3, width)).unbind(1))
    shared = (fused.shape[0] - queries) // 2
    return list(fused.split([queries, shared, shared]))


def _weight(module: nn.Module) -> Tensor:
    """(out, in), as Linear has it; transformers' Conv1D holds the transpose."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.mT if type(module).__name__ == "Conv1D" else weight


def _output(model: nn.Module, path: str, module: nn.Module) -> Tensor | None:
    """The output projection: the layer's own, or (BERT) that of the module beside it."""
    for name in OUTPUTS:
        if isinstance(getattr(module, name, None), nn.Module) and hasattr(getattr(module, name), "weight"):
            return _weight(getattr(module, name))
    parent = model.get_submodule(path.rpartition(".")[0])
    beside = getattr(getattr(parent, "output", None), "dense", None)
    return _weight(beside) if isinstance(beside, nn.Linear) else None


def _width(module: nn.Module, query: Tensor) -> int:
    """Columns of a head."""
    for name in WIDTHS:
        if isinstance(getattr(module, name, None), int):
            return getattr(module, name)
    config: Any = getattr(module, "config", None)
    names = (getattr(module, name, None) for name in ("num_heads", "heads"))
    heads = next((x for x in names if isinstance(x, int)), getattr(config, "num_attention_heads", None))
    if not isinstance(heads, int):
        raise UnsupportedError(f"geometry: expected to learn the number of heads from {type(module).__name__}, found none")
    return query.shape[0] // heads


def _norm(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    found = (getattr(module, name, None) for name in names)
    return next((x for x in found if isinstance(x, nn.Module) and not isinstance(x, nn.Identity)), None)


def _with_gains(weights: LayerWeights, module: nn.Module) -> LayerWeights:
    """With the gains of QK-norm, over a head's width or over all heads together."""
    gains = []
    for names, w in zip(NORMS, (weights.query, weights.key), strict=True):
        norm = _norm(module, names)
        heads, _, width = w.shape
        gain = None if norm is None else _gain(norm, width, heads)
        gains.append(torch.ones(heads, 1, width, dtype=w.dtype) if gain is None else gain.to(w.dtype))
    return weights.gained(*gains)


@torch.no_grad()
def _gain(norm: nn.Module, width: int, heads: int) -> Tensor | None:
    """(heads or 1, 1, width) what a normalization multiplies by: its answer to a vector of mean 0 and mean square 1."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor) or weight.numel() not in (width, heads * width):
        return None
    x = torch.ones(weight.numel(), dtype=weight.dtype, device=weight.device)
    x[1::2] = -1
    gain = (norm(x) - norm(-x)) / 2 * x
    return gain.detach().double().cpu().view(-1, 1, width)


def _frequencies(model: nn.Module) -> Tensor | None:
    """Of rotary positions, where the model has one table of them."""
    tables = [x for module in model.modules() if isinstance(x := getattr(module, "inv_freq", None), Tensor)]
    if not tables or any(not torch.equal(x, tables[0]) for x in tables):
        return None
    return tables[0].detach().double().cpu()


def _rotary(module: nn.Module, frequencies: Tensor | None) -> Rotary | None:
    """Which columns transformers pairs: what the function that its modeling files have for it makes of four numbers."""
    rotate = getattr(sys.modules[type(module).__module__], "rotate_half", None)
    if frequencies is None or rotate is None:
        return None
    return Rotary(frequencies, interleaved=rotate(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [-2, 1, -4, 3])
