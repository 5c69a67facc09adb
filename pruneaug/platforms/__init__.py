"""Platforms: what machine this is, whether a latency table is of it, and whether it is quiet enough to measure."""

from pruneaug.platforms.detect import detect
from pruneaug.platforms.load import busy
from pruneaug.platforms.platform import Platform
from pruneaug.platforms.stored import (
    claim_folder,
    match_platform,
    merge_folder,
    open_store,
    read_platform,
    write_platform,
)

__all__ = [
    "Platform",
    "busy",
    "claim_folder",
    "detect",
    "match_platform",
    "merge_folder",
    "open_store",
    "read_platform",
    "write_platform",
]
