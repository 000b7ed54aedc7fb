"""What computed the numbers: without it two reports cannot be compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ..version import __version__


@dataclass(frozen=True)
class Provenance:
    """dtype and device: of the model's parameters, all of them where they differ ("bfloat16, float32"); versions."""

    dtype: str
    device: str
    softlookup: str
    torch: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def provenance_of(model: nn.Module) -> Provenance:
    parameters = list(model.parameters())
    dtypes = _joined(str(p.dtype).removeprefix("torch.") for p in parameters if p.is_floating_point())
    return Provenance(dtypes, _joined(str(p.device) for p in parameters), __version__, torch.__version__)


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names))) or "unknown"
