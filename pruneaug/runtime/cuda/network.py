"""A network on a GPU: a callable on PyTorch tensors, and the one file that it is saved as."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import fx
from torch.export.passes import move_to_device_pass

from pruneaug.errors import CheckpointError, InputError
from pruneaug.files import atomic_file
from pruneaug.kernels.cuda.program import Program, generator_digest
from pruneaug.kernels.cuda.shapes import parse_shape
from pruneaug.kernels.cuda.variants import TORCH_2_4
from pruneaug.runtime.cuda.building import CudaGraph, arrange_kernels
from pruneaug.runtime.cuda.operator import KERNELS, LoadedKernels
from pruneaug.runtime.cuda.recording import Call, GraphRecorder, Recorder, network_settings
from pruneaug.runtime.cuda.report import CudaReport
from pruneaug.runtime.signature import Signature, abbreviate, describe
from pruneaug.runtime.tracing import tracing

_KEY, _VERSION = "pruneaug-cuda-network", 1
_GRAPH = "graph"  # the tensor that holds the exported graph


class CudaNetwork:
    """A network for inputs like its examples, recorded in a CUDA graph at the first call.

    Tensors may lie on the CPU or the GPU, results lie on the GPU, each in memory of its own. It is for one thread, on
    the GPU that was current when it was made. All work is put on PyTorch's current stream.
    """

    def __init__(
        self,
        built: CudaGraph,
        programs: Sequence[Program],
        *,
        compiled: bool = False,
        recorder: Recorder | None = None,
        kernels: LoadedKernels = KERNELS,
    ) -> None:
        """`programs` are the kernels of `built.shapes`; with `compiled`, torch.compile fuses what is between them."""
        self._built, self._programs, self._compiled = built, tuple(programs), compiled
        self._recorder = GraphRecorder() if recorder is None else recorder
        graph = torch.compile(built.graph, dynamic=False) if compiled else built.graph
        self._network: Callable[..., Any] = graph
        self._recorded: tuple[Call, Sequence[torch.Tensor]] | None = None
        kernels.add(programs)

    @property
    def report(self) -> CudaReport:
        """What computes each layer."""
        return self._built.report

    @property
    def inputs(self) -> list[tuple[str, ...]]:
        """What it was built for: dtype and shape of every tensor, the value of any other argument."""
        return [self._built.signature.inputs]

    def __repr__(self) -> str:
        return f"CudaNetwork(inputs {abbreviate(self._built.signature.inputs)}, {self.report.summary})"

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Inputs are given in the order of the examples, not by name.

        Raises InputError for inputs of other shapes or dtypes. An index is checked if it lies in the CPU's memory: to
        read it on the GPU would wait for the GPU.
        """
        if named:
            raise InputError(
                "a network on a GPU takes its inputs in the order of its example inputs, but got some by name: "
                f"{', '.join(named)}; leave the names out"
            )
        signature = self._built.signature
        if (described := describe(inputs)) != signature.inputs:
            raise InputError(
                f"a network on a GPU takes inputs like those it was built for, {abbreviate(signature.inputs)}, but got "
                f"{abbreviate(described)}; build it for these, or give tensors of those shapes and dtypes"
            )
        tensors = [torch.as_tensor(argument) for argument in signature.arguments(inputs)]
        if all(tensor.is_cpu for tensor in tensors):
            signature.check_bounds(tensors)
        with torch.no_grad():
            for held, tensor in zip(self._built.static, tensors, strict=True):
                held.copy_(tensor)
            results = self.replay()
            dtypes = self._built.results
            return signature.pack([y.to(dtype, copy=True) for y, dtype in zip(results, dtypes, strict=True)])

    def replay(self) -> Sequence[torch.Tensor]:
        """Compute the results for the inputs of the last call again, in memory that each replay overwrites."""
        with torch.no_grad():
            if self._recorded is None:
                with network_settings(self.report.dtype):
                    self._recorded = self._recorder.record(lambda: self._network(*self._built.static))
            again, results = self._recorded
            again()
            return results

    def save(self, path: str | Path) -> None:
        """Write the network, its kernels included, as one file of safetensors, whole or not at all.

        Raises StorageError where it cannot be written.
        """
        built, data = self._built, io.BytesIO()
        graph = fx.GraphModule(built.graph, built.graph.graph)  # of its own, with the same tensors
        arrange_kernels(graph, torch.contiguous_format)  # PyTorch's archives hold other strides less well
        with tracing(), torch.no_grad():
            program = torch.export.export(graph, built.static, strict=False)
            program.example_inputs = None  # as large as a batch, and without meaning
            torch.export.save(move_to_device_pass(program, "cpu"), data)  # another GPU may load it
        tensors = {_GRAPH: _bytes(data.getvalue())}
        tensors |= {program.shape.key: _bytes(program.cubin) for program in self._programs}
        facts = {
            "version": _VERSION,
            "generator": generator_digest(),
            "arch": self.report.arch,
            "signature": built.signature.to_json(),
            "results": [str(dtype).removeprefix("torch.") for dtype in built.results],
            "programs": {program.shape.key: _facts(program) for program in self._programs},
            "compiled": self._compiled,
            "cusparselt": _cusparselt(self.report),
            "report": self.report.to_json(),
        }
        with atomic_file(path) as part:
            save_file(tensors, str(part), {_KEY: json.dumps(facts)})


