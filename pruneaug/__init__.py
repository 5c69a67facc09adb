"""pruneaug: block-sparse networks that are measurably faster on your machine."""

__version__ = "0.1.0"
