"""The compiled kernels of csrc/ (C ABI, csrc/softlookup.h) through ctypes: structs mirrored field by field, and loading."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from torch import Tensor

from ..summary import DERIVED
from . import __path__ as _folders

QUERIES, KEYS = 192, 96
"""Queries per panel and keys per block: SL_QUERIES and SL_KEYS of csrc/softlookup.h."""

_i64, _pointer = ctypes.c_int64, ctypes.c_void_p


class Strided(ctypes.Structure):
    """A (B, H, N, W) tensor with unit stride in its last dimension."""

    _fields_ = [("data", _pointer), ("batch", _i64), ("head", _i64), ("row", _i64)]

    @classmethod
    def of(cls, x: Tensor) -> Strided:
        return cls(x.data_ptr(), *x.stride()[:3])


class Blocks(ctypes.Structure):
    _fields_ = [(name, _pointer) for name in ("pattern", "start", "block", "bits_of", "bits")]


IDENTITY, SOFTCAP, LORENTZ = range(3)
"""Maps of products: sl_map."""


class Dropout(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_uint32) for name in ("on", "threshold", "seed")), ("scale", ctypes.c_float)]


class Lookup(ctypes.Structure):
    _fields_ = [
        *((name, _i64) for name in ("batch", "heads", "kv_heads", "queries", "keys", "width", "value_width")),
        *((name, Strided) for name in ("query", "key", "value")),
        ("scale", ctypes.c_float),
        ("additive", _pointer),
        ("additive_head", _i64),
        ("key_bias", _pointer),
        ("key_bias_batch", _i64),
        ("key_bias_head", _i64),
        ("map", ctypes.c_int32),
        ("softcap", ctypes.c_float),
        ("relative", _pointer),
        ("relative_head", _i64),
        ("dense", _pointer),
        *((name, _i64) for name in ("dense_batch", "dense_head", "dense_row", "dense_column")),
        ("inverse_temperature", ctypes.c_float),
        ("inverse_temperatures", _pointer),
        ("dropout", Dropout),
        ("blocks", Blocks),
        ("seen", _pointer),
        *((name, _i64) for name in ("seen_batch", "seen_head", "seen_row", "query_position", "key_position")),
        ("query_positions", _pointer),
        ("first_sink", _pointer),
        ("sinks", _i64),
        ("statistics", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("rule", ctypes.c_int32),
    ]


SOFTMAX, ENTMAX15, SPARSEMAX = range(3)
"""How scores become weights: sl_rule."""

SUMS = (
    *("average", "slopes", "total", "max_logit", "offset", "visible", "logsumexp", "max_weight", "log_weight", "square"),
    *("first", "spread", "logit_mean", "logit_var", "jacobian_trace", "sink_mass", "distance", "argmax", "support"),
)


class Outcome(ctypes.Structure):
    _fields_ = [(name, _pointer) for name in SUMS]


READINGS = (
    *("average", "max_logit", "log_z", "excess", "entropy", "expected_logit_var", "collision"),
    *("logit_mean", "logit_var", "sink_mass", "distance", "visible", "argmax"),
)


class Summary(ctypes.Structure):
    _fields_ = [(name, _pointer) for name in (*READINGS[:-2], *DERIVED, *READINGS[-2:])]


COEFFICIENTS = ("max_logit", "inverse_z", "c0", "c1", "c2", "c3", "c4", "c5", "sink", "distance")


class Upstream(ctypes.Structure):
    _fields_ = [("average", Strided), *((name, _pointer) for name in COEFFICIENTS)]


class Gradients(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("query", "key", "value", "key_bias", "relative", "additive", "temperature", "dense")),
        *((name, _i64) for name in ("dense_batch", "dense_head", "dense_row", "dense_column", "parts")),
    ]


class Fold(ctypes.Structure):
    _fields_ = [
        ("scores", _pointer),
        *((name, _i64) for name in ("rows", "columns", "entry_rows")),
        ("seen", _pointer),
        *((name, _i64) for name in ("seen_entry", "seen_row", "position")),
        ("query_position", _pointer),
        ("queries", _i64),
        ("first_sink", _pointer),
        ("sinks", _i64),
        ("statistics", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        *((x, _pointer) for x in "m z mean var c distance sink count flat_mean flat_var fade best".split()),
    ]


class Sequence(ctypes.Structure):
    _fields_ = [
        *((name, _i64) for name in ("batch", "heads", "steps", "width", "value_width")),
        *((name, Strided) for name in ("query", "key", "value")),
        ("state", _pointer),
        ("out", _pointer),
        ("threads", ctypes.c_int32),
    ]


@cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why there is none; loaded once."""
    found = [path for folder in _folders if (path := Path(folder, "_native.so")).exists()]
    if not found:
        return None, "not built (no C++ compiler when softlookup was installed?)"
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return None, f"does not load: {error}"
    library.sl_instructions.restype = ctypes.c_char_p
    library.sl_forward.restype = ctypes.c_int32
    library.sl_forward.argtypes = [ctypes.POINTER(Lookup), ctypes.POINTER(Summary)]
    library.sl_decode.restype, library.sl_decode.argtypes = library.sl_forward.restype, library.sl_forward.argtypes
    library.sl_entmax.restype = ctypes.c_int32
    library.sl_entmax.argtypes = [ctypes.POINTER(Lookup), ctypes.POINTER(Outcome)]
    library.sl_backward.restype = ctypes.c_int32
    library.sl_backward.argtypes = [ctypes.POINTER(Lookup), ctypes.POINTER(Upstream), ctypes.POINTER(Gradients)]
    few = library.sl_backward_few
    few.restype, few.argtypes = library.sl_backward.restype, library.sl_backward.argtypes
    library.sl_received.restype = ctypes.c_int32
    library.sl_received.argtypes = [ctypes.POINTER(Lookup), _pointer, _pointer, _pointer]
    library.sl_recur.restype, library.sl_recur.argtypes = ctypes.c_int32, [ctypes.POINTER(Sequence)]
    library.sl_fold_block.restype = None
    library.sl_fold_block.argtypes = [ctypes.POINTER(Fold)]
    return library, library.sl_instructions().decode()
