"""What each measure is called, and says, where it is shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Meaning:
    """How a measure is shown: its title, and one sentence."""

    title: str
    sentence: str


MEANINGS = {
    "overlap": Meaning(
        "query-key overlap",
        "Share of the directions that queries read which keys read too: 1, the same subspace; else d_k / d.",
    ),
    "weighted_overlap": Meaning(
        "weighted overlap",
        "The same, each direction counted by how strongly both projections read it: high for heads that match like with like.",
    ),
    "symmetric_share": Meaning(
        "symmetric share",
        "Share of W_Q W_K^T that scores a pair alike in both orders: 1 attends to what is similar, 0 to what is complementary.",
    ),
    "rank": Meaning(
        "effective rank",
        "How many independent questions the head asks: participation ratio of the singular values of W_Q W_K^T.",
    ),
    "entropy_rank": Meaning("entropy rank", "The same by entropy, which counts weak directions more."),
    "query_value_overlap": Meaning(
        "query-value overlap",
        "Share of the value's directions that queries read as well: low where relevance is apart from content.",
    ),
    "key_value_overlap": Meaning(
        "key-value overlap",
        "Share of the value's directions that keys read as well: high where what is matched is what is copied.",
    ),
    "query_read": Meaning(
        "queries read", "Share of the inputs' variance that queries read, the strongest direction counted whole."
    ),
    "key_read": Meaning("keys read", "Share of the inputs' variance that keys read, the strongest direction counted whole."),
    "value_read": Meaning(
        "values read", "Share of the inputs' variance that values read, the strongest direction counted whole."
    ),
    "write": Meaning("output writes", "Share of model space that the head writes to, the strongest direction counted whole."),
    "copying": Meaning(
        "copying",
        "Sum of the eigenvalues of W_V W_O over the sum of their sizes: 1 returns what it reads, -1 its opposite.",
    ),
    "output_rank": Meaning(
        "output rank", "In how many independent directions the head moves the stream: participation ratio of W_V W_O."
    ),
}
