"""Look into a model: a plain forward, a watched forward, findings, and the token views of the heads that the
findings name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SoftlookupError
from ..watching import Call
from ..watching.slices import positions_of
from . import histogram, smoother, token_view
from .cost import Cost, Pass, best, measured, trim
from .findings import find, named_heads
from .forward import bind, quietly, synchronize
from .heads import FEW, Layer, summarize
from .histogram import Histogram
from .inspection import Inspection, Text
from .layer_geometry import Weights
from .provenance import provenance_of
from .token_view import TokenView

VIEWS = 16
"""Heads with a token view: at 2,048 tokens each adds some 90 kB to the report."""

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the share done (None: unknown)."""


def look(
    model: nn.Module,
    inputs: Any = None,
    tokens: Any = None,
    *,
    heads: Sequence[tuple[int, int]] | None = None,
    name: str | None = None,
    text: Text | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **batch: Any,
) -> Inspection:
    """What every attention head of ``model`` does with ``inputs``.

    inputs:   any batch that the model takes: a mapping of keywords (a tokenizer's output), a tensor, or a tuple of
    arguments; or the keywords themselves, ``look(model, **batch)``
    tokens:   the words of the first sequence for the report, one string per position, or the tokenizer that made
    ``inputs``
    heads:    (layer, head) pairs that get a token view; by default up to 16 that the findings name
    name:     what the model is called in the report; text: where the input came from
    progress: called with a description and the share done

    The model runs in evaluation mode without gradients, and is left as it was. Nothing of size n×n is stored.
    Raises ``SoftlookupError`` when no attention call was seen or a head does not exist.
    """
    from ..integrations.any_model import watch

    say = progress or _silent
    if batch:
        if inputs is not None:  # an option's name misspelt, most likely
            raise SoftlookupError(f"look: expected inputs or keywords for the model, got both ({', '.join(batch)})")
        inputs = batch
    if heads is not None and len(heads) > VIEWS:
        raise SoftlookupError(f"heads: expected at most {VIEWS} heads for token views, got {len(heads)}")
    forward = bind(model, inputs)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def timed(run: Callable[[], Any]) -> Pass:
        return measured(run, lambda: synchronize(model), device)

    positions: dict[str, Tensor] = {}
    smoothers: dict[str, dict[str, Tensor]] = {}
    expected = getattr(getattr(model, "config", None), "num_hidden_layers", None)

    def follow(call: Call) -> None:
        positions[call.layer] = positions_of(call)
        say("looking at every head", min(len(positions) / expected, 1.0) if expected else None)

    with quietly(model):
        say("plain forward", None)
        plain = [timed(forward)]
        say("looking at every head", None)
        with watch(model, keep="rows", probes=(follow, smoother.probe(smoothers))) as seen:
            looked = timed(forward)
            if not seen.layers:
                raise SoftlookupError(
                    f"look: expected attention through F.scaled_dot_product_attention, nn.MultiheadAttention or "
                    f"transformers' attention interface, got a {type(model).__name__} that made no attention call that "
                    "could be seen"
                )
        # The first plain pass also warmed caches and kernels up; the fairer one comes after the look.
        say("plain forward again", None)
        plain.append(timed(forward))

        layers = [
            summarize(index, layer, layer.stats, positions[layer.name])
            for index, layer in enumerate(seen.layers.values())
        ]
        layers = [replace(layer, means=layer.means | smoothers.get(layer.path, {})) for layer in layers]
        del seen  # the rows of every statistic; the next pass needs the memory
        say("reading weights", None)
        weights = Weights(model, layers)
        layers = weights.read(layers)
        findings = find(layer.head(number) for layer in layers for number in range(layer.heads))
        wanted = _existing(heads, layers) if heads is not None else named_heads(findings, VIEWS)
        with weights.inputs(layers) as read:
            histograms, views, closer = _closer(model, forward, timed, layers, wanted, seed, say)
        layers = weights.weighted(layers, read, say)

    return Inspection(
        model=name or _name_of(model),
        kind=_kind_of(model),
        layers=layers,
        histograms=histograms,
        views=views,
        findings=findings,
        cost=Cost(best(plain), looked, closer),
        tokens=_words(tokens, inputs),
        text=text or Text("input given from Python"),
        provenance=provenance_of(model),
        notes=_notes(layers) + weights.notes,
    )


def _closer(
    model: nn.Module,
    forward: Callable[[], Any],
    timed: Callable[[Callable[[], Any]], Pass],
    layers: list[Layer],
    wanted: list[tuple[int, int]],
    seed: int,
    say: Progress,
) -> tuple[dict[int, Histogram], list[TokenView], Pass]:
    """A second watched forward, since which heads deserve a token view is only known after the first."""
    from ..integrations.any_model import watch

    indices = {layer.path: layer.index for layer in layers}
    histograms: dict[str, Histogram] = {}
    views: dict[tuple[int, int], TokenView] = {}

    def follow(call: Call) -> None:
        say("following single heads", len(histograms) / len(layers))
        trim()  # slices of every size leave the allocator with holes that grow from layer to layer

    def run() -> None:
        probes = (follow, histogram.probe(histograms, seed), token_view.probe(wanted, indices, views))
        with watch(model, stats=("logsumexp",), probes=probes):
            forward()

    closer = timed(run)
    return {indices[path]: found for path, found in histograms.items()}, [views[pair] for pair in wanted], closer


def _existing(heads: Sequence[tuple[int, int]], layers: list[Layer]) -> list[tuple[int, int]]:
    """``heads`` without repetitions, each checked against the model."""
    for layer, head in heads:
        if not 0 <= layer < len(layers):
            raise SoftlookupError(f"heads: expected a layer from 0 to {len(layers) - 1}, got {layer} in {layer}.{head}")
        if not 0 <= head < layers[layer].heads:
            last = layers[layer].heads - 1
            raise SoftlookupError(
                f"heads: expected a head from 0 to {last} in layer {layer}, got {head} in {layer}.{head}"
            )
    return list(dict.fromkeys((int(layer), int(head)) for layer, head in heads))


def _words(tokens: Any, inputs: Any) -> list[str] | None:
    """``tokens`` as strings; a tokenizer is asked for the words of the first sequence."""
    if tokens is None:
        return None
    if not hasattr(tokens, "convert_ids_to_tokens"):
        return [str(token) for token in tokens]
    from .words import words_of

    ids = inputs.get("input_ids") if hasattr(inputs, "get") else inputs
    if not isinstance(ids, Tensor):
        raise SoftlookupError("tokens: expected inputs with input_ids beside a tokenizer, got none")
    return words_of(tokens, ids.reshape(-1, ids.shape[-1])[0].tolist())


def _name_of(model: nn.Module) -> str:
    path = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    return path.rstrip("/").rsplit("/", 1)[-1] or type(model).__name__


def _kind_of(model: nn.Module) -> str:
    """``LlamaModel, 135M parameters``"""
    count = sum(parameter.numel() for parameter in model.parameters())
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            short = f"{count / size:.3g}" if count < 1e3 * size else f"{count / size:.0f}"
            return f"{type(model).__name__}, {short}{unit} parameters"
    return f"{type(model).__name__}, {count} parameters"


def _notes(layers: list[Layer]) -> list[str]:
    short = [layer for layer in layers if layer.wide is None]
    if not short:
        return []
    which = "no query" if len(short) == len(layers) else f"in {len(short)} layers no query"
    return [f"{which} sees {FEW} or more keys: too few to judge entropy, sinks or distance; try a longer text."]


def _silent(stage: str, share: float | None) -> None:
    pass
