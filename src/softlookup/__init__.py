"""softlookup: attention that you can see through.

`attend` gives the output of attention *and* what its distribution looked like, per query, in the same pass, with gradients.

Names load on first use, so that the command line answers at once; the operator needs torch and numpy only.
"""

from typing import TYPE_CHECKING

from .lazy import loaded_on_use
from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import geometry as geometry
    from . import integrations as integrations
    from . import linear as linear
    from . import manifolds as manifolds
    from . import memory as memory
    from . import nn as nn
    from . import remedies as remedies
    from . import seq2seq as seq2seq
    from . import smoothing as smoothing
    from . import sparse as sparse
    from . import training as training
    from .biases import ALiBi as ALiBi
    from .biases import RelativeTable as RelativeTable
    from .drop_in import scaled_dot_product_attention as scaled_dot_product_attention
    from .errors import SoftlookupError as SoftlookupError
    from .errors import UnsupportedError as UnsupportedError
    from .inspection import Inspection as Inspection
    from .inspection import look as look
    from .integrations.any_model import watch as watch
    from .linear import error_against_exact as error_against_exact
    from .masks import Causal as Causal
    from .masks import Dilated as Dilated
    from .masks import Documents as Documents
    from .masks import Lengths as Lengths
    from .masks import Mask as Mask
    from .masks import MaskFunction as MaskFunction
    from .masks import Padding as Padding
    from .masks import Prefix as Prefix
    from .masks import Window as Window
    from .normalizers import Entmax as Entmax
    from .normalizers import Hard as Hard
    from .normalizers import Normalizer as Normalizer
    from .normalizers import Sigmoid as Sigmoid
    from .normalizers import Softmax as Softmax
    from .normalizers import Sparsemax as Sparsemax
    from .normalizers import Threshold as Threshold
    from .normalizers import TopK as TopK
    from .operator import attend as attend
    from .operator import divergence as divergence
    from .operator import explain as explain
    from .operator import lookup as lookup
    from .operator import merge as merge
    from .operator import received as received
    from .running import Plan as Plan
    from .running import engine as engine
    from .scores import Additive as Additive
    from .scores import Bilinear as Bilinear
    from .scores import Cosine as Cosine
    from .scores import Dot as Dot
    from .scores import Gaussian as Gaussian
    from .scores import Hyperbolic as Hyperbolic
    from .scores import Mahalanobis as Mahalanobis
    from .scores import Product as Product
    from .scores import ScaledDot as ScaledDot
    from .scores import Score as Score
    from .summary import CHEAP as CHEAP
    from .summary import Stats as Stats
    from .summary import Summary as Summary

_NAMES = {
    "biases": "ALiBi RelativeTable",
    "drop_in": "scaled_dot_product_attention",
    "errors": "SoftlookupError UnsupportedError",
    "inspection": "Inspection look",
    "integrations.any_model": "watch",
    "linear": "error_against_exact",
    "masks": "Causal Dilated Documents Lengths Mask MaskFunction Padding Prefix Window",
    "normalizers": "Entmax Hard Normalizer Sigmoid Softmax Sparsemax Threshold TopK",
    "operator": "attend divergence explain lookup merge received",
    "running": "Plan engine",
    "scores": "Additive Bilinear Cosine Dot Gaussian Hyperbolic Mahalanobis Product ScaledDot Score",
    "summary": "CHEAP Stats Summary",
}
_MODULES = set("engines geometry linear manifolds memory nn remedies seq2seq smoothing sparse training watching".split())
_MODULES |= {module.split(".")[0] for module in _NAMES}
__all__, __getattr__ = loaded_on_use(__name__, _NAMES, _MODULES)  # noqa: PLE0605


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
