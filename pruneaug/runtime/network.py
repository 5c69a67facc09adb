"""A compiled network: a callable on PyTorch tensors or NumPy arrays, and the one file that it is saved as."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax

from pruneaug.errors import CheckpointError, InputError, StorageError
from pruneaug.files import atomic_file
from pruneaug.runtime.emit import METADATA
from pruneaug.runtime.instrument import operator_times
from pruneaug.runtime.report import CompileReport, StepTime, step_times
from pruneaug.runtime.signature import Signature, describe

_ALIGNMENT = 64  # bytes; vector loads assume that arrays start there

_running = threading.Lock()
"""Held by the network that runs: kernels of all networks share the cores."""

_pool = threading.local()
"""`threads`: the size of TVM's thread pool of the calling thread, each of which has one of its own."""


@dataclass(frozen=True, slots=True)
class CompiledFunction:
    """A network for inputs of one kind: what it takes and returns, and its steps."""

    signature: Signature
    report: CompileReport

    def to_json(self) -> dict[str, Any]:
        return {**self.signature.to_json(), "report": self.report.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CompiledFunction:
        return cls(Signature.from_json(value), CompileReport.from_json(value["report"]))


class CompiledNetwork:
    """A network compiled for inputs like its examples: PyTorch tensors in, what the network returns out.

    NumPy arrays in give NumPy arrays. Calls from several threads run one after the other, also those of different
    networks: each uses all its threads.
    """

    def __init__(self, executable: Any, functions: Mapping[str, CompiledFunction], threads: int) -> None:
        self.threads = threads
        self._executable = executable
        self._machine = relax.VirtualMachine(executable, tvm.cpu())
        self._functions = {function.signature.inputs: (name, function) for name, function in functions.items()}
        self._calls = {name: self._machine[name] for name in functions}

    @property
    def report(self) -> CompileReport:
        """The steps for the first of `inputs`."""
        return next(iter(self._functions.values()))[1].report

    @property
    def inputs(self) -> list[tuple[str, ...]]:
        """What it was compiled for: dtype and shape of every tensor, the value of any other argument."""
        return list(self._functions)

    def __call__(self, *inputs: Any) -> Any:
        """Raises InputError for inputs of other shapes or dtypes."""
        name, function = self._function(inputs)
        arguments = function.signature.arguments(inputs)
        as_numpy = bool(arguments) and all(isinstance(argument, np.ndarray) for argument in arguments)
        tensors = [_aligned(argument) for argument in arguments]
        with self._own_cores():
            results = [_tensor(result) for result in self._calls[name](*tensors)]
        return function.signature.pack([result.numpy() for result in results] if as_numpy else results)

    def profile(self, *inputs: Any, repeats: int = 10) -> tuple[StepTime, ...]:
        """The steps that compute the network for `inputs`, each with the median of its times in `repeats` calls.

        Their sum is less than the time of a call by some microseconds a step, which is what it takes to start them.
        Raises InputError for inputs of other shapes or dtypes, and for fewer than one repeat.
        """
        if repeats < 1:
            raise InputError(f"`repeats` must be at least 1, but got {repeats}")
        name, function = self._function(inputs)
        tensors = [_aligned(argument) for argument in function.signature.arguments(inputs)]
        with self._own_cores():
            calls = operator_times(self._machine, tensors, function=name, repeats=repeats)
        return step_times(function.report, calls)

    def save(self, path: str | Path) -> None:
        """Write the network as one shared library that runs without PyTorch, whole or not at all.

        Raises StorageError where it cannot be written, or linked: that takes a C++ compiler, the one in CXX or g++.
        """
        with atomic_file(path) as part:
            try:
                self._executable.export_library(str(part))
            except Exception as error:
                reason = " ".join(str(error).partition("Command line:")[0].split())
                raise StorageError(
                    f"cannot link {path}: {reason}; check that a C++ compiler is installed, in CXX or as g++, and that "
                    "the disks of the file and of temporary files have room"
                ) from error

    def _function(self, inputs: tuple[Any, ...]) -> tuple[str, CompiledFunction]:
        """The name and description of what computes these inputs. Raises InputError if nothing does."""
        described = describe(inputs)
        if described not in self._functions:
            known = " or ".join(f"({', '.join(inputs)})" for inputs in self._functions)
            raise InputError(
                f"a compiled network takes inputs like those it was compiled for, {known}, but got "
                f"({', '.join(described)}); compile it for these"
            )
        return self._functions[described]

    @contextmanager
    def _own_cores(self) -> Iterator[None]:
        """Inside, no other network runs, and the calling thread has as many threads as the kernels expect."""
        with _running:
            if getattr(_pool, "threads", None) != self.threads:
                tvm.get_global_func("runtime.config_threadpool")(1, self.threads)
                _pool.threads = self.threads
            yield


def load_network(path: str | Path) -> CompiledNetwork:
    """The network that `CompiledNetwork.save` wrote. It is machine code: load only files that you trust.

    Raises CheckpointError if the file is no compiled network, or one for another CPU.
    """
    path = Path(path)
    try:
        module = tvm.runtime.load_module(str(path))
        text = relax.VirtualMachine(module, tvm.cpu())[METADATA]()
        metadata = json.loads(bytes(text.numpy()))
        functions = {name: CompiledFunction.from_json(value) for name, value in metadata["functions"].items()}
        return CompiledNetwork(module, functions, int(metadata["threads"]))
    except Exception as error:
        raise CheckpointError(
            f"{path} must be a network that this version of pruneaug compiled for this machine, but "
            f"{type(error).__name__}: {error}; compile it here"
        ) from error


def _aligned(value: Any) -> torch.Tensor:
    """The input as a contiguous tensor in memory that vector loads can read."""
    if isinstance(value, np.ndarray):
        # PyTorch takes no negative strides, and warns about memory that it may not write.
        value = torch.from_numpy(np.require(value, requirements=["C", "W"]))
    tensor: torch.Tensor = value.detach().contiguous()
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def _tensor(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else torch.utils.dlpack.from_dlpack(result)
