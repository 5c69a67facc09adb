"""Decoded data kept on disk, so that a second run starts at once."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pruneaug.errors import StorageError
from pruneaug.files import atomic_write_bytes

_VERSION = 1  # raise it when the same files would decode to other tensors
_LOG = logging.getLogger(__name__)


def cache_folder(chosen: str | None) -> Path:
    """The folder that the user chose, or pruneaug's own in $XDG_CACHE_HOME (~/.cache)."""
    if chosen is not None:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "pruneaug"


def cached_tensors(
    folder: Path, files: Iterable[Path], options: Mapping[str, object], decode: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `decode` gives for these files and options: read from the folder if it is there, else decoded and kept.

    A file that changed (its size or its time of change) is decoded anew. A folder that cannot be written, or a broken
    cache file, costs time and a warning only.
    """
    identity = repr((_VERSION, [_identity(file) for file in files], sorted(options.items())))
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            kept: dict[str, Tensor] = load_file(path)
            return kept
        except (SafetensorError, OSError) as error:
            _LOG.warning("the cache file %s is broken (%s) and is made anew", path, error)
    tensors = decode()
    try:
        atomic_write_bytes(path, save(tensors))
    except StorageError as error:
        _LOG.warning("decoded data is not kept for the next run: %s", error)
    return tensors


def _identity(file: Path) -> tuple[str, int, int]:
    status = file.stat()
    return str(file.resolve()), status.st_size, status.st_mtime_ns
