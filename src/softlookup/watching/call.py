"""One attention call as the operator got it: what a probe is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Call:
    """One attention call of a watched model. Tensors are detached: looking leaves no trace in the gradient.

    layer: module path, e.g. "model.layers.3.self_attn"; a second call of the same module within one forward pass has
    "#2" appended, and so on. query (B, H, L, E), key (B, Hkv, S, E), value (B, Hkv, S, Ev).
    arguments: keywords for `attend` (score, mask, bias, normalizer, scale, dropout_p, query_offset).
    rows: boolean (B, L), True where the query is a real token; None: all are. cross: queries and keys are different
    sequences, so that positions have no distance.
    """

    layer: str
    query: Tensor
    key: Tensor
    value: Tensor
    arguments: dict[str, Any] = field(default_factory=dict)
    rows: Tensor | None = None
    cross: bool = False


Probe = Callable[[Call], None]
