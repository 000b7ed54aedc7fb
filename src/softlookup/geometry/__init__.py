"""The geometry of heads, read from their weights: subspaces, symmetry, rank, copying, composition, redundancy.

No product of model size d x d is ever formed: everything is computed on factors of the heads' width, in float64. Names load on
first use: what the measures are called is known without torch.
"""

from typing import TYPE_CHECKING

from ..lazy import loaded_on_use

if TYPE_CHECKING:
    from .meanings import MEANINGS as MEANINGS
    from .measures import Measure as Measure
    from .measures import measure as measure
    from .measures import principal_cosines as principal_cosines
    from .measures import singular_pairs as singular_pairs
    from .relations import composition as composition
    from .relations import compositions as compositions
    from .relations import diversity as diversity
    from .relations import joint_rank as joint_rank
    from .relations import likeness as likeness
    from .weights import LayerWeights as LayerWeights
    from .weights import spread_of as spread_of

_NAMES = {
    "meanings": "MEANINGS",
    "measures": "Measure measure principal_cosines singular_pairs",
    "relations": "composition compositions diversity joint_rank likeness",
    "weights": "LayerWeights spread_of",
}
__all__, __getattr__ = loaded_on_use(__name__, _NAMES)  # noqa: PLE0605
