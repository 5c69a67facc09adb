"""A compiled network: a callable on PyTorch tensors or NumPy arrays, and the one file that it is saved as."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import tvm
import tvm_ffi
from tvm import relax

from pruneaug.errors import CheckpointError, InputError, PruneaugError, StorageError
from pruneaug.files import atomic_file
from pruneaug.kernels.build import use_threads
from pruneaug.kernels.crew import OPTIONS, SOURCE, take_crew
from pruneaug.runtime.emit import METADATA
from pruneaug.runtime.instrument import operator_times
from pruneaug.runtime.report import CompileReport, StepTimes, step_times
from pruneaug.runtime.scopes import without_scopes
from pruneaug.runtime.signature import Signature, abbreviate, describe

_ALIGNMENT = 64  # bytes; vector loads assume that arrays start there

_running = threading.Lock()
"""Held by the network that runs: kernels of all networks share the cores."""


def _release() -> None:
    """In a child process: the thread that held the lock may be one that only the parent has."""
    global _running
    _running = threading.Lock()


os.register_at_fork(after_in_child=_release)


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

    def __init__(
        self,
        executable: Any,
        functions: Mapping[str, CompiledFunction],
        threads: int,
        *,
        file: BinaryIO | None = None,
    ) -> None:
        """`file`, still open, is what it was loaded from."""
        self.threads = threads
        self._executable = executable
        self._file = file
        if file is not None:
            weakref.finalize(self, file.close)
        self._machine = relax.VirtualMachine(executable, tvm.cpu())
        self._functions = {function.signature.inputs: (name, function) for name, function in functions.items()}
        self._calls = {name: self._machine[name] for name in functions}
        self._borrowed: dict[str, list[int]] = {}  # the results of each function that are copied, once it was called

    @property
    def report(self) -> CompileReport:
        """The steps for the first of `inputs`."""
        return next(iter(self._functions.values()))[1].report

    @property
    def inputs(self) -> list[tuple[str, ...]]:
        """What it was compiled for: dtype and shape of every tensor, the value of any other argument."""
        return list(self._functions)

    def __repr__(self) -> str:
        kinds = " or ".join(abbreviate(inputs) for inputs in self._functions)
        return f"CompiledNetwork(inputs {kinds}, {self.threads} threads, {self.report.summary})"

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Inputs are given in the order of the examples, not by name.

        Raises InputError for inputs of other shapes or dtypes, and for an input that is an index, as that of an
        embedding is, of something that is not there.
        """
        if named:
            raise InputError(
                "a compiled network takes its inputs in the order of its example inputs, but got some by name: "
                f"{', '.join(named)}; leave the names out"
            )
        name, function = self._function(inputs)
        arguments = function.signature.arguments(inputs)
        as_numpy = bool(arguments) and all(isinstance(argument, np.ndarray) for argument in arguments)
        tensors = _checked(function.signature, arguments)
        with _running:
            results = self._results(name, tensors)
        return function.signature.pack([result.numpy() for result in results] if as_numpy else results)

    def profile(self, *inputs: Any, repeats: int = 10) -> StepTimes:
        """The steps that compute the network for `inputs`, each with the median of its times in `repeats` calls.

        Printed, it is a table of those that take longest.

        Their sum is less than the time of a call by some microseconds a step, which is what it takes to start them.
        Raises InputError for inputs of other shapes or dtypes, and for fewer than one repeat.
        """
        if repeats < 1:
            raise InputError(f"`repeats` must be at least 1, but got {repeats}")
        name, function = self._function(inputs)
        tensors = _checked(function.signature, function.signature.arguments(inputs))
        with _running:
            use_threads(self.threads)
            calls = operator_times(self._machine, tensors, function=name, repeats=repeats)
        return step_times(function.report, calls)

    def save(self, path: str | Path) -> None:
        """Write the network as one shared library that runs without PyTorch, whole or not at all.

        One that was loaded is copied, whatever has become of its file's name. Raises StorageError where it cannot be
        written, or linked: that takes a C++ compiler, the one in CXX or g++.
        """
        with atomic_file(path) as part:
            if self._file is not None:
                self._file.seek(0)
                with part.open("wb") as copy:
                    shutil.copyfileobj(self._file, copy)
                return
            link_library(self._executable, part, path)

    def _results(self, name: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """What a function returns, each result in memory of its own: a caller may write to it.

        A result may be a constant of the network, an input, or a view of another result. The first call finds them by
        calling twice: they are what lies where it did, or where another result does.
        """
        use_threads(self.threads)
        results = [_tensor(result) for result in self._calls[name](*tensors)]
        if name not in self._borrowed:
            places = {_tensor(result).data_ptr() for result in self._calls[name](*tensors)}
            self._borrowed[name] = []
            for index, result in enumerate(results):
                if result.data_ptr() in places:
                    self._borrowed[name].append(index)
                places.add(result.data_ptr())
        for index in self._borrowed[name]:
            results[index] = results[index].clone()
        return results

    def _function(self, inputs: tuple[Any, ...]) -> tuple[str, CompiledFunction]:
        """The name and description of what computes these inputs. Raises InputError if nothing does."""
        described = describe(inputs)
        if described not in self._functions:
            known = " or ".join(abbreviate(inputs) for inputs in self._functions)
            raise InputError(
                f"a compiled network takes inputs like those it was compiled for, {known}, but got "
                f"{abbreviate(described)}; compile it for these, or give tensors or arrays of those shapes and dtypes"
            )
        return self._functions[described]


def link_library(executable: Any, part: Path, path: str | Path, link: Callable[..., None] | None = None) -> None:
    """Write a network's machine code to `part` as the shared library that is to be `path`.

    `link` is another linker than this machine's C++ compiler, as TVM's `export_library` takes it. Raises StorageError.
    """
    try:
        with without_scopes():
            executable.export_library(str(part), fcompile=link, addons=[str(SOURCE)], options=list(OPTIONS))
    except PruneaugError:
        raise
    except Exception as error:
        reason = " ".join(str(error).partition("Command line:")[0].split())
        raise StorageError(
            f"cannot link {path}: {reason}; check that a C++ compiler is installed, in CXX or as g++, and that the "
            "disks of the file and of temporary files have room"
        ) from error


def load_network(path: str | Path) -> CompiledNetwork:
    """The network that `CompiledNetwork.save` wrote. It is machine code: load only files that you trust.

    Raises CheckpointError if the file is no compiled network, or one for another CPU.
    """
    path = Path(path)
    try:
        with ExitStack() as opened:
            file = opened.enter_context(path.open("rb"))
            module = _load_module(path)
            text = relax.VirtualMachine(module, tvm.cpu())[METADATA]()
            metadata = json.loads(bytes(text.numpy()))
            functions = {name: CompiledFunction.from_json(value) for name, value in metadata["functions"].items()}
            network = CompiledNetwork(module, functions, int(metadata["threads"]), file=file)
            opened.pop_all()
            return network
    except Exception as error:
        raise CheckpointError(
            f"{path} must be a network that this version of pruneaug compiled for this machine, but {_reason(error)}; "
            "compile it here, and `save` it"
        ) from error


def _reason(error: Exception) -> str:
    """Why a file is no network that can be loaded."""
    if isinstance(error, _NoLibraryError):
        return f"it is no shared library that this machine can load ({error})"
    if isinstance(error, AttributeError | KeyError):  # a function or a key of the metadata that is not there
        return "it is a library with something else, or of another version"
    return f"{type(error).__name__}: {error}"


class _NoLibraryError(Exception):
    """The system does not load a file; the message says why."""


def _load_module(path: Path) -> Any:
    """The module in a file, loaded under a name that is new.

    The system does not open a library again whose name it knows, even if another file has taken its place. And TVM
    wants the name to end in ".so".
    """
    with tempfile.TemporaryDirectory(prefix="pruneaug-") as folder, without_scopes():
        link = Path(folder) / "network.so"
        link.symlink_to(path.resolve())
        try:
            take_crew(link)
            return tvm_ffi.load_module(link)  # TVM's own function would follow the link
        except Exception as error:
            # Of the message only what the system says, which names the link.
            raise _NoLibraryError(str(error).rpartition(f"{link}: ")[2]) from error


def _checked(signature: Signature, arguments: Sequence[Any]) -> list[torch.Tensor]:
    """What the compiled function takes, of the network's tensors or arrays. Raises InputError."""
    tensors = [_aligned(argument) for argument in arguments]
    signature.check_bounds(tensors)
    return tensors


def _aligned(value: Any) -> torch.Tensor:
    """The input as a contiguous tensor in memory that vector loads can read. Raises InputError for one elsewhere."""
    if isinstance(value, np.ndarray):
        # PyTorch takes no negative strides, and warns about memory that it may not write.
        value = torch.from_numpy(np.require(value, requirements=["C", "W"]))
    if not value.is_cpu or value.layout is not torch.strided:
        raise InputError(
            f"a compiled network takes dense tensors on the CPU, but got a {value.layout} tensor on {value.device}; "
            "call its method `cpu` or `to_dense`"
        )
    tensor: torch.Tensor = value
    if tensor.requires_grad or tensor.is_neg() or not tensor.is_contiguous():
        tensor = tensor.detach().resolve_neg().contiguous()
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def _tensor(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else torch.utils.dlpack.from_dlpack(result)
