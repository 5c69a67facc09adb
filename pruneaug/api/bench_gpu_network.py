"""The verb `bench network` on an NVIDIA GPU: a pruned network or a checkpoint in turns with PyTorch's dense ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneaug.api import benching
from pruneaug.api.bench_choices import check_patterns, check_sparsity
from pruneaug.api.bench_network import Sample, assign, build_network, is_checkpoint, kept_dense, layers_of
from pruneaug.api.job import Progress, stage
from pruneaug.api.loading import gpu_plans_for, load_model
from pruneaug.errors import InputError
from pruneaug.exporter.checkpoint import Checkpoint, read_checkpoint
from pruneaug.kernels.cuda.ahead import compile_ahead
from pruneaug.kernels.cuda.formats import FORMATS
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.kernels.cuda.variants import TORCH_2_4
from pruneaug.network.layers import apply_masks
from pruneaug.platforms.cuda import gpu_platform
from pruneaug.profiler.gpu_networks import (
    GPU_RUNTIMES,
    absent_gpu_packages,
    check_gpu_runtimes,
    time_on_gpu,
    torch_subject,
)
from pruneaug.profiler.local_gpu import LocalGpu, clock_warnings, own_subject
from pruneaug.profiler.network import ROUNDS
from pruneaug.pruners.magnitude import Magnitude
from pruneaug.registry import did_you_mean
from pruneaug.report.data import OWN_DENSE, OWN_SPARSE
from pruneaug.runtime.cuda.building import build_graph
from pruneaug.runtime.cuda.network import CudaNetwork
from pruneaug.runtime.plan import Plans
from pruneaug.sparsity.patterns import NM, parse_pattern
from pruneaug.spec.platform import KERNELS_FOLDER

_EVERY = ("*",)
_DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True)
class Pruning:
    """How a named network is pruned: by magnitude, to blocks of `pattern`, the layers whose names match `layers`.

    Of "nm:2:4" the sparsity is its own.
    """

    pattern: str = "block:64x64"
    sparsity: float = 0.9
    layers: Sequence[str] = _EVERY


@dataclass(frozen=True, slots=True, eq=False)
class _Case:
    """A dense network, the masks of its pruned layers, and what a result says of them.

    `plans` say what computes layers of a named network; a checkpoint has its own.
    """

    model: nn.Module
    inputs: tuple[torch.Tensor, ...]
    masks: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]
    dtype: str
    plans: Plans = field(default_factory=dict)
    checkpoint: Checkpoint | None = None

    def plans_on(self, arch: str) -> Plans:
        """What computes each layer on GPUs of this architecture."""
        return self.plans if self.checkpoint is None else gpu_plans_for(self.checkpoint, arch, self.dtype)


def bench_gpu_network(
    name: str,
    *,
    pruning: Pruning | None = None,
    model: nn.Module | None = None,
    dtype: str | None = None,
    against: Sequence[str] = GPU_RUNTIMES,
    sample: Sample | None = None,
    batch: int | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    kernels: str | Path = KERNELS_FOLDER,
    trust_code: bool = False,
    index: int = 0,
    gpu: LocalGpu | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a network by its name, or a checkpoint's, on the GPU `index`: by us pruned and dense, dense in `against`.

    Weights and activations are of `dtype`: bfloat16 by default, or what a checkpoint for a GPU is of. Layers that are
    not pruned are PyTorch's, and torch.compile fuses what is between our kernels; dense by us is the same without
    them. All runtimes are recorded in CUDA graphs and timed in turns by the GPU's events. `kernels` is a folder of
    compiled kernels, unless `gpu` has its own; what it lacks is compiled if TVM is installed. `batch` is 1 by default,
    and a checkpoint's own; a checkpoint has its own `pruning` too. `sample`, `seed` and `trust_code` are those of
    `bench_network`, `model` is that of `load`.

    Returns what `bench_network` does, with `dtype`, `gpu`, `state` of the GPU before the rounds and its worst during
    them, and `layers`: what computes each of them. Raises InputError, without a GPU too, CompileError, CheckpointError.
    """
    check_gpu_runtimes(against)
    _check(dtype, batch, rounds)
    there = gpu or LocalGpu(index, kernels)
    device = there.device
    case = _case(name, pruning, sample, batch, seed, trust_code, device.torch_device, dtype, model)
    dtype = case.dtype
    platform = gpu_platform(device.gpu, dtype=dtype)
    ours = there.network(
        case.model, case.inputs, case.masks, dtype=dtype, variants=case.plans_on(device.gpu.arch),
        progress=stage(progress, "Compile"),
    )  # fmt: skip
    pruned = copy.deepcopy(case.model)
    apply_masks(pruned, case.masks)

    def dense() -> CudaNetwork:
        return there.network(case.model, case.inputs, {}, dtype=dtype)

    subjects = [
        torch_subject(runtime, case.model, case.inputs, dtype, device.torch_device, there.recorder)
        for runtime in dict.fromkeys(against)
        if absent_gpu_packages(runtime) is None
    ]
    before = device.state()
    times, during = time_on_gpu(
        [
            *subjects,
            own_subject(OWN_DENSE, case.model, case.inputs, dense),
            own_subject(OWN_SPARSE, pruned, case.inputs, lambda: ours),
        ],
        case.inputs, dtype, device, rounds=rounds, progress=stage(progress, "Bench"),
    )  # fmt: skip
    return {
        "network": name,
        **case.facts,
        "batch": len(case.inputs[0]),
        **benching.described(times, platform, against),
        "predicted_ms": None if case.checkpoint is None else benching.predicted_ms(case.checkpoint, platform),
        "rest": None,
        "patterns": [],
        "warnings": [
            *(() if case.checkpoint is None else benching.elsewhere(case.checkpoint, platform)),
            *clock_warnings(during),
        ],
        "dtype": dtype,
        "gpu": device.gpu.to_json(),
        "state": {"before": before.to_json(), "during": None if during is None else during.to_json()},
        "layers": ours.report.to_json()["layers"],
    }


