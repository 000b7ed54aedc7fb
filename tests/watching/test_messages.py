"""What somebody who already watches is told."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

import softlookup as sl


def test_output_attentions_inside_a_watch():
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaModel(config).eval()
    with pytest.raises(sl.UnsupportedError) as caught, sl.watch(model):
        model(torch.ones(1, 4, dtype=torch.int64), output_attentions=True)
    told = str(caught.value)
    assert "call the model without it" in told and "seen.table()" in told and "\n" not in told


def test_a_model_that_was_called_and_has_no_attention():
    """Torch's own leaves are not followed, so a call of one is not noticed."""
    model = nn.Linear(3, 3)
    with pytest.raises(sl.SoftlookupError, match="got none in Linear: it computes attention by itself, where .* or has none"):
        with sl.watch(model):
            model(torch.zeros(1, 3))
