"""The geometry of heads, read from their weights: subspaces, symmetry, rank, copying, composition, redundancy.

No product of model size d x d is ever formed: everything is computed on factors of the heads' width, in float64.
"""

from .measures import MEANINGS as MEANINGS
from .measures import Measure as Measure
from .measures import measure as measure
from .measures import principal_cosines as principal_cosines
from .measures import singular_pairs as singular_pairs
from .relations import composition as composition
from .relations import compositions as compositions
from .relations import diversity as diversity
from .relations import likeness as likeness
from .weights import LayerWeights as LayerWeights

__all__ = [
    *(
        "LayerWeights",
        "MEANINGS",
        "Measure",
        "composition",
        "compositions",
        "diversity",
        "likeness",
        "measure",
        "principal_cosines",
    ),
    "singular_pairs",
]
