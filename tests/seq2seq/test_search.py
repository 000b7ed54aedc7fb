"""Beam search against what can be computed by hand, over a model whose probabilities are a table."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import softlookup as sl
from softlookup.seq2seq import Attentive, Ensemble, Transformer, search
from softlookup.seq2seq.model import State

BEGIN, END, SYMBOLS = 1, 2, 6


class _Said(State):
    def __init__(self, said):
        self.said = said  # (B, K, t)

    def take(self, parents):
        return _Said(torch.stack([rows[which] for rows, which in zip(self.said, parents, strict=True)]))


class Table:
    """The probability of the next symbol is any function of all before it."""

    source_symbols = target_symbols = SYMBOLS

    def __init__(self, seed=0, sharpness=2.0):
        self.seed, self.sharpness = seed, sharpness

    def next(self, entry, said):
        random = torch.Generator().manual_seed(hash((self.seed, entry, tuple(said))) % 2**62)
        scores = self.sharpness * torch.randn(SYMBOLS, generator=random)
        scores[:2] = -torch.inf
        return scores.log_softmax(-1)

    def start(self, source, lengths):
        self.entries = source[:, 0].tolist()
        return _Said(torch.zeros(len(source), 1, 0, dtype=torch.long))

    def step(self, tokens, state):
        said = torch.cat([state.said, tokens.unsqueeze(-1)], -1)
        rows = [[self.next(e, row.tolist()[1:]) for row in rows] for e, rows in zip(self.entries, said, strict=True)]
        return torch.stack([torch.stack(each) for each in rows]), _Said(said)


def log_probability(model, entry, output):
    return sum(float(model.next(entry, output[:t])[s]) for t, s in enumerate([*output, END]))


def run(model, entries=3, **options):
    source = torch.arange(entries)[:, None]
    return search(model, source, torch.ones(entries, dtype=torch.long), begin=BEGIN, end=END, **options)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_scores_are_those_of_the_outputs(power):
    model = Table()
    for entry, found in enumerate(run(model, beam=4, longest=12, power=power)):
        assert len(found) == 4 and [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert len({h.symbols for h in found}) == 4
        for h in found:
            want = log_probability(model, entry, list(h.symbols)) / (len(h.symbols) + 1) ** power
            assert h.finished and math.isclose(h.score, want, abs_tol=1e-4)


def test_a_beam_of_one_is_greedy():
    model = Table()
    for entry, found in enumerate(run(model, beam=1, longest=30)):
        said = []
        while (best := int(model.next(entry, said).argmax())) != END and len(said) < 30:
            said.append(best)
        assert found[0].symbols == tuple(said)


def test_a_wide_beam_finds_the_best_of_all_short_outputs():
    model = Table(sharpness=3.0)
    alphabet = range(3, SYMBOLS)
    every = [list(x) for n in range(4) for x in itertools.product(alphabet, repeat=n)]
    for entry, found in enumerate(run(model, beam=60, longest=4, power=0.0)):
        best = max(every, key=lambda output: log_probability(model, entry, output))
        got = next(h for h in found if len(h.symbols) < 4)
        assert got.symbols == tuple(best)


def test_batches_do_not_matter_and_long_outputs_are_cut():
    model = Table()
    together = run(model, entries=5, beam=3, longest=6)
    for entry in range(5):
        alone = search(model, torch.tensor([[entry]]), torch.ones(1, dtype=torch.long), begin=BEGIN, end=END, beam=3, longest=6)
        assert [h.symbols for h in alone[0]] == [h.symbols for h in together[entry]]

    class Endless(Table):
        def next(self, entry, said):
            scores = super().next(entry, said)
            scores[END] = -torch.inf
            return scores

    for found in run(Endless(), beam=2, longest=5):
        assert len(found) == 1 and not found[0].finished and len(found[0].symbols) == 5


def test_an_output_as_long_as_any_may_be_can_end():
    class Exact(Table):
        def next(self, entry, said):
            scores = torch.full((SYMBOLS,), -torch.inf)
            scores[END if len(said) == 3 else 4] = 0.0
            return scores

    for beam in (1, 5):
        for found in run(Exact(), beam=beam, longest=3):
            assert found[0].symbols == (4, 4, 4) and found[0].finished and found[0].score == 0


def test_an_ensemble_says_the_mean_of_probabilities():
    models = Table(1), Table(2)
    both = Ensemble(models)
    state = both.start(torch.zeros(2, 1, dtype=torch.long), torch.ones(2, dtype=torch.long))
    got, _ = both.step(torch.full((2, 1), BEGIN), state)
    want = torch.stack([m.next(0, []) for m in models]).exp().mean(0)
    torch.testing.assert_close(got[0, 0].exp(), want)
    assert run(Ensemble([models[0]]), beam=3, longest=9) == run(models[0], beam=3, longest=9)


def test_partial_outputs_that_ended_do_not_end_again():
    for found in run(Table(), beam=3 * SYMBOLS, longest=4):
        assert all(math.isfinite(each.score) and 2 not in each.symbols for each in found)


def test_symbols_that_no_output_may_hold():
    for found in run(Table(), beam=6, longest=8, never=(0, 1, 3)):
        assert found and not any({0, 1, 3} & set(each.symbols) for each in found)


def test_the_model_is_asked_without_dropout_and_left_as_it_was():
    torch.manual_seed(0)
    model = Transformer(9, 9, width=16, heads=2, layers=1, dropout=0.5).train()
    source = torch.randint(3, 9, (4, 5))
    arguments = {"begin": 1, "end": 2, "beam": 2, "longest": 6}
    first, second = (search(model, source, torch.full((4,), 5), **arguments) for _ in range(2))
    assert first == second and model.training


def test_bad_arguments_are_told():
    with pytest.raises(sl.SoftlookupError, match="begin, end and never below"):
        run(Table(), never=(99,))
    with pytest.raises(sl.SoftlookupError, match="that an output may hold"):
        run(Table(), never=range(SYMBOLS))
    for begin in (50, -1):
        with pytest.raises(sl.SoftlookupError, match="begin, end and never below 9"):
            model = Transformer(9, 9, width=8, heads=2, layers=1)
            search(model, torch.ones(1, 2).long(), torch.tensor([2]), begin=begin, end=2)
    with pytest.raises(sl.SoftlookupError, match="beam"):
        run(Table(), beam=0)
    with pytest.raises(sl.SoftlookupError, match="at least one model"):
        Ensemble([])
    with pytest.raises(sl.SoftlookupError, match="same vocabularies"):
        Ensemble([Attentive(8, 8, width=4, embedding=4), Attentive(8, 9, width=4, embedding=4)])
