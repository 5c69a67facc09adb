"""A compiled network: a callable on PyTorch tensors or NumPy arrays, and the one file that it is saved as."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax

from pruneaug.errors import CheckpointError, InputError
from pruneaug.files import storage_errors
from pruneaug.runtime.emit import METADATA
from pruneaug.runtime.report import CompileReport
from pruneaug.runtime.signature import Signature, describe

_ALIGNMENT = 64  # bytes; vector loads assume that arrays start there

_running = threading.Lock()
"""Held by the network that runs: kernels of all networks share the cores."""

_pool = threading.local()
"""`threads`: the size of TVM's thread pool of the calling thread, each of which has one of its own."""


class CompiledNetwork:
    """A network compiled for inputs like its examples: PyTorch tensors in, what the network returns out.

    NumPy arrays in give NumPy arrays. Calls from several threads run one after the other, also those of different
    networks: each uses all its threads.
    """

    def __init__(
        self,
        executable: Any,
        signatures: Mapping[str, Signature],
        threads: int,
        report: CompileReport,
    ) -> None:
        self.threads = threads
        self.report = report
        self._executable = executable
        self._machine = relax.VirtualMachine(executable, tvm.cpu())
        self._functions = {signature.inputs: (self._machine[name], signature) for name, signature in signatures.items()}

    @property
    def inputs(self) -> list[tuple[str, ...]]:
        """What it was compiled for: dtype and shape of every tensor, the value of any other argument."""
        return list(self._functions)

    def __call__(self, *inputs: Any) -> Any:
        """Raises InputError for inputs of other shapes or dtypes."""
        described = describe(inputs)
        if described not in self._functions:
            known = " or ".join(f"({', '.join(inputs)})" for inputs in self._functions)
            raise InputError(
                f"a compiled network takes inputs like those it was compiled for, {known}, but got "
                f"({', '.join(described)}); compile it for these"
            )
        function, signature = self._functions[described]
        leaves = torch.utils._pytree.tree_leaves(list(inputs))
        arguments = [leaves[index] for index in signature.tensors]
        as_numpy = bool(arguments) and all(isinstance(argument, np.ndarray) for argument in arguments)
        tensors = [_aligned(argument) for argument in arguments]
        with _running:
            if getattr(_pool, "threads", None) != self.threads:
                tvm.get_global_func("runtime.config_threadpool")(1, self.threads)
                _pool.threads = self.threads
            results = [_tensor(result) for result in function(*tensors)]
        return signature.pack([result.numpy() for result in results] if as_numpy else results)

    def save(self, path: str | Path) -> None:
        """Write the network as one shared library that runs without PyTorch. Raises StorageError."""
        with storage_errors(Path(path)):
            self._executable.export_library(str(path))


def load_network(path: str | Path) -> CompiledNetwork:
    """The network that `CompiledNetwork.save` wrote. It is machine code: load only files that you trust.

    Raises CheckpointError if the file is no compiled network, or one for another CPU.
    """
    path = Path(path)
    try:
        module = tvm.runtime.load_module(str(path))
        text = relax.VirtualMachine(module, tvm.cpu())[METADATA]()
        metadata = json.loads(bytes(text.numpy()))
    except Exception as error:
        raise CheckpointError(
            f"{path} must be a network that pruneaug compiled for this machine, but {type(error).__name__}: {error}; "
            "compile it here"
        ) from error
    signatures = {name: Signature.from_json(value) for name, value in metadata["functions"].items()}
    return CompiledNetwork(module, signatures, int(metadata["threads"]), CompileReport.from_json(metadata["report"]))


def _aligned(value: Any) -> torch.Tensor:
    """The input as a contiguous tensor in memory that vector loads can read."""
    if isinstance(value, np.ndarray):
        # PyTorch takes no negative strides, and warns about memory that it may not write.
        value = torch.from_numpy(np.require(value, requirements=["C", "W"]))
    tensor: torch.Tensor = value.detach().contiguous()
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def _tensor(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else torch.utils.dlpack.from_dlpack(result)