def load_cuda_network(
    path: str | Path,
    arch: str,
    device: torch.device,
    *,
    recorder: Recorder | None = None,
    kernels: LoadedKernels = KERNELS,
) -> CudaNetwork:
    """The network that `CudaNetwork.save` wrote, on the GPU `device` of architecture `arch`.

    It holds machine code: load only files that you trust. Raises CheckpointError for a file that is no such network, or
    is for another architecture or of another version of the package, or of cuSPARSELt if that has packed its weights.
    """
    path = Path(path)
    try:
        with safe_open(str(path), "pt") as file:
            facts = json.loads(file.metadata()[_KEY])
            if facts["version"] != _VERSION or facts["generator"] != generator_digest():
                raise ValueError("another version of pruneaug wrote it")
            if facts["arch"] != arch:
                raise ValueError(f"it is for GPUs of architecture {facts['arch']} and this one is {arch}")
            report = CudaReport.from_json(facts["report"])
            if facts["cusparselt"] != (found := _cusparselt(report)):
                raise ValueError(f"cuSPARSELt {facts['cusparselt']} has packed its weights and this one is {found}")
            programs = [
                Program(
                    parse_shape(key), arch, tuple((name, kind) for name, kind in known["parameters"]),
                    known["registers"], known["spilled_bytes"], file.get_tensor(key).numpy().tobytes(),
                )
                for key, known in facts["programs"].items()
            ]  # fmt: skip
            data = io.BytesIO(file.get_tensor(_GRAPH).numpy().tobytes())
        module = move_to_device_pass(torch.export.load(data), device).module(check_guards=False)
        assert isinstance(module, fx.GraphModule)
        graph = fx.GraphModule(module, module.graph)  # as it was built: without the hooks of an export
        arrange_kernels(graph, torch.channels_last)
        built = CudaGraph(
            graph,
            Signature.from_json(facts["signature"]),
            tuple(_like(node.meta["val"]) for node in graph.graph.nodes if node.op == "placeholder"),
            tuple(getattr(torch, name) for name in facts["results"]),
            tuple(program.shape for program in programs),
            report,
        )
        compiled = bool(facts["compiled"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, InputError) as error:
        raise CheckpointError(
            f"{path} must be a network that this version of pruneaug saved for this GPU, but {error}; build it here, "
            "and `save` it"
        ) from error
    return CudaNetwork(built, programs, compiled=compiled, recorder=recorder, kernels=kernels)


def is_cuda_network(path: str | Path) -> bool:
    """Whether `CudaNetwork.save` wrote this file; only its header is read."""
    try:
        with safe_open(str(path), "pt") as file:
            return _KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _cusparselt(report: CudaReport) -> int | None:
    """The version of the library that packs 2:4 weights, in a layout of its own, if a layer has such; else None."""
    packed = any(layer.kernel == TORCH_2_4 for layer in report.layers)
    return torch.backends.cusparselt.version() if packed else None


def _facts(program: Program) -> dict[str, Any]:
    return {
        "parameters": program.parameters,
        "registers": program.registers,
        "spilled_bytes": program.spilled_bytes,
    }


def _bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _like(fake: torch.Tensor) -> torch.Tensor:
    """Zeros that lie in memory as a fake tensor would."""
    return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device).zero_()
