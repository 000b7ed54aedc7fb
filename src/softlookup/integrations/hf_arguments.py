"""What a Hugging Face model asks of its attention function, sorted: done, harmless, or an error.

Models pass their attention function a growing set of keywords, and trickle their own forward's down to it. eager and
sdpa swallow whatever they do not know, which is how a soft-cap or a sink gets lost without a word. Here each keyword is
either computed, or known to change nothing, or refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import UnsupportedError


@dataclass(frozen=True, eq=False)
class Request:
    """The keywords that are computed.

    softcap: c of c tanh(s/c). s_aux: sink logits (H,). position_bias: float, broadcastable to (B, H, L, S).
    is_causal, sliding_window: the model's word on what is visible where there is no mask; a mask has them already.
    indices: int (B, L, k), the only keys that each query may see. cu_seq_lens_q, cu_seq_lens_k: int (n + 1,), bounds of
    the sequences packed into a batch of one.
    """

    softcap: float | None = None
    s_aux: Tensor | None = None
    position_bias: Tensor | None = None
    is_causal: bool | None = None
    sliding_window: int | None = None
    indices: Tensor | None = None
    cu_seq_lens_q: Tensor | None = None
    cu_seq_lens_k: Tensor | None = None


_COMPUTED = frozenset(Request.__dataclass_fields__)

_HARMLESS = {
    "positions, already applied to queries and keys": """
        position_ids cache_position position_embeddings rotary_pos_emb rope_deltas""",
    "the cache, already in the keys and values": """
        past_key_values past_key_value use_cache encoder_past_key_values layer_idx""",
    "what the model returns": """
        output_hidden_states output_router_logits output_logits return_dict return_legacy_cache
        return_dict_in_generate logits_to_keep num_logits_to_keep""",
    "the loss": "labels num_items_in_batch loss_reduction shift_labels",
    "sizes that cu_seq_lens imply": "max_length_q max_length_k max_seqlen max_seqlen_q max_seqlen_k",
    "how a kernel computes, not what": "kernel_options deterministic training use_kernel target_dtype",
}
"""Keywords that change nothing in the attention of given queries, keys, values and mask, by the reason why."""

HARMLESS = frozenset(name for names in _HARMLESS.values() for name in names.split())

_WHY_NOT = {
    "cache": "a paged cache (continuous batching) keeps keys and values where only its own kernels find them",
    "head_mask": "it scales whole heads after the softmax",
    "sinks": "sink logits per query are not supported, only per head (s_aux)",
    "block_indices": "keys chosen in blocks are not supported",
}


def sort_arguments(arguments: dict[str, Any]) -> Request:
    """The computed part of a call's keywords. `UnsupportedError` for any other that may change the result."""
    if _set(arguments.get("output_attentions")):
        raise UnsupportedError(OUTPUT_ATTENTIONS)
    for name, value in arguments.items():
        if name not in _COMPUTED and name not in HARMLESS and name != "output_attentions" and _set(value):
            why = _WHY_NOT.get(name, "it is not known what it asks of the result")
            raise UnsupportedError(f"attention argument {name!r}: expected None, got {_describe(value)}; {why}")
    return Request(**{name: arguments[name] for name in _COMPUTED & arguments.keys()})


OUTPUT_ATTENTIONS = (
    "output_attentions: expected False, as attention weights are never materialized, got True; call the model without it: "
    "under `with sl.watch(model) as seen:`, seen.table() shows what every head does"
)


def _set(value: Any) -> bool:
    return value is not None and value is not False


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:40]
