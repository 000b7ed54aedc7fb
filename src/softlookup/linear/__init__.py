"""Attention without all pairs: features whose products stand for softmax's, and recurrences. `sl.attend` stays exact."""

from .attention import State as State
from .attention import advance as advance
from .attention import attend as attend
from .delta import recur as recur
from .error import Error as Error
from .error import error_against_exact as error_against_exact
from .features import CosFormer as CosFormer
from .features import EluPlusOne as EluPlusOne
from .features import FeatureMap as FeatureMap
from .features import Hedgehog as Hedgehog
from .features import RandomFeatures as RandomFeatures
from .features import ReLU as ReLU
from .landmarks import nystrom as nystrom
from .mixtures import linformer as linformer
from .modules import GatedDelta as GatedDelta
from .modules import LinearAttention as LinearAttention
