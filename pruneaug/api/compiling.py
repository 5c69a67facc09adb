"""The verb `compile`: a PyTorch network, pruned or not, as machine code for this machine."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from pruneaug.errors import InputError
from pruneaug.network.layers import Network, get_weight, list_layers
from pruneaug.platforms import detect
from pruneaug.runtime.graph import check_module, export_program

if TYPE_CHECKING:
    from pruneaug.runtime.network import CompiledNetwork

_SKIPPED_FROM = 0.25  # share of zeros from which skipping them beats computing with them


def compile(
    module: nn.Module,
    example_inputs: torch.Tensor | tuple[Any, ...],
    *,
    masks: Mapping[str, torch.Tensor] | None = None,
    batch_sizes: int | Sequence[int] | None = None,
    threads: int | None = None,
) -> CompiledNetwork:
    """A callable on inputs of the shapes and dtypes of `example_inputs`: PyTorch tensors, or NumPy arrays.

    `example_inputs` are PyTorch tensors on which `module(*example_inputs)` runs; a single one needs no tuple. Weights
    are float32. A network may have no layer that can be pruned: it is compiled dense, and `report` of the result tells
    what our kernels compute and what TVM's own loops do.

    `masks` (layer name -> bool, in the weight's layout) says which weights are removed; without them a layer's zeros
    are, if they are at least a quarter of its weights. With `batch_sizes`, one or several, it takes inputs of each of
    these numbers of examples, which every tensor has in its first dimension. `threads`: one per core if none.

    `save(path)` of the result writes one shared library, which `pruneaug.load` reads, and C++ without PyTorch. Its
    function is "main", or of several batch sizes "main_<size>" each.
    Raises InputError, NetworkError for a network that does not run on the examples, CompileError for one that
    torch.export rejects or that has an operator which cannot be compiled.
    """
    # Only what compiles imports the compiler: it replaces Python's excepthook and takes seconds.
    from pruneaug.kernels.build import CpuTarget
    from pruneaug.runtime.compiler import compile_programs

    platform = detect(threads)
    examples = check_inputs(module, example_inputs)
    if isinstance(batch_sizes, int):
        batch_sizes = [batch_sizes]
    batches = [examples] if batch_sizes is None else [_batch(examples, size) for size in batch_sizes]
    if not batches:
        raise InputError("`batch_sizes` must hold at least one number of examples, but is empty; leave it out")
    network = list_layers(module, batches[0])  # what does not run here is no fault of torch.export
    if batch_sizes is None or len(set(batch_sizes)) == 1:
        programs = {"main": export_program(module, batches[0])}
    else:
        programs = {f"main_{size}": export_program(module, inputs) for size, inputs in zip(batch_sizes, batches)}
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


def check_inputs(module: nn.Module, example_inputs: Any) -> tuple[Any, ...]:
    """The example inputs as a tuple. Raises InputError for what is no module, and for what are no inputs of one."""
    check_module(module)
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,)
    leaves = pytree.tree_leaves(example_inputs)
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        raise InputError(
            "`example_inputs` must hold PyTorch tensors, but got a NumPy array; give `torch.from_numpy(array)` (the "
            "compiled network takes arrays as well)"
        )
    if not isinstance(example_inputs, tuple):
        raise InputError(
            "`example_inputs` must be a tensor, or a tuple of all that `module(*example_inputs)` takes, but got a "
            f"{type(example_inputs).__name__}; write `(x,)` for one argument `x`"
        )
    if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise InputError(
            f"`example_inputs` must hold at least one tensor, but got {reprlib.repr(example_inputs)}; give tensors of "
            "the shapes and dtypes that the network will be called with"
        )
    return example_inputs


def _batch(inputs: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """Inputs of `size` examples with the values of the given ones."""
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor)]
    if size < 1 or len({x.shape[:1] for x in tensors}) != 1 or any(x.dim() == 0 or len(x) == 0 for x in tensors):
        raise InputError(
            f"`batch_sizes` need inputs that all have the examples in their first dimension, and sizes of at least 1, "
            f"but got size {size} and inputs {[list(x.shape) for x in tensors]}; compile each batch by itself"
        )
    batch: tuple[Any, ...] = pytree.tree_map_only(
        torch.Tensor, lambda x: x[torch.arange(size) % len(x)].contiguous(), inputs
    )
    return batch
