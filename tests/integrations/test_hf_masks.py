"""A mask function becomes a structured mask that hides exactly what transformers' own dense mask hides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers import masking_utils as hf

import softlookup as sl
from softlookup.integrations import huggingface
from softlookup.integrations.hf_masks import HFMask
from softlookup.integrations.lazy_mask import LazyMask

BATCH = 2
BLOCKS = torch.tensor([[-1, -1, 0, 0, 0, -1, 1, 1, -1, -1, 2, 2], [0, 0, -1, -1, -1, -1, -1, 1, 1, 1, -1, -1]])
LEFT_PADDING = torch.tensor([0, 2])

FUNCTIONS = {
    "causal": hf.causal_mask_function,
    "bidirectional": hf.bidirectional_mask_function,
    "window": hf.sliding_window_causal_mask_function(3),
    "window both sides": hf.sliding_window_bidirectional_mask_function(2),
    "chunks": hf.chunked_causal_mask_function(4, LEFT_PADDING),
    "image blocks": hf.or_masks(hf.causal_mask_function, hf.blockwise_overlay(BLOCKS)),
    "image blocks in a window": hf.or_masks(
        hf.and_masks(hf.sliding_window_overlay(3), hf.causal_mask_function), hf.blockwise_overlay(BLOCKS)
    ),
    "a window alone": hf.sliding_window_overlay(3),
    "a user's own": hf.and_masks(hf.causal_mask_function, lambda b, h, q, kv: (q + kv + b) % 3 != 0),
}


def dense_of(structure: sl.Mask | None, query_offset: int, queries: int, keys: int) -> torch.Tensor:
    """(B, L, S) what the operator makes of a mask, read off its weights."""
    q, k = torch.zeros(BATCH, 1, queries, 4), torch.zeros(BATCH, 1, keys, 4)
    v = torch.eye(keys).expand(BATCH, 1, keys, keys)
    return (sl.attend(q, k, v, mask=structure, query_offset=query_offset) > 0)[:, 0]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_structure_hides_what_the_dense_mask_hides(data):
    name = data.draw(st.sampled_from(sorted(FUNCTIONS)))
    queries, kv_offset = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 3))
    q_offset = kv_offset + data.draw(st.integers(0, 12 - 6 - 3))
    keys = data.draw(st.integers(q_offset - kv_offset + queries, 12 - kv_offset))
    padding = torch.rand(BATCH, 12, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9)))) > 0.3
    made = HFMask(
        function=FUNCTIONS[name],
        batch=BATCH,
        queries=queries,
        keys=keys,
        q_offset=q_offset,
        kv_offset=kv_offset,
        padding=data.draw(st.sampled_from([None, padding])),
        dtype=torch.float32,
        device=torch.device("cpu"),
        use_vmap=name == "a user's own" and data.draw(st.booleans()),
    )
    want = (made.dense() == 0)[:, 0]
    assert torch.equal(dense_of(made.structure, made.query_offset, queries, keys), want)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("causal", ["Causal"]),
        ("bidirectional", []),
        ("window", ["Causal", "Window"]),
        ("window both sides", ["Window"]),
        ("chunks", ["Causal", "Documents"]),
        ("image blocks", ["Causal", "Documents", "Padding"]),
        ("a user's own", ["Causal", "MaskFunction"]),
        ("a window alone", ["MaskFunction"]),
    ],
)
def test_known_functions_keep_their_structure(name, pieces):
    mask = huggingface.mask(BATCH, 12, 12, mask_function=FUNCTIONS[name])
    assert sorted(leaves(mask.recipe.structure)) == sorted(pieces)


def leaves(mask: sl.Mask | None) -> list[str]:
    if mask is None:
        return []
    parts = [x for x in vars(mask).values() if isinstance(x, sl.Mask)]
    return [name for part in parts for name in leaves(part)] if parts else [type(mask).__name__]


@pytest.fixture
def llama_config():
    huggingface.register()
    config = LlamaConfig(sliding_window=3, attention_chunk_size=4)
    config._attn_implementation = "softlookup"
    return config


@pytest.mark.parametrize(
    "make", ["create_causal_mask", "create_sliding_window_causal_mask", "create_chunked_causal_mask"]
)
def test_packed_sequences_are_documents(llama_config, make):
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]]).expand(BATCH, -1)
    arguments = {"inputs_embeds": torch.zeros(BATCH, 12, 4), "attention_mask": None, "past_key_values": None}
    lazy = getattr(hf, make)(llama_config, position_ids=positions, **arguments)
    assert isinstance(lazy, LazyMask)
    names = leaves(lazy.recipe.structure)
    assert "Documents" in names and ("MaskFunction" in names) == (make == "create_chunked_causal_mask")
    assert torch.equal(
        dense_of(lazy.recipe.structure, 0, 12, 12), (lazy.recipe.dense() == 0)[:, 0].expand(BATCH, -1, -1)
    )


def test_a_scalar_function_of_the_user_works(llama_config):
    picture = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0]])

    def same_picture(b, h, q, kv):
        return (picture[b][q] == 1) & (picture[b][kv] == 1)  # indexes by one scalar at a time: needs vmap

    arguments = {"inputs_embeds": torch.zeros(BATCH, 6, 4), "attention_mask": None, "past_key_values": None}
    lazy = hf.create_causal_mask(llama_config, or_mask_function=same_picture, **arguments)
    llama_config._attn_implementation = "eager"
    want = hf.create_causal_mask(llama_config, or_mask_function=same_picture, **arguments)
    assert torch.equal(dense_of(lazy.recipe.structure, 0, 6, 6), (want == 0)[:, 0])
    assert torch.equal(lazy + 0, want)


def test_no_mask_where_eager_has_none_and_only_there():
    full = torch.ones(BATCH, 5)
    bidirectional = {"mask_function": hf.bidirectional_mask_function, "allow_is_bidirectional_skip": True}
    assert huggingface.mask(BATCH, 5, 5, **bidirectional) is None
    assert huggingface.mask(BATCH, 5, 5, attention_mask=full, **bidirectional) is None
    assert (
        huggingface.mask(BATCH, 5, 5, attention_mask=full * torch.tensor([1, 1, 1, 1, 0]), **bidirectional) is not None
    )
    assert huggingface.mask(BATCH, 5, 5, local_size=5, **bidirectional) is not None
    assert huggingface.mask(BATCH, 5, 5, allow_is_causal_skip=True) is not None  # causality is never left to a flag


def test_long_masks_are_not_built():
    lazy = huggingface.mask(4, 1 << 20, 1 << 20, attention_mask=torch.ones(4, 1 << 20))
    assert lazy.shape == (4, 1, 1 << 20, 1 << 20)
    cut = lazy[:, :, -1:, :]
    assert cut.recipe.query_offset == (1 << 20) - 1 and leaves(cut.recipe.structure) == ["Causal"]


def test_rows_follow_the_padding_and_the_cache():
    padding = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    first = huggingface.mask(2, 6, 6, attention_mask=padding).recipe
    assert torch.equal(first.rows, padding.bool())
    later = huggingface.mask(2, 2, 6, q_offset=4, attention_mask=padding).recipe
    assert later.rows.all() and later.rows.shape == (2, 2)
    assert huggingface.mask(2, 6, 6).recipe.rows is None
