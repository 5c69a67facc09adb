"""What a network computes on its way, and where it is worth comparing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from pruneaug.errors import SpecError
from pruneaug.registry import did_you_mean


def feature_loss(student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean over the layers of |student - teacher|^2 / |teacher|^2: 0 is equal, 1 is as far off as all zeros.

    Without the division the layers with the largest activations would decide alone.
    """
    errors = []
    for name, found in student.items():
        wanted = teacher[name].float()
        errors.append((found.float() - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12))
    return torch.stack(errors).mean()


@contextmanager
def recorded_features(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """A dictionary that holds, after each forward pass, what these modules gave last: their first tensor each."""
    features: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is None or not tensor.is_floating_point():
                raise SpecError(
                    f"`feature_layers` must give tensors of numbers, but {name!r} gives {type(output).__name__}"
                )
            features[name] = tensor

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def feature_layers(model: nn.Module, inputs: tuple[torch.Tensor, ...], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The modules whose outputs are compared: those that match `wanted` (wildcards), or the ends of the stages.

    Stages are found in the network's structure, lists of like blocks (`layer1` ... of a ResNet, the blocks of a
    transformer); where there are none, a stage ends where the images become smaller.

    Raises SpecError if nothing is found.
    """
    if wanted is None:
        names = _stages(model) or _resolutions(model, inputs)
        if not names:
            raise SpecError("no stages are to be seen in this network; name layers to compare in `feature_layers`")
        return names
    known = [name for name, _ in model.named_modules() if name]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise SpecError(
                f"`feature_layers` must match modules of the network, but {pattern!r} matches none"
                f"{did_you_mean(pattern, known)}"
            )
    return tuple(name for name in known if any(fnmatchcase(name, pattern) for pattern in wanted))


def first_tensor(output: Any) -> torch.Tensor | None:
    """The first tensor in what a module gave: itself, or in a tuple, list or mapping (transformers' outputs)."""
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((found for found in map(first_tensor, values) if found is not None), None)


def _stages(model: nn.Module) -> tuple[str, ...]:
    """The last block of every outermost list of like blocks; of every block, if there is only one list."""
    lists: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in lists)
        if is_inside or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        children = list(module.named_children())
        if len(children) > 1 and len({type(child) for _, child in children}) == 1 and any(children[0][1].children()):
            lists[name] = [f"{name}.{child}" if name else child for child, _ in children]
            if not name:
                break
    if len(lists) == 1:
        return tuple(next(iter(lists.values())))
    return tuple(blocks[-1] for blocks in lists.values())


def _resolutions(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[str, ...]:
    """The last module to give images of each size above 1 x 1, in the order in which they run."""
    last: dict[tuple[int, ...], str] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.dim() == 4 and output.shape[-2:].numel() > 1:
                last[tuple(output.shape[-2:])] = name

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training.items():
            module.training = flag
    return tuple(last.values())
