"""Weights and masks on disk: safetensors, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from pruneaug.errors import RunError
from pruneaug.files import atomic_write_bytes, file_digest

MODEL, MASKS = "model.safetensors", "masks.safetensors"


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors by name, with the strides and the sharing of memory undone. Raises StorageError."""
    atomic_write_bytes(
        path, save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    )


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Raises RunError if the file is missing or broken."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path} must hold the weights that this run stored, but does not ({error}); begin again in a new folder"
        ) from error
    return tensors


def weights_digest(path: Path) -> str:
    """SHA-256 of a file of weights, in hexadecimal. Raises RunError if it is missing."""
    try:
        return file_digest(path)
    except OSError as error:
        raise RunError(
            f"{path} must hold the weights that this run stored, but does not ({error}); begin again in a new folder"
        ) from error


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Put stored weights into the model. Raises RunError if they are of another network."""
    try:
        model.load_state_dict(load_tensors(path))
    except RuntimeError as error:
        raise RunError(
            f"{path} must hold the weights of this job's network, but does not ({error}); begin again in a new folder"
        ) from error
