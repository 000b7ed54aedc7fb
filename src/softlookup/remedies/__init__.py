"""Remedies for attention that goes wrong in training: one small function each, with its source."""

from .entropy_penalty import entropy_penalty as entropy_penalty
from .qk_clip import qk_clip_ as qk_clip_
from .qk_norm import qk_norm_ as qk_norm_
from .rescore import soft_cap_ as soft_cap_
from .rescore import ssmax_ as ssmax_
from .sigma_reparam import sigma_reparam_ as sigma_reparam_

__all__ = ["entropy_penalty", "qk_clip_", "qk_norm_", "sigma_reparam_", "soft_cap_", "ssmax_"]
