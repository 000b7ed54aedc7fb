"""Figures: an experiment draws on axes of matplotlib, this makes SVG of them."""

from __future__ import annotations

import hashlib
import io
from typing import Any

from ..errors import SoftlookupError
from .extra import extra
from .run import Result

WITH, WITHOUT, THEORY = "#1f7a8c", "#c8480a", "#59626b"
"""Colours of what is measured, of the control, and of what theory says."""


def svg(result: Result, transparent: bool = True) -> str:
    """The figure of a claim, 7.2 by 3.4 inches, the same bytes for the same result."""
    with extra():
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    with rc_context({"svg.hashsalt": result.claim.name, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes: Any = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        try:
            with extra():
                result.claim.experiment.draw(axes, result.found, result.control)
        except (KeyError, IndexError, TypeError):
            name = result.claim.name
            raise SoftlookupError(f"{name}: expected a result from which this version can draw, got another") from None
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=transparent)
    return "<svg" + file.getvalue().partition("<svg")[2]


def of_its_own(result: Result) -> str:
    """The figure as a file on white, which begins with what it was drawn from."""
    return f"<!-- {origin(result)} -->\n{svg(result, transparent=False)}"


def origin(result: Result) -> str:
    """The command that measured a claim, and the checksum of what it found."""
    return f"{result.command}, sha256 {hashlib.sha256(result.to_json().encode()).hexdigest()}"


def halves(axes: Any) -> tuple[Any, Any]:
    """Two axes side by side in the place of one."""
    axes.axis("off")
    both = axes.inset_axes((0, 0, 0.43, 1)), axes.inset_axes((0.57, 0, 0.43, 1))
    for half in both:
        half.spines[["top", "right"]].set_visible(False)
    return both
