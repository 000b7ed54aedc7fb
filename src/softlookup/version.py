"""The version of the package, which git's tags give when it is built."""

try:
    from ._version import version as __version__
except ImportError:  # never built: run from its source
    __version__ = "0+unknown"
