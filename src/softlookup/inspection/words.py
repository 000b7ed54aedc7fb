"""Token ids as the pieces of text that a reader recognizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def words_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """One string per id. Special tokens keep their name; a piece that is part of a character shows as U+FFFD."""
    special = set(getattr(tokenizer, "all_special_ids", ()))
    names = tokenizer.convert_ids_to_tokens(list(ids))
    words = []
    for number, name in zip(ids, names, strict=True):
        if number in special or name is None:
            words.append(str(name))
        elif name.startswith("▁"):  # SentencePiece marks a space that decoding a single token drops
            words.append(name.replace("▁", " "))
        else:
            words.append(tokenizer.decode([number], clean_up_tokenization_spaces=False))
    return words


def words_from_offsets(text: str, offsets: Sequence[tuple[int, int]], names: Sequence[str]) -> list[str]:
    """One string per token, cut from the text itself; tokens that stand for no text (special ones) keep their name.

    The gap between two tokens (WordPiece drops spaces) goes to the later one, so that the pieces read as the text.
    """
    words, end = [], 0
    for (start, stop), name in zip(offsets, names, strict=True):
        if stop <= start:
            words.append(name)
            continue
        words.append(text[min(start, end) if start > end and not text[end:start].strip() else start : stop])
        end = stop
    return words
