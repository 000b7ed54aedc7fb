"""The block that transformers are stacks of."""

from __future__ import annotations

from torch import Tensor, nn

from ..biases import ALiBi
from ..errors import SoftlookupError, UnsupportedError, at_least_one
from ..running import MaskLike, StatsLike
from ..summary import Stats
from .cache import Cache
from .multihead import MultiHeadAttention
from .positions import RoPE


class TransformerBlock(nn.Module):
    """x + attention, x + cross-attention if there is a context, x + feed-forward, each normalized before (Xiong et al. 2020).

    Args:
        width: E.
        heads: H.
        inner: of the feed-forward layer, 4 E by default.
        cross: whether the block reads a context.
        positions: of self-attention, as `MultiHeadAttention` has them.
        dropout: of what each part adds, and of the feed-forward layer; `attention_dropout`: of attention's weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        inner: int | None = None,
        cross: bool = False,
        positions: RoPE | ALiBi | None = None,
        qk_norm: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        inner = 4 * width if inner is None else inner
        at_least_one("TransformerBlock", inner=inner)
        self.attention = MultiHeadAttention(width, heads, positions=positions, qk_norm=qk_norm, dropout=attention_dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.cross = MultiHeadAttention(width, heads, qk_norm=qk_norm, dropout=attention_dropout) if cross else None
        self.cross_norm = nn.LayerNorm(width) if cross else None
        self.feed_forward = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Dropout(dropout), nn.Linear(inner, width))
        self.feed_forward_norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: MaskLike | None = None,
        context_mask: MaskLike | None = None,
        caches: tuple[Cache, Cache] | None = None,
        stats: StatsLike | None = None,
    ) -> tuple[Tensor, Stats | None]:
        """x (B, L, E), context (B, S, E) -> (B, L, E) and the statistics, (B, H, L), of the attention that reads the context
        (of self-attention in a block without), None unless asked for.

        x may be (B K, L, E): K entries, one after the other, read one entry of the context, as partial outputs of a beam do.
        caches: of self- and of cross-attention."""
        if (context is None) != (self.cross is None):
            wanted, got = ("no context", "one") if self.cross is None else ("a context", "none")
            raise SoftlookupError(f"TransformerBlock: expected {wanted}, as cross={self.cross is not None}, got {got}")
        if context is not None and (x.ndim != 3 or not len(context) or len(x) % len(context)):
            got = f"{tuple(x.shape)} and {tuple(context.shape)}"
            raise SoftlookupError(f"TransformerBlock: expected x (B K, L, E) and a context (B, S, E), got {got}")
        own, across = (None, None) if caches is None else caches
        here = stats if self.cross is None else None
        added, seen = _parts(self.attention(self.attention_norm(x), mask=mask, cache=own, stats=here))
        x = x + self.drop(added)
        if self.cross is not None and self.cross_norm is not None and context is not None:
            asking = self.cross_norm(x).reshape(len(context), -1, x.shape[-1])
            added, seen = _parts(self.cross(asking, context, mask=context_mask, cache=across, stats=stats))
            x = x + self.drop(added.reshape(x.shape))
        return x + self.drop(self.feed_forward(self.feed_forward_norm(x))), seen

    def cross_weights(
        self, x: Tensor, context: Tensor, *, mask: MaskLike | None = None, context_mask: MaskLike | None = None
    ) -> Tensor:
        """(B, H, L, S) the weights with which x (B, L, E) reads the context (B, S, E), in evaluation mode without dropout."""
        if self.cross is None or self.cross_norm is None:
            raise UnsupportedError("cross_weights: expected a block with cross=True, got one without")
        added, _ = _parts(self.attention(self.attention_norm(x), mask=mask))
        return self.cross.weights(self.cross_norm(x + self.drop(added)), context, mask=context_mask)


def _parts(result: Tensor | tuple[Tensor, Stats]) -> tuple[Tensor, Stats | None]:
    return result if isinstance(result, tuple) else (result, None)
