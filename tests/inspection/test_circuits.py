"""Compositions and token pairs of planted heads are found, and named by the right tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from softlookup.geometry import LayerWeights, composition
from softlookup.inspection.circuits import SHOWN, strongest, token_pairs

D, K, H, LAYERS = 64, 8, 3, 4


def weights() -> list[LayerWeights]:
    make = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=make)

    return [LayerWeights(normal(H, D, K), normal(H, D, K), normal(H, D, K), normal(H, K, D)) for _ in range(LAYERS)]


@pytest.mark.parametrize("kind", ["query", "key", "value"])
def test_a_planted_composition_is_the_strongest(kind):
    layers = weights()
    reads = getattr(layers[3], kind)
    reads[2] = layers[1].output[0].mT
    first = next(x for x in strongest(layers) if x.kind == kind)
    assert (first.earlier, first.later) == ("1.0", "3.2")
    assert first.strength == pytest.approx(float(composition(layers[1], layers[3])[0][kind][0, 2]))


def test_of_each_kind_the_strongest_in_order():
    layers, told = weights(), []
    found = strongest(layers, told.append)
    assert told[-1] == 1 and len(told) == LAYERS * (LAYERS - 1) // 2
    for kind in ("query", "key", "value"):
        strengths = [x.strength for x in found if x.kind == kind]
        assert len(strengths) == SHOWN and strengths == sorted(strengths, reverse=True)
        every = [composition(layers[i], layers[j])[0][kind].flatten() for i in range(LAYERS) for j in range(i + 1, LAYERS)]
        torch.testing.assert_close(torch.tensor(strengths), torch.cat(every).topk(SHOWN).values.float())


class Words:
    all_special_ids = ()

    def __len__(self):
        return 40

    def convert_ids_to_tokens(self, ids):
        return [f"w{i}" for i in ids]

    def decode(self, ids, **_):
        return f"w{ids[0]}"


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(40, D)

    def get_input_embeddings(self):
        return self.embedding


def test_a_planted_pair_is_named_by_its_tokens():
    (layer, *_), network = weights(), Network()
    rows = network.embedding.weight.detach().double()
    rows = rows - rows.mean(0)
    for head, (asks, answers) in enumerate(((5, 7), (11, 3), (20, 20))):
        layer.query[head, :, 0] = 30 * rows[asks]
        layer.key[head, :, 0] = 30 * rows[answers]
    (found,) = token_pairs([layer], network, Words())
    assert [(x.looks_for[0], x.found_by[0]) for x in found] == [("w5", "w7"), ("w11", "w3"), ("w20", "w20")]
    assert all(x.share > 0.9 and len(x.looks_for) == 6 for x in found)


def test_models_without_tokens_have_no_pairs():
    layers = weights()
    assert token_pairs(layers, nn.Linear(3, 3), Words()) is None
    assert token_pairs(layers, Network(), None) is None
    narrow = [LayerWeights(*(torch.randn(1, 5, 4), torch.randn(1, 5, 4), torch.randn(1, 5, 4), torch.randn(1, 4, 5)))]
    assert token_pairs(narrow, Network(), Words()) is None

    class Waves(nn.Module):
        def get_input_embeddings(self):
            raise NotImplementedError  # transformers' answer for models that read something else

    assert token_pairs(layers, Waves(), Words()) is None
