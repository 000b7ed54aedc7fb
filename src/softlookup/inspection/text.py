"""The text that a model reads: a file, standard input, or a chapter that every Python carries."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SoftlookupError
from ..files import expanded
from .inspection import Text
from .words import words_from_offsets, words_of

DEFAULT_TOKENS = 2048


@dataclass(frozen=True)
class Reading:
    """A text as a model takes it: ``batch`` (1, L) per input, the word of each position, and whether text was left
    over."""

    batch: dict[str, Any]
    words: list[str]
    cut: bool


def read_text(path: str | None, sample: str | None = None) -> tuple[str, Text]:
    """The text of a file, of standard input ("-"), or by default the model's ``sample`` or else a chapter; with where it
    came from and its hash."""
    if path is None and sample is not None:
        content, title = sample, "the model's sample"
    elif path is None:
        content, title = (
            _default(),
            f"CPython {sys.version_info.major}.{sys.version_info.minor}'s language reference (pydoc_data.topics)",
        )
    else:
        content, title = _decoded(path), "standard input" if path == "-" else Path(path).name
    return content, Text(title, hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest())


def context_of(model: Any) -> int | None:
    """The most tokens that the model's positions allow; None where positions are relative and nothing is fixed."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    limit = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and hasattr(module, "num_embeddings"):
            # RoBERTa counts positions from behind its padding index.
            offset = 0 if getattr(module, "padding_idx", None) is None else module.padding_idx + 1
            limit = min(limit or module.num_embeddings, module.num_embeddings - offset)
    return limit if isinstance(limit, int) and limit > 0 else None


def tokens_wanted(asked: int | None, context: int | None) -> int:
    """``--tokens`` checked against the model's context; by default 2,048, or less where the context is shorter."""
    if asked is None:
        return DEFAULT_TOKENS if context is None else min(DEFAULT_TOKENS, context)
    if asked < 2:
        raise SoftlookupError(f"--tokens: expected at least 2, got {asked}")
    if context is not None and asked > context:
        raise SoftlookupError(f"--tokens: expected at most {context:,}, the model's context, got {asked:,}")
    return asked


def read(tokenizer: Any, content: str, tokens: int, *, encoder_decoder: bool = False) -> Reading:
    """The first ``tokens`` tokens of a text, special ones included. An encoder-decoder's two sides read the same
    text."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    ids, cut = _first(tokenizer, content, tokens)
    options = {"return_offsets_mapping": True} if fast else {}
    encoded = dict(tokenizer(content[:cut], truncation=True, max_length=tokens, return_tensors="pt", **options))
    offsets = encoded.pop("offset_mapping", None)
    numbers = encoded["input_ids"][0].tolist()
    if len(numbers) < 2:
        raise SoftlookupError(f"--text: expected at least 2 tokens, got {len(numbers)}")
    if offsets is None:
        words = words_of(tokenizer, numbers)
    else:
        words = words_from_offsets(content, offsets[0].tolist(), tokenizer.convert_ids_to_tokens(numbers))
    if encoder_decoder:
        encoded["decoder_input_ids"] = encoded["input_ids"]
    return Reading(encoded, words, ids > tokens)


def _first(tokenizer: Any, content: str, tokens: int) -> tuple[int, int]:
    """(tokens in a prefix, its length in characters): the shortest prefix tried that has more than ``tokens``, or
    the whole text.

    A long text is not tokenized whole. The margin keeps the last wanted token away from the place of the cut.
    """
    length = 8 * tokens
    while True:
        count = len(tokenizer(content[:length], truncation=False, verbose=False)["input_ids"])
        if count > tokens + 32 or length >= len(content):
            return count, min(length, len(content))
        length *= 2


def _default() -> str:
    """The chapters of Python's language reference that ``help()`` shows, in alphabetical order; they differ between
    versions."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def _decoded(path: str) -> str:
    name = "standard input" if path == "-" else path
    try:
        raw = sys.stdin.buffer.read() if path == "-" else expanded(path).read_bytes()
    except FileNotFoundError:
        raise SoftlookupError(f"--text: no such file: {path}") from None
    except IsADirectoryError:
        raise SoftlookupError(f"--text: expected a text file, got the folder {path}") from None
    except OSError as error:
        raise SoftlookupError(f"--text: cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    if b"\0" in raw:
        raise SoftlookupError(
            f"--text: expected UTF-8 text, got binary data in {name} (a zero byte at {raw.index(0):,})"
        )
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SoftlookupError(
            f"--text: expected UTF-8 text, got byte 0x{raw[error.start]:02x} at {error.start:,} in {name}"
        ) from None
    if not content.strip():
        raise SoftlookupError(
            f"--text: expected some text, got {'an empty file' if not raw else 'only white space'}: {name}"
        )
    return content
