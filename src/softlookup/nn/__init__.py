"""Attention as torch modules: additive, multi-head, and the blocks of a transformer, all on `softlookup.attend`."""

from .additive import AdditiveAttention as AdditiveAttention
from .blocks import TransformerBlock as TransformerBlock
from .cache import Cache as Cache
from .multihead import MultiHeadAttention as MultiHeadAttention
from .positions import RoPE as RoPE

__all__ = ["AdditiveAttention", "Cache", "MultiHeadAttention", "RoPE", "TransformerBlock"]
