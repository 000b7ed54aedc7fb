"""What packages carry models as -> a folder with safetensors, a config and a tokenizer, as transformers reads it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

SMILES = (
    r"\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|%[0-9]{2}|[0-9]"
)
"""The tokens of a molecule or a reaction (Schwaller et al. 2019), as rxnmapper has them."""

PARTS = {
    "self_attention/layer_norm": ["self_attn_layer_norm"],
    "self_attention/linear_0": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attention/linear_1": ["self_attn.out_proj"],
    "attention/layer_norm": ["encoder_attn_layer_norm"],
    "attention/linear_0": ["encoder_attn.q_proj"],
    "attention/linear_1": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "attention/linear_2": ["encoder_attn.out_proj"],
    "ffn/layer_norm": ["final_layer_norm"],
    "ffn/linear_0": ["fc1"],
    "ffn/linear_1": ["fc2"],
    "position_encodings": ["embed_positions"],
    "embeddings": ["embed_tokens"],
}
"""CTranslate2's names of Whisper's parts -> transformers' names; several are stacked in one matrix."""

ENDS = {"gamma": "weight", "beta": "bias", "encodings": "weight"}


def gguf(file: Path, target: Path) -> None:
    """A language model that was quantized."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
    )
    # The weights are plain floats now; what still calls them quantized makes save_pretrained refuse.
    for owner, attribute in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "is_quantized")):
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def whisper(file: Path, target: Path) -> None:
    """CTranslate2's Whisper tiny.en. Its config keeps `alignment_heads`, (layer, head) pairs of the decoder."""
    from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperModel

    said = json.loads((file.parent / "config.json").read_text(encoding="utf-8"))
    with file.open("rb") as handle:
        weights = dict(part for name, x in _ctranslate2(handle) for part in _renamed(name, x))
    vocabulary, width = weights["decoder.embed_tokens.weight"].shape
    sizes = {"layers": 4, "attention_heads": 6, "ffn_dim": 4 * width}
    options: dict[str, Any] = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    options["alignment_heads"] = said["alignment_heads"]  # of transformers' own no option
    config = WhisperConfig(vocab_size=vocabulary, d_model=width, **options)
    model = WhisperModel(config)
    model.load_state_dict(weights)
    model.save_pretrained(target)
    PreTrainedTokenizerFast(tokenizer_file=str(file.parent / "tokenizer.json")).save_pretrained(target)


def reactions(file: Path, target: Path) -> None:
    """rxnmapper's ALBERT. Its weights are a pickle, read by torch's restricted unpickler, which runs no code."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import AlbertModel, PreTrainedTokenizerFast

    words = (file.parent / "vocab.txt").read_text(encoding="utf-8").split()
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(numbers, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SMILES), "removed", invert=True)
    ends = [(word, numbers[word]) for word in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    names = {f"{each}_token": f"[{each.upper()}]" for each in ("unk", "sep", "pad", "cls", "mask")}
    AlbertModel.from_pretrained(file.parent, use_safetensors=False, local_files_only=True).save_pretrained(target)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(target)


def _ctranslate2(file: BinaryIO) -> Iterator[tuple[str, Tensor]]:
    """The float16 variables of CTranslate2's binary format 6: for each a name, a shape, a type, a size and the numbers."""

    def read(form: str) -> tuple[int, ...]:
        return struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))

    def name() -> str:
        return file.read(read("H")[0]).rstrip(b"\0").decode()

    read("I"), name()
    for _ in range(read("II")[1]):
        label, rank = name(), read("B")[0]
        shape = read(f"{rank}I")
        kind, size = read("BI")
        content = bytearray(file.read(size))
        if kind == 4:
            yield label, torch.frombuffer(content, dtype=torch.float16).reshape(shape).float()


def _renamed(name: str, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """decoder/layer_3/attention/linear_1/bias -> decoder.layers.3.encoder_attn.v_proj.bias, and its like."""
    side, *middle, end = name.split("/")
    layer = middle.pop(0).replace("layer_", "layers.") if len(middle) > 1 else None
    parts = PARTS.get("/".join(middle), middle)
    for part, piece in zip(parts, x.chunk(len(parts)), strict=True):
        found = ".".join(each for each in (side, layer, part, ENDS.get(end, end)) if each)
        if not found.endswith("k_proj.bias"):  # zero, and not there in transformers
            yield found, piece
