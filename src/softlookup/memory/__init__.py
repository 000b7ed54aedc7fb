"""Attention as a database: keys and values as a store that is asked softly; and as an associative memory."""

from .associative import Settled as Settled
from .associative import separation as separation
from .associative import settle as settle
from .table import Found as Found
from .table import SoftTable as SoftTable

__all__ = ["Found", "Settled", "SoftTable", "separation", "settle"]
