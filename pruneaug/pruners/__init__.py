"""Pruners score a network's weights and say which to remove; one file a method."""

from pruneaug.registry import Registry

PRUNERS = Registry("pruners", {"magnitude": "pruneaug.pruners.magnitude:Magnitude"})
