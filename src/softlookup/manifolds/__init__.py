"""Attention in other geometries: points that are scored by their distance, and values averaged where they lie."""

from ..compiled import writable
from .attention import attend as attend
from .base import Manifold as Manifold
from .distance import Distance as Distance
from .euclidean import Euclidean as Euclidean
from .lorentz import Lorentz as Lorentz
from .poincare import Poincare as Poincare
from .product import Product as Product
from .sphere import Sphere as Sphere

writable(Distance, "manifold", "power", "from_single")
writable(Euclidean)
writable(Product, "*parts")
for _kind in (Lorentz, Poincare, Sphere):
    writable(_kind, "curvature")
