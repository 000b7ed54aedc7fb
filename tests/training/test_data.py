"""Tasks, vocabularies, batches and scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import softlookup as sl
from softlookup.training import g2p, pairs
from softlookup.training.batches import count, epoch_of, examples
from softlookup.training.scoring import score
from softlookup.training.tasks import Pair, part_of
from softlookup.training.vocabulary import FIRST, Vocabulary


def test_the_dictionary_is_what_it_is_said_to_be():
    corpus = g2p.read()
    every = [*corpus.train, *corpus.dev, *corpus.test]
    assert len(every) == 117_493 and corpus.origin.startswith("cmudict")
    phones = {phone for pair in every for reference in pair.references for phone in reference}
    assert len(phones) == 39 and {letter for pair in every for letter in pair.source} == set("abcdefghijklmnopqrstuvwxyz")
    by_word = {"".join(pair.source): pair.references for pair in every}
    assert by_word["knight"] == (("N", "AY", "T"),)
    assert set(by_word["read"]) == {("R", "EH", "D"), ("R", "IY", "D")}
    shares = [len(part) / len(every) for part in (corpus.train, corpus.dev, corpus.test)]
    np.testing.assert_allclose(shares, (0.85, 0.05, 0.10), atol=0.003)
    words = [{pair.source for pair in part} for part in (corpus.train, corpus.dev, corpus.test)]
    assert not (words[0] & words[1] or words[0] & words[2] or words[1] & words[2])


def test_the_part_of_a_source_depends_on_the_source_alone():
    # sha256(b"k n i g h t")[:4] = 0x.. modulo 100, computed apart from the code
    import hashlib

    at = int(hashlib.sha256(b"k n i g h t").hexdigest()[:8], 16) % 100
    assert part_of(tuple("knight")) == ("train" if at < 85 else "dev" if at < 90 else "test")


def test_pairs_of_a_file(reversals):
    reversals.write_text(reversals.read_text() + "\nab\tx\r\n")
    corpus = pairs.read(reversals, "characters", "words")
    every = {pair.source: pair.references for part in ("train", "dev", "test") for pair in corpus.part(part)}
    assert len(every) == 4**2 + 4**3 + 4**4
    assert every[tuple("abc")] == (("c", "b", "a"),) and every[tuple("ab")] == (("b", "a"), ("x",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\nab\n", ":2: expected source<TAB>target, got 1 fields"),
        (b"a\tb\tc\n", ":1: expected source<TAB>target, got 3 fields"),
        (b"a\tb\nb\t\n", ":2: .* empty target"),
        (b"a\tb\n\tb\n", ":2: .* empty source"),
        (b"a\tb\n\xff\tb\n", ":2: expected UTF-8, got byte 0xff"),
        (b"a\tb\n" + b"x" * 1001 + b"\ty\n", ":2: expected at most 1000 symbols, got a source of 1001"),
        (b"a\tb\n", "expected at least 20 different sources, .* got"),
        (b"", "expected at least 20"),
    ],
)
def test_malformed_files(tmp_path, content, message):
    path = tmp_path / "bad.tsv"
    path.write_bytes(content)
    with pytest.raises(sl.SoftlookupError, match=message):
        pairs.read(path, "characters", "characters")


def test_files_that_are_none(tmp_path):
    with pytest.raises(sl.SoftlookupError, match="no such file"):
        pairs.read(tmp_path / "none.tsv", "characters", "characters")
    with pytest.raises(sl.SoftlookupError, match="--source: expected characters or words"):
        pairs.read(tmp_path / "none.tsv", "letters", "characters")


def test_vocabularies_go_there_and_back():
    vocabulary = Vocabulary.of(["cab", "b"])
    assert vocabulary.symbols == ("a", "b", "c") and len(vocabulary) == FIRST + 3
    assert vocabulary.numbers("cab") == [5, 3, 4] and vocabulary.words([1, 5, 3, 4, 2, 0]) == ("c", "a", "b")
    assert vocabulary.unknown("abxyx") == ["x", "y"]
    with pytest.raises(sl.SoftlookupError, match="twice"):
        Vocabulary("aba")


def some_examples():
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abc"), random.integers(1, 9))) for _ in range(1000)]
    made = [Pair(tuple(w), (tuple(w[::-1]), tuple(w))) for w in dict.fromkeys(words)]
    vocabulary = Vocabulary("abc")
    return made, examples(made, vocabulary, vocabulary)


def test_an_epoch_is_every_example_once_among_its_like():
    made, all_examples = some_examples()
    assert len(all_examples) == 2 * len(made)
    batches = list(epoch_of(all_examples, 32, seed=0, epoch=0))
    assert len(batches) == count(len(all_examples), 32)
    seen = []
    for batch in batches:
        assert batch.source.shape == (len(batch.lengths), int(batch.lengths.max()))
        assert torch.equal((batch.source > 0).sum(1), batch.lengths) and batch.symbols == int((batch.wanted > 0).sum())
        assert (batch.given[:, 0] == 1).all()
        assert torch.equal(batch.given[:, 1:], batch.wanted[:, :-1].where(batch.given[:, 1:] > 0, 0))
        for source, wanted in zip(batch.source, batch.wanted, strict=True):
            target = [x for x in wanted.tolist() if x]
            assert target[-1] == 2
            seen.append(([x for x in source.tolist() if x], target[:-1]))
    assert sorted(seen) == sorted(all_examples)
    padding = 1 - sum(int(b.lengths.sum()) for b in batches) / sum(b.source.numel() for b in batches)
    assert padding < 0.05


def test_the_order_follows_from_seed_and_epoch():
    _, all_examples = some_examples()
    orders = {k: [b.source.tolist() for b in epoch_of(all_examples, 32, *k)] for k in ((0, 0), (0, 1), (1, 0))}
    assert orders[0, 0] == [b.source.tolist() for b in epoch_of(all_examples, 32, 0, 0)]
    assert orders[0, 0] != orders[0, 1] != orders[1, 0] != orders[0, 0]


def test_scores_count_edits_to_the_closest_reference():
    made = [Pair(tuple("ab"), (tuple("kitten"), tuple("sit"))), Pair(tuple("abc"), (tuple("x"),)), Pair(("a",), (tuple("yz"),))]
    got = score([tuple("sitting"), tuple("x"), ()], made)
    assert got.edits.tolist() == [3, 0, 2] and got.length.tolist() == [6, 1, 2] and got.source.tolist() == [2, 3, 1]
    assert got.wer == pytest.approx(2 / 3) and got.per == pytest.approx(5 / 9)
    assert got.take(got.source > 1).wer == pytest.approx(1 / 2)
    low, high = got.interval("per")
    assert low <= got.per <= high
