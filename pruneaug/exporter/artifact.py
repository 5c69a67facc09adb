"""The artifact of a checkpoint: its network compiled for the platform of the export, one file.

It is machine code, so it is loaded only where a user asks for it. pruneaug.json holds its SHA-256, which is written
when the file is whole: whatever an interrupted export left is no artifact.
"""

from __future__ import annotations

from pathlib import Path

from pruneaug.errors import CheckpointError
from pruneaug.exporter.checkpoint import Checkpoint, add_facts
from pruneaug.files import file_digest, storage_errors
from pruneaug.platforms.platform import Platform

_DIGEST = "artifact_sha256"
# What compiled code depends on. PyTorch may be another, and what is for a GPU says itself what it needs.
_CPU_PACKAGES, _GPU_PACKAGES = ("apache-tvm", "pruneaug"), ("pruneaug",)


def artifact_path(folder: Path, platform: Platform) -> Path:
    """Where the artifact for a platform lies in a checkpoint's folder: a shared library, or a network for a GPU."""
    return folder / f"artifact-{platform.name}" / ("network.safetensors" if platform.is_gpu else "network.so")


def add_artifact(folder: Path, platform: Platform) -> Path | None:
    """Make the file at `artifact_path` part of the checkpoint; None if there is none. Raises StorageError."""
    path = artifact_path(folder, platform)
    if not path.is_file():
        return None
    with storage_errors(path):
        digest = file_digest(path)
    add_facts(folder, {_DIGEST: digest})
    return path


def find_artifact(checkpoint: Checkpoint, here: Platform) -> Path:
    """The artifact of a checkpoint, if it can run `here`.

    Raises CheckpointError if there is none, if it is not the exported one, or if it was compiled for another platform
    or by other versions: it says which.
    """
    there = checkpoint.platform
    path = artifact_path(checkpoint.folder, there)
    way_out = "load the checkpoint without `artifact=True`, which compiles it here, or export the run again"
    digest = checkpoint.info.get(_DIGEST)
    if digest is None:
        raise CheckpointError(f"{checkpoint.folder} holds no compiled network; {way_out}")
    differences = (*here.hardware_differences(there), *_version_differences(here, there))
    if differences:
        raise CheckpointError(
            f"{path} runs only on the platform and versions that it was compiled with, but they differ in "
            f"{'; '.join(differences)}; {way_out}"
        )
    try:
        found = file_digest(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); {way_out}") from error
    if found != digest:
        raise CheckpointError(f"{path} must be the file that was exported, but its SHA-256 differs; {way_out}")
    return path


def _version_differences(here: Platform, there: Platform) -> tuple[str, ...]:
    packages = _GPU_PACKAGES if there.is_gpu else _CPU_PACKAGES
    return tuple(line for line in here.version_differences(there) if line.partition(":")[0] in packages)