def compile_gpu_network(
    name: str,
    arch: str,
    *,
    pruning: Pruning | None = None,
    dtype: str | None = None,
    sample: Sample | None = None,
    batch: int | None = None,
    seed: int = 0,
    kernels: str | Path = KERNELS_FOLDER,
    trust_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compile the kernels that `bench_gpu_network` runs into the folder `kernels`; no GPU is needed.

    Returns `arch`, `kernels` with how many there are, and `failed` with the error of each that could not be compiled.
    """
    _check(dtype, batch, 1)
    cpu = torch.device("cpu")
    case = _case(name, pruning, sample, batch, seed, trust_code, cpu, dtype)
    shapes = build_graph(
        case.model, case.inputs, case.masks, dtype=case.dtype, arch=arch, device=cpu, variants=case.plans_on(arch)
    ).shapes
    failed = compile_ahead(shapes, arch, ProgramFolder(Path(kernels)), progress=stage(progress, "Compile"))
    return {"arch": arch, "kernels": len(shapes) - len(failed), "failed": failed}


def _check(dtype: str | None, batch: int | None, rounds: int) -> None:
    if dtype is not None and dtype not in FORMATS:
        raise InputError(
            f"`dtype` on a GPU must be one of {', '.join(FORMATS)}, but got {dtype!r}{did_you_mean(dtype, FORMATS)}"
        )
    if (batch is not None and batch < 1) or rounds < 1:
        raise InputError(f"`batch` and `rounds` must be at least 1, but got {batch} and {rounds}")


def _case(
    name: str, pruning: Pruning | None, sample: Sample | None, batch: int | None, seed: int, trust_code: bool,
    device: torch.device, dtype: str | None, model: nn.Module | None = None,
) -> _Case:  # fmt: skip
    """The network and its masks, on the device."""
    if is_checkpoint(name):
        if pruning is not None or sample is not None or batch is not None:
            raise InputError(
                f"a checkpoint has its own masks and inputs, but {name!r} is one; leave pattern, sparsity, layers, "
                "shape and batch out"
            )
        opened = read_checkpoint(name)
        there = opened.platform
        model = load_model(opened, model, trust_code).to(device)
        inputs = tuple(x.to(device) for x in opened.example_inputs)
        dtype = dtype or (there.dtype if there.is_gpu else _DTYPE)
        return _Case(model, inputs, opened.masks, benching.of_checkpoint(opened), dtype, checkpoint=opened)
    asked = pruning or Pruning()
    check_sparsity(asked.sparsity)
    (block,) = check_patterns([asked.pattern], nm=True)
    model, inputs = build_network(name, sample=sample, batch=batch or 1, seed=seed, trust_code=trust_code)
    if (use_attention := getattr(model, "set_attn_implementation", None)) is not None:
        use_attention("sdpa")  # of transformers: one fused operator on a GPU, for all runtimes
    model, inputs = model.to(device), tuple(x.to(device) for x in inputs)
    network = layers_of(name, model, inputs)
    assignment = assign(network, block, asked.sparsity, asked.layers)
    masks = Magnitude().prune(model, network, assignment, None).masks
    facts = {
        "pattern": block,
        "sparsity": max(choice.sparsity for choice in assignment.values()),
        "kept_dense": kept_dense(network, block, asked.layers),
    }
    is_nm = isinstance(parse_pattern(block), NM)
    return _Case(model, inputs, masks, facts, dtype or _DTYPE, dict.fromkeys(masks, TORCH_2_4) if is_nm else {})
