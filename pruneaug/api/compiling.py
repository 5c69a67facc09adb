"""The verb `compile`: a PyTorch network, pruned or not, as machine code for this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruneaug.errors import InputError
from pruneaug.network.layers import Network, find_layers, get_weight
from pruneaug.platforms import detect
from pruneaug.runtime.graph import export_program

if TYPE_CHECKING:
    from pruneaug.runtime.network import CompiledNetwork

_SKIPPED_FROM = 0.25  # share of zeros from which skipping them beats computing with them


def compile(
    module: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    masks: Mapping[str, torch.Tensor] | None = None,
    batch_sizes: Sequence[int] | None = None,
    threads: int | None = None,
) -> CompiledNetwork:
    """A callable on inputs of the shapes of `example_inputs`: PyTorch tensors, or NumPy arrays.

    `masks` (layer name -> bool, in the weight's layout) says which weights are removed; without them a layer's zeros
    are, if they are at least a quarter of its weights. With `batch_sizes` it takes inputs of each of these numbers of
    examples, which every input has in its first dimension. `threads`: one per core if none.

    `save(path)` of the result writes one shared library, which `pruneaug.load` reads, and C++ without PyTorch. Its
    function is "main", or of several batch sizes "main_<size>" each.
    Raises InputError, NetworkError for a network that does not run, CompileError for one that torch.export rejects.
    """
    # Only what compiles imports the compiler: it replaces Python's excepthook and takes seconds.
    from pruneaug.kernels.build import CpuTarget
    from pruneaug.runtime.compiler import compile_programs

    platform = detect(threads)
    batches = [example_inputs] if batch_sizes is None else [_batch(example_inputs, size) for size in batch_sizes]
    if not batches:
        raise InputError("`batch_sizes` must hold at least one number of examples, but is empty; leave it out")
    if batch_sizes is None or len(set(batch_sizes)) == 1:
        programs = {"main": export_program(module, batches[0])}
    else:
        programs = {f"main_{size}": export_program(module, inputs) for size, inputs in zip(batch_sizes, batches)}
    network = find_layers(module, batches[0])
    removed = zeros(module, network) if masks is None else masks
    return compile_programs(programs, network, removed, {}, CpuTarget(**platform.kernel_target()))


def zeros(module: nn.Module, network: Network) -> dict[str, torch.Tensor]:
    """Masks of the layers that have enough zeros to skip them: bool, in the weights' layout, true where a weight is."""
    masks = {}
    for layer in network.layers:
        keep = get_weight(module, layer.name).detach() != 0
        if float(keep.float().mean()) <= 1 - _SKIPPED_FROM:
            masks[layer.name] = keep
    return masks


def _batch(inputs: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """Inputs of `size` examples with the values of the given ones."""
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    if size < 1 or len({x.shape[:1] for x in tensors}) != 1 or any(x.dim() == 0 or len(x) == 0 for x in tensors):
        raise InputError(
            f"`batch_sizes` need inputs that all have the examples in their first dimension, and sizes of at least 1, "
            f"but got size {size} and inputs {[list(x.shape) for x in tensors]}; compile each batch by itself"
        )
    return tuple(x[torch.arange(size) % len(x)].contiguous() if isinstance(x, torch.Tensor) else x for x in inputs)
