"""The projections of a model's attention layers, out of the modules that hold them: separate, fused or grouped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..geometry import LayerWeights

SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))
OUTPUTS = ("o_proj", "out_proj", "out_lin", "o", "dense", "c_proj", "Wo")
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
LATENT = ("kv_a_proj_with_mqa", "kv_b_proj", "kv_a_proj")


@dataclass(frozen=True, eq=False)
class Projections:
    """One attention layer. frequencies: (F,) of rotary positions, None where there are none."""

    path: str
    weights: LayerWeights
    frequencies: Tensor | None


def projections(model: nn.Module) -> list[Projections]:
    """Every attention layer's projections, in the order of the model's modules; gains of normalized queries and keys (QK-norm)
    are in the columns.

    Raises:
        UnsupportedError: where a layer's keys are made of a shared latent (multi-head latent attention), or none can be read.
    """
    found, frequencies = [], _frequencies(model)
    for path, module in model.named_modules():
        weights = _layer(model, path, module)
        if weights is not None:
            found.append(Projections(path, _with_gains(weights, module), frequencies))
    if not found:
        raise UnsupportedError(
            f"geometry: expected attention with projections of queries, keys and values, found none in {type(model).__name__}"
        )
    return found


def _layer(model: nn.Module, path: str, module: nn.Module) -> LayerWeights | None:
    if any(isinstance(getattr(module, name, None), nn.Module) for name in LATENT):
        raise UnsupportedError(
            f"geometry: {path} ({type(module).__name__}) makes keys of a shared latent (multi-head latent attention): "
            "expected a projection of keys for every head"
        )
    if isinstance(module, nn.MultiheadAttention):
        return _of_torch(module)
    out = _output(model, path, module)
    fused, layout = FUSED.get(type(module).__name__, (None, BLOCKS))
    if fused is not None:
        return None if out is None else _of_fused(module, _weight(getattr(module, fused)), out, layout)
    for names in SEPARATE:
        parts = [getattr(module, name, None) for name in names]
        if out is not None and all(isinstance(x, nn.Linear) for x in parts):
            query, key, value = (_weight(x) for x in parts)  # type: ignore[arg-type]
            return LayerWeights.of_linear(query, key, value, out, _width(module, query))
    return None


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
    heads = getattr(module, "num_heads", None) or getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise UnsupportedError(f"geometry: expected to learn the number of heads from {type(module).__name__}, found none")
    return query.shape[0] // heads


def _of_fused(module: nn.Module, fused: Tensor, out: Tensor, layout: str) -> LayerWeights:
    width = _width(module, out)
    rows, queries = fused.shape[0], out.shape[1]
    if layout == BY_HEAD:
        query, key, value = fused.unflatten(0, (-1, 3, width)).unbind(1)
        return LayerWeights.of_linear(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), out, width)
    shared = (rows - queries) // 2
    query, key, value = fused.split([queries, shared, shared])
    return LayerWeights.of_linear(query, key, value, out, width)


def _of_torch(module: nn.MultiheadAttention) -> LayerWeights:
    if module.in_proj_weight is not None:
        query, key, value = module.in_proj_weight.chunk(3)
    else:
        query, key, value = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    return LayerWeights.of_linear(query, key, value, module.out_proj.weight, module.head_dim)


def _with_gains(weights: LayerWeights, module: nn.Module) -> LayerWeights:
    """With the gains of QK-norm, over a head's width or over all heads together."""
    gains = []
    for names, w in ((("q_norm", "q_layernorm"), weights.query), (("k_norm", "k_layernorm"), weights.key)):
        norm = next((x for name in names if isinstance(x := getattr(module, name, None), nn.Module)), None)
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
