"""FAISS's graph of neighbours (Malkov & Yashunin 2018): the best rows in logarithmic time, probably."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SoftlookupError
from .cells import library
from .store import State

LINKS = 32
SEARCHED = 128
"""Rows that a search keeps in mind, at least."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph over the rows at positions below `covered`; it holds their keys once more."""

    index: Any

    @property
    def covered(self) -> int:
        return self.index.ntotal

    @classmethod
    def build(cls, state: State, cells: int | None = None) -> Graph:
        if cells is not None:
            raise SoftlookupError("cells: expected with index('cells'), got a graph")
        faiss = library()
        index = faiss.IndexHNSWFlat(state.parts[0].keys.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        for part in state.parts:
            index.add(part.keys.detach().to("cpu", torch.float32).numpy())
        return cls(index)

    def to_bytes(self) -> bytes:
        return library().serialize_index(self.index).tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> Graph:
        return cls(library().deserialize_index(np.frombuffer(content, dtype=np.uint8)))

    def best(self, query: Tensor, alive: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        """Scores and positions (n, k) of rows that are probably those with the largest products with queries (n, d)."""
        faiss = library()
        said = faiss.SearchParametersHNSW(efSearch=max(SEARCHED, 2 * k))
        if alive is not None:
            bits = np.packbits(alive[: self.covered].cpu().numpy(), bitorder="little")
            said.sel = faiss.IDSelectorBitmap(bits)
        scores, positions = self.index.search(query.detach().to("cpu", torch.float32).numpy(), k, params=said)
        found = torch.from_numpy(positions).to(query.device)
        return torch.from_numpy(scores).to(query).masked_fill(found < 0, float("-inf")), found
