"""Attention to some of the pairs: patterns, and blocks chosen by what queries and keys hold. All of them are masks."""

from .blocks import Blocks as Blocks
from .bounds import Found as Found
from .bounds import attend as attend
from .bounds import missed as missed
from .bounds import top_blocks as top_blocks
from .boxes import Boxes as Boxes
from .patterns import big_bird as big_bird
from .patterns import strided as strided
from .routing import k_means as k_means
from .routing import route as route
