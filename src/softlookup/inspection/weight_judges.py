"""What is worth saying about a head's weights: the judges of the findings that need no text.

`THRESHOLDS` has a reason for each value; `docs/findings.md` quotes them. What is judged is `Head.weights`: the measures of
`softlookup.geometry`, the head's `width`, and `likeness`, its largest cosine to another head of its layer.
"""

from __future__ import annotations

from .heads import Head

THRESHOLDS: dict[str, float] = {
    # Three quarters of |W_Q W_K^T|^2 are symmetric; random weights have half, within 1/d.
    "symmetric": 0.75,
    # Nine tenths of the eigenvalues' size point the same way: what is read comes out again.
    "copying": 0.9,
    # An eighth of the head's width asks all the questions.
    "rank_starved": 1 / 8,
    # Cosine of two heads' W_Q W_K^T; random ones have 0, within 1/d.
    "duplicate": 0.5,
}


def symmetric(head: Head) -> tuple[float, float] | None:
    """|M + M^T|^2 / 4 |M|^2 of M = W_Q W_K^T far above one half."""
    return _above(head, "symmetric_share", THRESHOLDS["symmetric"])


def copying(head: Head) -> tuple[float, float] | None:
    """The eigenvalues of W_V W_O nearly all positive."""
    return _above(head, "copying", THRESHOLDS["copying"])


def rank_starved(head: Head) -> tuple[float, float] | None:
    """Effective rank of W_Q W_K^T far below the head's width."""
    if head.weights is None:
        return None
    value, threshold = head.weights["rank"], THRESHOLDS["rank_starved"] * head.weights["width"]
    return (value, threshold) if value < threshold else None


def duplicate(head: Head) -> tuple[float, float] | None:
    """W_Q W_K^T nearly that of another head."""
    return _above(head, "likeness", THRESHOLDS["duplicate"])


def _above(head: Head, name: str, threshold: float) -> tuple[float, float] | None:
    value = None if head.weights is None else head.weights[name]
    return (value, threshold) if value is not None and value > threshold else None
