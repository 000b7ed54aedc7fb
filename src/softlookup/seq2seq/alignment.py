"""How a recurrent decoder asks the encoder's states: any score, with keys that are projected once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import SoftlookupError
from ..masks import Mask
from ..nn.additive import AdditiveAttention, in_one_head
from ..running import StatsLike
from ..scores import Dot, ScaledDot, Score
from ..summary import Stats, across


class Alignment(nn.Module):
    """Queries (B, L, E) ask states (B, S, Ek).

    Args:
        score: "additive" (Bahdanau et al. 2015; Luong's "concat"), "bilinear" (Luong's "general", q W k), "dot" or "scaled"
            (both need E = Ek), or any `Score`; parameters among its tensors are trained.
        width: A, of the additive score; E by default.
    """

    def __init__(self, query_width: int, state_width: int, score: str | Score = "additive", width: int | None = None):
        super().__init__()
        self.additive = AdditiveAttention(query_width, state_width, width or query_width) if score == "additive" else None
        self.bilinear = nn.Linear(state_width, query_width, bias=False) if score == "bilinear" else None
        if score in ("dot", "scaled") and query_width != state_width:
            raise SoftlookupError(
                f"score: expected decoder and encoder states of one width for {score!r}, got {query_width} and {state_width}"
            )
        if isinstance(score, Score):
            self.score = score
            self.learned = nn.ParameterList(x for x in score.tensors() if isinstance(x, nn.Parameter))
        elif score in ("additive", "bilinear", "dot", "scaled"):
            self.score = ScaledDot() if score == "scaled" else Dot()
        else:
            raise SoftlookupError(f"score: expected additive, bilinear, dot, scaled or a Score, got {score!r}")

    def keys(self, states: Tensor) -> Tensor:
        """(B, S, Ek) -> what is asked, (B, S, A)."""
        if self.additive is not None:
            return self.additive.keys(states)
        return states if self.bilinear is None else self.bilinear(states)

    def forward(
        self, query: Tensor, keys: Tensor, value: Tensor, *, mask: Mask | None = None, stats: StatsLike | None = None
    ) -> tuple[Tensor, Stats | None]:
        """(B, L, E), (B, S, A) from `keys`, (B, S, Ev) -> (B, L, Ev) and the statistics (B, 1, L), None unless asked for."""
        stats = across(stats) or None
        if self.additive is not None:
            result = self.additive.ask(query, keys, value, mask=mask, stats=stats)
        else:
            result = in_one_head(self.score, query, keys, value, mask=mask, stats=stats)
        return result if isinstance(result, tuple) else (result, None)

    def weights(self, query: Tensor, keys: Tensor, mask: Mask | None) -> Tensor:
        """(B, L, S) the distribution itself: the average of rows of the identity."""
        eye = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device).expand(len(keys), -1, -1)
        return self(query, keys, eye, mask=mask)[0]
