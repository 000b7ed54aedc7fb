"""Attention in other geometries: points that are scored by their distance, and values averaged where they lie."""

from ..compiled import writable as _writable
from .attention import attend as attend
from .base import Manifold as Manifold
from .distance import Distance as Distance
from .euclidean import Euclidean as Euclidean
from .lorentz import Lorentz as Lorentz
from .poincare import Poincare as Poincare
from .product import Product as Product
from .sphere import Sphere as Sphere

_writable(Distance, "manifold", "power", "from_single")
_writable(Euclidean)
_writable(Product, "*parts")
for _kind in (Lorentz, Poincare, Sphere):
    _writable(_kind, "curvature")
