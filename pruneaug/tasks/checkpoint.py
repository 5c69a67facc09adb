"""Trained weights from a file into a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pruneaug.errors import TaskError

_SHOWN = 3


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a .safetensors file, a folder with model.safetensors, or a torch state_dict (no pickled code is run).

    Raises TaskError if the file is missing or broken, or its names or shapes are not the network's.
    """
    state = _read_state(path / "model.safetensors" if path.is_dir() else path)
    expected = model.state_dict(keep_vars=True)
    wrong = [
        f"{name} is {list(state[name].shape)} and must be {list(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    loaded = {id(value) for name, value in expected.items() if name in state}
    missing = [name for name, value in expected.items() if name not in state and id(value) not in loaded]
    surplus = [name for name in state if name not in expected]
    for rule, names in (("shapes differ", wrong), ("missing", missing), ("unknown to the network", surplus)):
        if names:
            raise TaskError(
                f"the checkpoint's weights must be those of the network, but in {path} {_some(names)} ({rule}); "
                "check `model`, its `options` and `checkpoint`"
            )
    model.load_state_dict(state, strict=False)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise TaskError(f"`checkpoint` must be a file, but {path} is none; check the path")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except Exception as error:  # broken bytes make torch's unpickler fail in any way
        raise TaskError(
            f"`checkpoint` must be a .safetensors file or a torch state_dict, but {path} cannot be read: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; save model.state_dict()"
        ) from error
    return content


def _read_torch(path: Path) -> dict[str, Tensor]:
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("it holds no state_dict")
    # torch.nn.DataParallel puts "module." before every name
    wrapped = bool(content) and all(str(name).startswith("module.") for name in content)
    return {str(name).removeprefix("module.") if wrapped else str(name): value for name, value in content.items()}


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
