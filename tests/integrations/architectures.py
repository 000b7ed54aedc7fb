"""Tiny random models of many architectures, as data, and batches for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

TEXT = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {
    **TEXT,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
ENCODER = {
    **TEXT,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
SEQ2SEQ = {
    **TEXT,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
T5 = {**TEXT, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
IMAGE = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = {"sliding_window": 4}
SLIDING = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "head_dim": 8,
}
GPT2 = {**TEXT, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


@dataclass(frozen=True)
class Architecture:
    """kind: what its batches look like. model: its class in transformers. config: its configuration's arguments."""

    name: str
    kind: str
    model: str
    config: dict[str, Any]

    def build(self, implementation: str = "eager") -> nn.Module:
        """The model in eval mode, with weights that make attention far from uniform."""
        cls = getattr(transformers, self.model)
        torch.manual_seed(0)
        model = cls._from_config(cls.config_class(**self.config), attn_implementation=implementation).eval()
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim > 1:
                    p.normal_(0, 1.5 / p[0].numel() ** 0.5)
                else:
                    p.add_(0.2 * torch.randn_like(p))
        return model


def causal(name: str, model: str, base: dict[str, Any] = DECODER, **more: Any) -> Architecture:
    return Architecture(name, "decoder", f"{model}ForCausalLM", {**base, **more})


ARCHITECTURES = (
    Architecture("gpt2", "decoder", "GPT2LMHeadModel", GPT2),
    causal("llama", "Llama"),
    causal("mistral", "Mistral", **WINDOW),
    causal("qwen3", "Qwen3"),
    causal("gemma2", "Gemma2", **SLIDING, attn_logit_softcapping=5.0, query_pre_attn_scalar=8),
    causal("gemma3", "Gemma3", **SLIDING, query_pre_attn_scalar=8),
    causal("gpt_oss", "GptOss", **SLIDING, num_local_experts=4, num_experts_per_tok=2),
    causal("phi3", "Phi3"),
    Architecture("bert", "encoder", "BertModel", ENCODER),
    Architecture("roberta", "encoder", "RobertaModel", ENCODER),
    Architecture("albert", "encoder", "AlbertModel", {**ENCODER, "embedding_size": 16}),
    Architecture("t5", "seq2seq", "T5ForConditionalGeneration", T5),
    Architecture("bart", "seq2seq", "BartForConditionalGeneration", SEQ2SEQ),
    Architecture(
        "whisper",
        "speech",
        "WhisperForConditionalGeneration",
        {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 32, "suppress_tokens": None}
        | {"begin_suppress_tokens": None},
    ),
    Architecture("vit", "image", "ViTModel", IMAGE),
    # others, chosen for what they ask of attention
    Architecture(
        "distilbert", "encoder", "DistilBertModel", {**TEXT, "dim": 32, "hidden_dim": 40, "n_layers": 2, "n_heads": 4}
    ),
    Architecture("electra", "encoder", "ElectraModel", {**ENCODER, "embedding_size": 16}),
    Architecture(
        "modernbert",
        "encoder",
        "ModernBertModel",
        {**ENCODER, "local_attention": 6, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    Architecture("deit", "image", "DeiTModel", IMAGE),
    Architecture(
        "wav2vec2",
        "audio",
        "Wav2Vec2Model",
        {**ENCODER, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
        | {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"},
    ),
    Architecture("marian", "seq2seq", "MarianMTModel", SEQ2SEQ),
    Architecture("mbart", "seq2seq", "MBartForConditionalGeneration", SEQ2SEQ),
    Architecture("umt5", "seq2seq", "UMT5ForConditionalGeneration", T5),
    causal(
        "opt",
        "OPT",
        TEXT,
        hidden_size=32,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    ),
    causal("gpt_neox", "GPTNeoX", ENCODER),
    causal("gpt_bigcode", "GPTBigCode", GPT2, multi_query=True),
    causal("qwen2_moe", "Qwen2Moe", **MOE, shared_expert_intermediate_size=16),
    causal("olmo2", "Olmo2"),
    causal("cohere2", "Cohere2", **SLIDING),
    causal("granite", "Granite", attention_multiplier=0.3),
    causal("granite_swa", "GraniteSWA", **SLIDING),
    causal("smollm3", "SmolLM3", no_rope_layers=[1, 0]),
    causal("starcoder2", "Starcoder2", **WINDOW),
    causal("deepseek_v3", "DeepseekV3", **MLA),
    causal("deepseek_v32", "DeepseekV32", **MLA, index_topk=4, index_n_heads=2, index_head_dim=16),
    causal("doge", "Doge", keep_window_size=4),
    causal(
        "llama4",
        "Llama4",
        num_local_experts=2,
        intermediate_size_mlp=40,
        attention_chunk_size=5,
        layer_types=["chunked_attention", "full_attention"],
        no_rope_layers=[1, 0],
    ),
    causal("blenderbot_decoder", "Blenderbot", SEQ2SEQ),
)

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
LENGTH, SHORT = 11, 7  # of a batch's two rows: tokens, real tokens in the second


def batch(architecture: Architecture, padding: str) -> tuple[dict[str, Tensor], Tensor | None]:
    """Two sequences, the second padded on the "left", on the "right" or not ("none"): inputs, real outputs (B, L)."""
    g = torch.Generator().manual_seed(1)
    match architecture.kind:
        case "image":
            return {"pixel_values": torch.randn(2, 3, 16, 16, generator=g)}, None
        case "audio":
            return {"input_values": torch.randn(2, 300, generator=g)}, None
        case "speech":
            features = torch.randn(2, 8, 24, generator=g)
            inputs = {"input_features": features, "decoder_input_ids": torch.randint(3, 96, (2, LENGTH), generator=g)}
            mask_name = "decoder_attention_mask"
        case "seq2seq":
            inputs = {f"{p}input_ids": torch.randint(3, 96, (2, LENGTH), generator=g) for p in ("", "decoder_")}
            inputs["attention_mask"] = padded(padding)
            mask_name = "decoder_attention_mask"
        case _:
            inputs = {"input_ids": torch.randint(3, 96, (2, LENGTH), generator=g)}
            mask_name = "attention_mask"
    inputs[mask_name] = padded(padding)
    return inputs, inputs[mask_name].bool()


def padded(padding: str) -> Tensor:
    """(2, LENGTH) 1 where real."""
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    if padding == "left":
        mask[1, :-SHORT] = 0
    elif padding == "right":
        mask[1, SHORT:] = 0
    return mask


def output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """(B, L, …) logits, or hidden states where the model has none."""
    out = model(**inputs)
    return out.logits if "logits" in out else out.last_hidden_state
