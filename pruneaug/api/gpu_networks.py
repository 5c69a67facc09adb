"""A PyTorch network whose pruned layers run our kernels on a GPU of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruneaug.api.compiling import check_inputs, zeros
from pruneaug.api.job import Progress, stage
from pruneaug.network.layers import list_layers
from pruneaug.profiler.local_gpu import LocalGpu
from pruneaug.runtime.cuda.choice import Choose, largest_that_fills
from pruneaug.runtime.cuda.network import CudaNetwork
from pruneaug.spec.platform import KERNELS_FOLDER

if TYPE_CHECKING:
    from pruneaug.kernels.cuda.variants import CudaVariant


def compile_for_gpu(
    module: nn.Module,
    example_inputs: torch.Tensor | tuple[Any, ...],
    *,
    masks: Mapping[str, torch.Tensor] | None = None,
    dtype: str = "bfloat16",
    compiled: bool = False,
    index: int = 0,
    kernels: str | Path = KERNELS_FOLDER,
    choose: Choose = largest_that_fills,
    variants: Mapping[str, CudaVariant | str] | None = None,
    progress: Progress | None = None,
) -> CudaNetwork:
    """A callable on inputs of the shapes and dtypes of `example_inputs`, which returns what the network does.

    Layers with a mask run our kernels, with the sum, activation and clamp that follow them; all others stay PyTorch's,
    and with `compiled` torch.compile fuses what is between the kernels. Weights and activations are of `dtype`:
    float16, bfloat16, tf32 or float32. `masks` (layer name -> bool, in the weight's layout) says which weights are
    removed; without them a layer's zeros are, if they are at least a quarter of its weights.

    `index` is the number of the GPU, which becomes PyTorch's current one. `variants` names the kernel of some layers,
    such as "t128n64k32s4w4x1", or "torch" to leave one to PyTorch; `choose` chooses it for the others. Kernels that the
    folder `kernels` lacks are compiled into it by processes that are spawned, if TVM is installed.
    Raises InputError without a GPU, for wrong inputs or without TVM where it is needed, NetworkError, CompileError.
    """
    gpu = LocalGpu(index, kernels)
    _ = gpu.device  # before the network is looked at: without a GPU nothing else matters
    examples = check_inputs(module, example_inputs)
    removed = zeros(module, list_layers(module, examples)) if masks is None else masks
    return gpu.network(
        module, examples, removed, dtype=dtype, variants=variants, choose=choose, compiled=compiled,
        progress=stage(progress, "Compile"),
    )  # fmt: skip
