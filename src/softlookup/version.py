"""The version of the package, which git's tags give when it is built."""

try:
    from ._version import version
except ImportError:  # never built: run from its source
    version = "0+unknown"

__version__ = version
