"""Tensors and facts in one file: safetensors, whose metadata holds the facts as JSON. One file, so that they never disagree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import SoftlookupError
from ..files import write

_KEY = "softlookup"


def save(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write beside, then rename."""
    from safetensors.torch import save as to_bytes

    write(path, to_bytes({name: x.detach().contiguous() for name, x in tensors.items()}, {_KEY: json.dumps(facts)}))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SoftlookupError(f"{path}: expected a file that softlookup train wrote, cannot read it: {reason}") from None
