"""The two exceptions of the library: what was expected, what was got, in one line."""


class SoftlookupError(ValueError):
    """Input that cannot be used as it is. The message is one line: what was wrong, what was expected, what was got."""


class UnsupportedError(SoftlookupError, NotImplementedError):
    """A request that is meaningful but that nothing here can serve."""
