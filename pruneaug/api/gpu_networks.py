"""A PyTorch network whose pruned layers run our kernels on the GPU of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruneaug.api.compiling import check_inputs, zeros
from pruneaug.api.job import Progress, stage
from pruneaug.errors import CompileError
from pruneaug.kernels.cuda.ahead import compile_ahead
from pruneaug.kernels.cuda.program import Program, ProgramFolder
from pruneaug.network.layers import list_layers
from pruneaug.platforms.cuda import detect_gpu
from pruneaug.runtime.cuda.building import build_graph
from pruneaug.runtime.cuda.choice import Choose, largest_that_fills
from pruneaug.runtime.cuda.network import CudaNetwork

if TYPE_CHECKING:
    from pruneaug.kernels.cuda.shapes import Shape
    from pruneaug.kernels.cuda.variants import CudaVariant

KERNELS_FOLDER = "cuda-kernels"


def compile_for_gpu(
    module: nn.Module,
    example_inputs: torch.Tensor | tuple[Any, ...],
    *,
    masks: Mapping[str, torch.Tensor] | None = None,
    dtype: str = "bfloat16",
    compiled: bool = False,
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

    `variants` names the kernel of some layers, such as "t128n64k32s4w4x1"; `choose` chooses it for the others. Kernels
    that the folder `kernels` lacks are compiled into it by processes that are spawned, if TVM is installed.
    Raises InputError without a GPU, for wrong inputs or without TVM where it is needed, NetworkError, CompileError.
    """
    gpu = detect_gpu()
    examples = check_inputs(module, example_inputs)
    removed = zeros(module, list_layers(module, examples)) if masks is None else masks
    built = build_graph(
        module, examples, removed, dtype=dtype, arch=gpu.arch, device=torch.device("cuda"), choose=choose,
        variants=variants,
    )  # fmt: skip
    programs = compiled_programs(built.shapes, gpu.arch, ProgramFolder(Path(kernels)), progress)
    return CudaNetwork(built, programs, compiled=compiled)


def compiled_programs(
    shapes: Sequence[Shape], arch: str, folder: ProgramFolder, progress: Progress | None = None
) -> list[Program]:
    """The kernels of these shapes; the folder gets those that it lacks. Raises CompileError, InputError without TVM."""
    failed = compile_ahead(shapes, arch, folder, progress=stage(progress, "Compile"))
    for key, error in failed.items():
        raise CompileError(f"the kernel {key} must compile for {arch}, but {error}")
    return [folder.read(shape, arch) for shape in shapes]
