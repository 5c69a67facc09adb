"""The runtimes that pruneaug is compared with: each makes an exported network ready to run on its example inputs.

A runtime is made in a process of its own (`pruneaug.profiler.network_worker`), from the example inputs of the program,
with float32 arithmetic and as many threads as it is told. Whatever it converts, it converts before its first call.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.export import ExportedProgram

from pruneaug.errors import InputError
from pruneaug.registry import did_you_mean

Call = Callable[[], Any]
"""One forward pass; returns the outputs, tensors or arrays in a structure of any kind."""

Runtime = Callable[[ExportedProgram, int, Path], Call]
"""(program, threads, a folder for files) -> the call. Runtimes of the same program share the folder."""


def torch_eager(program: ExportedProgram, threads: int, folder: Path) -> Call:
    """PyTorch's own operators."""
    torch.set_num_threads(threads)
    return torch_call(program.module(check_guards=False), program)


def torch_compile(program: ExportedProgram, threads: int, folder: Path) -> Call:
    """TorchInductor with constant weights. Autotuning its matrix products takes long, and is no faster on CPUs."""
    import torch._inductor.config as inductor

    inductor.freezing = True  # weights are constants, as for every other runtime
    torch.set_num_threads(threads)
    return torch_call(torch.compile(program.module(check_guards=False)), program)


def onnxruntime(program: ExportedProgram, threads: int, folder: Path) -> Call:
    """ONNX Runtime with all graph optimisations."""
    session = onnxruntime_session(_onnx_file(program, folder), threads)
    names = [given.name for given in session.get_inputs()]
    feeds = dict(zip(names, _arrays(program), strict=True))
    return lambda: session.run(None, feeds)


def openvino(program: ExportedProgram, threads: int, folder: Path) -> Call:
    """OpenVINO, by way of ONNX: its reader of PyTorch programs is no faster, and reports its use over the network."""
    import openvino as ov

    request = openvino_request(ov.Core().read_model(_onnx_file(program, folder)), threads)
    feeds = _arrays(program)
    return lambda: list(request.infer(feeds, share_inputs=True, share_outputs=True).values())


def onnxruntime_session(model: str | bytes, threads: int) -> Any:
    """A session for a model of ONNX, or the file of one, with all graph optimisations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_request(model: Any, threads: int, precision: str = "f32") -> Any:
    """A request for a model of OpenVINO, set to the shortest time of one call."""
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,  # it would take bfloat16 by itself where the CPU has it
    }
    return ov.Core().compile_model(model, "CPU", settings).create_infer_request()


@dataclass(frozen=True, slots=True)
class Peer:
    """A runtime and the packages that it imports; those that are no part of pruneaug are in its extra `peers`."""

    make: Runtime
    packages: tuple[str, ...] = ()


RUNTIMES: Mapping[str, Peer] = {
    "torch": Peer(torch_eager),
    "torch-compile": Peer(torch_compile),
    "onnxruntime": Peer(onnxruntime, ("onnxruntime", "onnx", "onnxscript")),
    "openvino": Peer(openvino, ("openvino", "onnx", "onnxscript")),
}


def check_runtimes(names: Sequence[str]) -> None:
    """Raises InputError for a name that is not in RUNTIMES."""
    if unknown := [name for name in names if name not in RUNTIMES]:
        raise InputError(
            f"`against` must name runtimes of {', '.join(RUNTIMES)}, but got {', '.join(unknown)}"
            f"{did_you_mean(unknown[0], RUNTIMES)}"
        )


def absent_packages(name: str) -> str | None:
    """Why a runtime of RUNTIMES cannot run here, and how to install it; None if it can."""
    return why_absent(RUNTIMES[name].packages)


def why_absent(packages: Sequence[str], install: str = "'pruneaug[peers]'") -> str | None:
    """Which of these packages, all of what `pip install` is to be told, are not installed; None if all are."""
    absent = [package for package in packages if find_spec(package) is None]
    return f"{', '.join(absent)} not installed; pip install {install}" if absent else None


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """The versions of the packages that these runtimes import, of those that are installed."""
    return installed_versions(package for name in names for package in RUNTIMES[name].packages)


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those of these packages that are installed."""
    found = {}
    for package in dict.fromkeys(packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def torch_call(network: Callable[..., Any], program: ExportedProgram) -> Call:
    """`network`, called once already, on the example inputs of `program`."""
    inputs = example_inputs(program)

    def call() -> Any:
        with torch.inference_mode():
            return network(*inputs)

    with torch.no_grad():  # the compiler's freezing does not work in inference mode
        network(*inputs)
    return call


def example_inputs(program: ExportedProgram) -> tuple[Any, ...]:
    """The arguments that a program was exported with."""
    inputs, _ = program.example_inputs or ((), {})
    return tuple(inputs)


def _arrays(program: ExportedProgram) -> list[npt.NDArray[Any]]:
    """The example inputs that are tensors, which are those that the converted network has."""
    leaves = torch.utils._pytree.tree_leaves(list(example_inputs(program)))
    return [np.ascontiguousarray(leaf.detach().numpy()) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _onnx_file(program: ExportedProgram, folder: Path) -> str:
    """The program as ONNX in `folder`, its weights beside it, since a file of ONNX holds at most 2 GB.

    The first process that asks exports it; another one waits.
    """
    whole, part = folder / "onnx", folder / "onnx.part"
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
            assert exported is not None
            part.mkdir(exist_ok=True)
            exported.save(part / "network.onnx", external_data=True)
            part.rename(whole)
    finally:
        os.close(lock)
    return str(whole / "network.onnx")
