"""pandas, which nothing else here needs."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import SoftlookupError


def load_pandas() -> Any:
    """The module, or one line that says what `to_frame` needs."""
    try:
        return importlib.import_module("pandas")
    except ImportError as error:
        raise SoftlookupError("to_frame: expected pandas to be installed (pip install pandas)") from error
