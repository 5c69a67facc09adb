"""The verb `load`: a checkpoint, or a compiled network's file, as a network that runs on this machine's kernels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from pruneaug.errors import CheckpointError, InputError, SpecError
from pruneaug.exporter.artifact import find_artifact
from pruneaug.exporter.checkpoint import Checkpoint, read_checkpoint
from pruneaug.platforms import Platform, detect
from pruneaug.platforms.cuda import gpu_platform
from pruneaug.profiler.local_gpu import LocalGpu
from pruneaug.runtime.cuda.network import CudaNetwork, is_cuda_network
from pruneaug.runtime.graph import export_program
from pruneaug.spec import parse_job
from pruneaug.tasks import build_task
from pruneaug.tasks.network import NetworkSource

if TYPE_CHECKING:
    from pruneaug.runtime.network import CompiledNetwork


def load(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    threads: int | None = None,
    trust_code: bool = False,
    artifact: bool = False,
) -> CompiledNetwork | CudaNetwork:
    """A compiled network: of a checkpoint's folder, or of a file that `save` wrote.

    A checkpoint is compiled for this machine, for inputs of the exported shapes: for its first GPU, if the export was
    for one. A file is machine code: load only what you trust; the other arguments are for checkpoints. A file of a
    network for a GPU needs a GPU of its architecture.

    `model` is a network of the same modules, needed where the job did not name one; it is changed: the weights are
    loaded into it. `trust_code` lets the checkpoint name the `package.module:callable` that builds its network.
    `artifact` loads the machine code that the export saved instead, if you trust whoever wrote the checkpoint: nothing
    is compiled, so no model is needed. It runs on the platform of the export with the same versions.
    Raises CheckpointError if the folder or file is not whole or the artifact is for another platform, CompileError,
    InputError for arguments that contradict each other.
    """
    if artifact and (model is not None or threads is not None):
        raise InputError("an artifact has its own weights and threads; leave `model` and `threads` out, or `artifact`")
    if is_cuda_network(path):
        return LocalGpu().load(path)
    if not Path(path).exists():
        raise CheckpointError(
            f"a checkpoint's folder, or a file that `save` wrote, must be at {path}, but nothing is there; "
            "name the folder that `pruneaug export RUN` printed, or the file"
        )
    checkpoint = None if Path(path).is_file() else read_checkpoint(path)
    if checkpoint is not None and checkpoint.platform.is_gpu:
        return _load_for_gpu(checkpoint, model, threads, trust_code, artifact)
    # Only what is for a CPU imports the compiler: it replaces Python's excepthook and takes seconds.
    from pruneaug.kernels.build import CpuTarget
    from pruneaug.runtime.compiler import compile_network
    from pruneaug.runtime.network import load_network

    if checkpoint is None:
        return load_network(path)
    platform = platform_for(checkpoint, threads)
    if artifact:
        return load_network(find_artifact(checkpoint, platform))
    model = load_model(checkpoint, model, trust_code)
    target = CpuTarget(**platform.kernel_target())
    program = export_program(model, checkpoint.example_inputs)
    return compile_network(program, checkpoint.network, checkpoint.masks, plans_for(checkpoint, platform), target)


def _load_for_gpu(
    checkpoint: Checkpoint,
    model: nn.Module | None,
    threads: int | None,
    trust_code: bool,
    artifact: bool,
) -> CudaNetwork:
    """The network of a checkpoint on the first GPU of this machine, in the dtype of the export's platform."""
    dtype = checkpoint.platform.dtype
    check_threads(checkpoint, threads)
    gpu = LocalGpu()
    here = gpu_platform(gpu.device.gpu, dtype=dtype)
    if artifact:
        return gpu.load(find_artifact(checkpoint, here))
    network = load_model(checkpoint, model, trust_code)
    return gpu.network(
        network, checkpoint.example_inputs, checkpoint.masks, dtype=dtype, variants=plans_for(checkpoint, here)
    )


def check_threads(checkpoint: Checkpoint, threads: int | None) -> None:
    """Raises InputError for threads of a network for a GPU."""
    if threads is not None:
        raise InputError(
            f"{checkpoint.folder} is a network for a GPU, which has no threads, but got {threads}; leave `threads` out"
        )


def platform_for(checkpoint: Checkpoint, threads: int | None) -> Platform:
    """This machine with `threads` threads; none: as many as the export was for, or one per core if it has fewer CPUs.

    Raises SpecError for more threads than CPUs.
    """
    if threads is not None:
        return detect(threads)
    try:
        return detect(int(checkpoint.info["platform"]["threads"]))
    except SpecError:
        return detect()


def plans_for(checkpoint: Checkpoint, platform: Platform) -> dict[str, str]:
    """The exported plans on the platform they were measured on; elsewhere none, and the likeliest variants serve."""
    if platform.is_gpu:
        return gpu_plans_for(checkpoint, platform.arch, platform.dtype)
    return dict(checkpoint.plans) if checkpoint.platform.fingerprint == platform.fingerprint else {}


def gpu_plans_for(checkpoint: Checkpoint, arch: str, dtype: str) -> dict[str, str]:
    """The exported plans on GPUs of the architecture they were measured on, which compiled kernels are for."""
    there = checkpoint.platform
    return dict(checkpoint.plans) if (there.arch, there.dtype) == (arch, dtype) else {}


def load_model(checkpoint: Checkpoint, model: nn.Module | None = None, trust_code: bool = False) -> nn.Module:
    """The checkpoint's weights in a PyTorch network, in eval mode: `model`, or the one that its job names.

    Raises CheckpointError if there is neither, or if the weights are of another network.
    """
    if model is None:
        model = _build(checkpoint, trust_code)
    if not isinstance(model, nn.Module):
        raise InputError(f"`model` must be a torch.nn.Module, but got {type(model).__name__}; call what builds it")
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights of {checkpoint.folder} must be of this network, but {error}; "
            "give `model=` the one it was pruned from"
        ) from error
    return model.eval()


def _build(checkpoint: Checkpoint, trust_code: bool) -> nn.Module:
    spec = checkpoint.info.get("spec")
    if spec is None:
        raise CheckpointError(
            f"{checkpoint.folder} was exported from a network in Python, so only its weights are there; "
            "use `pruneaug.load(folder, model=...)` or `pruneaug.bench(folder, model=...)` from Python"
        )
    task = parse_job(spec).task
    source = task.name if task.model is None else task.model.name
    if ":" in source and not trust_code:
        raise CheckpointError(
            f"{checkpoint.folder} names code of its own for its network, {source!r}; give the network as `model=`, or "
            "`trust_code=True` (--trust-code) if you trust whoever wrote the checkpoint"
        )
    if task.model is None:
        return build_task(task).build_model()
    return NetworkSource(task.model).build(**checkpoint.info["model_facts"])
