"""Text in, tokens out; every text that is none has its line."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel, T5Config, T5Model

from softlookup.errors import SoftlookupError
from softlookup.inspection.text import context_of, read, read_text, tokens_wanted
from softlookup.inspection.words import words_from_offsets


def told(path: Path) -> str:
    with pytest.raises(SoftlookupError) as caught:
        read_text(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_default_is_the_same_every_time_and_has_its_hash() -> None:
    (content, text), again = read_text(None), read_text(None)
    assert again == (content, text) and len(content) > 100_000
    assert text.sha256 is not None and len(text.sha256) == 64 and "pydoc_data.topics" in text.title


def test_a_file_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffZoë 🙂\r\n".encode())
    content, text = read_text(str(file))
    assert content == "Zoë 🙂\r\n" and text.title == "a.txt"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"from a pipe")))
    assert read_text("-")[0] == "from a pipe"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "expected some text, got an empty file"),
        (b" \n\t ", "expected some text, got only white space"),
        (b"text\0text", "got binary data in"),
        (b"\x7fELF\x02\x01\x01\0", "got binary data in"),
        (b"abc \xff\xfe", "expected UTF-8 text, got byte 0xff at 4"),
        ("é".encode("latin-1"), "expected UTF-8 text, got byte 0xe9 at 0"),
    ],
)
def test_what_is_no_text(tmp_path: Path, content: bytes, line: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert line in told(tmp_path / "a.txt")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file" in told(tmp_path / "nothing")
    assert "expected a text file, got the folder" in told(tmp_path)
    (tmp_path / "file").write_text("x")
    assert "cannot read" in told(tmp_path / "file" / "below")


def test_words_are_the_text(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    reading = read(tokenizer, "the assert  statement, of a", 100)
    assert reading.words == ["the", " assert", "  statement", ",", " of", " a"] and not reading.cut
    assert reading.batch["input_ids"].shape == (1, 6)


@pytest.mark.parametrize("tokens", [2, 50, 64, 200])
def test_a_longer_text_is_cut(tiny: Path, tokens: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    content = "the assert statement of a and b . " * 40
    reading, whole = read(tokenizer, content, tokens), read(tokenizer, content, 10_000)
    assert reading.cut and not whole.cut
    assert reading.words == whole.words[:tokens]
    assert reading.batch["input_ids"].tolist()[0] == whole.batch["input_ids"].tolist()[0][:tokens]


def test_long_stretches_without_tokens_are_read_on(tiny: Path) -> None:
    """The text is tokenized in prefixes; one of them may hold fewer tokens than wanted."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    content = "the " + " " * 5000 + "assert statement of a " * 30
    assert len(read(tokenizer, content, 50).words) == 50


def test_a_text_of_one_token(tiny: Path) -> None:
    with pytest.raises(SoftlookupError, match="expected at least 2 tokens, got 1"):
        read(AutoTokenizer.from_pretrained(tiny), "the", 10)


def test_both_sides_of_an_encoder_decoder(tiny: Path) -> None:
    batch = read(AutoTokenizer.from_pretrained(tiny), "the assert", 10, encoder_decoder=True).batch
    assert batch["decoder_input_ids"].equal(batch["input_ids"])


def test_pieces_of_one_character_and_special_tokens() -> None:
    offsets = [(0, 0), (0, 1), (0, 1), (2, 3), (0, 0)]
    assert words_from_offsets("🙂 b", offsets, ["<s>", "Ä", "Ł", "b", "</s>"]) == ["<s>", "🙂", "🙂", " b", "</s>"]


def test_context() -> None:
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    assert context_of(BertModel(BertConfig(**small, max_position_embeddings=77))) == 77
    roberta = RobertaModel(RobertaConfig(**small, max_position_embeddings=66, pad_token_id=1))
    assert context_of(roberta) == 64
    assert context_of(T5Model(T5Config(vocab_size=20, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8))) is None


def test_tokens_wanted() -> None:
    assert tokens_wanted(None, 8192) == 2048 and tokens_wanted(None, 512) == 512 and tokens_wanted(None, None) == 2048
    assert tokens_wanted(512, 512) == 512 and tokens_wanted(9999, None) == 9999
    with pytest.raises(SoftlookupError, match="expected at most 512, the model's context, got 513"):
        tokens_wanted(513, 512)
    with pytest.raises(SoftlookupError, match="expected at least 2, got 1"):
        tokens_wanted(1, 512)
