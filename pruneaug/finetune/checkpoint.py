"""A training's whole state on disk, so that it goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from pruneaug.files import atomic_write_bytes

_log = logging.getLogger(__name__)

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class TrainState:
    """What a training needs to go on after `step` steps; all tensors on the CPU.

    model: parameters and buffers. optimizer: `<number of the parameter>/<name>` -> tensor. pruner: see Pruned.state.
    random: states of PyTorch's generators, `cpu`, `epoch` (when the epoch began), `cuda`.
    epoch, taken: see EndlessBatches. loss: the last one.
    """

    step: int
    epoch: int
    taken: int
    loss: float
    model: Tensors
    optimizer: Tensors
    masks: Tensors
    pruner: Tensors
    random: Tensors


_GROUPS = ("model", "optimizer", "masks", "pruner", "random")


def save_state(path: Path, state: TrainState, training: str) -> None:
    """Write it whole or not at all; `training` says which training it belongs to. Raises StorageError."""
    tensors = {
        # Strides and sharing of memory are undone, which the format refuses.
        f"{group}/{name}": tensor.detach().cpu().contiguous().clone()
        for group in _GROUPS
        for name, tensor in getattr(state, group).items()
    }
    numbers = {name: getattr(state, name) for name in ("step", "epoch", "taken", "loss")}
    atomic_write_bytes(path, save(tensors, {"training": training, "numbers": json.dumps(numbers)}))


def load_state(path: Path, training: str) -> TrainState | None:
    """The state that `save_state` wrote for this training; None, with a warning, if another one did or it is broken."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError) as error:
        _log.warning("%s is no whole checkpoint (%s); the training begins anew", path, error)
        return None
    if facts.get("training") != training:
        _log.warning("%s is the checkpoint of another training; this one begins anew", path)
        return None
    groups: dict[str, dict[str, torch.Tensor]] = {group: {} for group in _GROUPS}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups[group][name] = tensor
    numbers = json.loads(facts["numbers"])
    return TrainState(numbers["step"], numbers["epoch"], numbers["taken"], numbers["loss"], **groups)


def training_digest(facts: Mapping[str, Any], *begins_with: Tensors) -> str:
    """SHA-256 of what makes a training what it is: JSON-like facts, and the weights and masks it begins with."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for tensors in begins_with:
        for name in sorted(tensors):
            digest.update(name.encode())
            values = tensors[name].detach().cpu().contiguous().flatten()
            digest.update(values.view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, those that a state dict leaves out included; each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def restore_model(model: nn.Module, stored: Tensors) -> None:
    for name, tensor in model_tensors(model).items():
        tensor.copy_(stored[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What the optimizer remembers of each parameter."""
    return {
        f"{number}/{name}": value
        for number, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, stored: Tensors) -> None:
    parameters = list(_parameters(optimizer))
    for key, value in stored.items():
        number, _, name = key.partition("/")
        parameter = parameters[int(number)]
        kept = value.to(parameter.device) if value.dim() else value  # a count of steps stays where it is
        if kept.shape == parameter.shape:
            kept = torch.empty_like(parameter).copy_(kept)  # in the parameter's own memory order
        optimizer.state[parameter][name] = kept


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
