"""Launching compiled kernels on PyTorch's tensors and streams, by CUDA's driver."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pruneaug.errors import InputError, MeasurementError
from pruneaug.kernels.cuda.formats import PIECE
from pruneaug.kernels.cuda.program import ENTRY, FLOAT32, INT32, POINTER, Program
from pruneaug.kernels.cuda.shapes import Launch

_STATIC_LIMIT = 48 << 10  # bytes of shared memory that a block gets without being asked for
_TYPES: Mapping[str, Any] = {POINTER: ctypes.c_void_p, INT32: ctypes.c_int32, FLOAT32: ctypes.c_float}
Argument = torch.Tensor | int | float


class Driver:
    """CUDA's driver, in the context that is current in this thread; PyTorch has one once it has made a tensor on a GPU.

    Raises InputError where the driver or its Python package is missing.
    """

    def __init__(self, api: Any = None) -> None:
        """`api` has the functions of `cuda.bindings.driver`, which it is by default."""
        self._api = _bindings() if api is None else api

    def load(self, program: Program) -> Kernel:
        """A kernel on the GPU. Raises MeasurementError if the GPU does not take it."""
        api = self._api
        module = self._checked("load a kernel", api.cuModuleLoadData(program.cubin))
        function = self._checked("find a kernel", api.cuModuleGetFunction(module, ENTRY.encode()))
        shared = program.shape.variant.shared_bytes
        if shared > _STATIC_LIMIT:
            attribute = api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._checked(f"give {shared} bytes of shared memory", api.cuFuncSetAttribute(function, attribute, shared))
        return Kernel(self, program, module, function)

    def launch(self, function: Any, launch: Launch, stream: int, parameters: int) -> None:
        """Start a function; `parameters` is the address of an array of the addresses of its arguments.

        Raises MeasurementError if the launch is refused, or an earlier kernel has failed.
        """
        answer = self._api.cuLaunchKernel(
            function, *launch.grid, 1, launch.threads, 1, 1, launch.shared_bytes, stream, parameters, 0
        )
        self._checked("launch a kernel", answer)

    def _checked(self, what: str, answer: tuple[Any, ...]) -> Any:
        """What a function of the driver returns behind its status."""
        status, *values = answer
        if int(status):
            _, name = self._api.cuGetErrorName(status)
            _, words = self._api.cuGetErrorString(status)
            raise MeasurementError(
                f"CUDA's driver must {what}, but said {_text(name)}: {_text(words)}; after an error in a kernel "
                "this process cannot use the GPU any more"
            )
        return values[0] if values else None


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """A program that is on the GPU."""

    driver: Driver
    program: Program
    module: Any  # holds the machine code
    function: Any

    def bind(self, launch: Launch, arguments: Mapping[str, Argument]) -> BoundKernel:
        """The kernel with its arguments, by the names of its parameters; others are left out.

        Raises InputError for a missing argument, or a tensor that is not contiguous from a multiple of 16 bytes on.
        """
        values = []
        for name, kind in self.program.parameters:
            if name not in arguments:
                raise InputError(f"{self.program.shape.key} takes {name!r}, but it is not among the arguments; add it")
            values.append(_TYPES[kind](_value(name, kind, arguments[name])))
        return BoundKernel(self, launch, tuple(values), tuple(arguments.values()))


class BoundKernel:
    """A kernel that is started with always the same arguments, which it keeps alive."""

    def __init__(self, kernel: Kernel, launch: Launch, values: tuple[Any, ...], kept: tuple[Argument, ...]) -> None:
        self._kernel, self._launch, self._values, self._kept = kernel, launch, values, kept
        self._parameters = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))

    def __call__(self, stream: int) -> None:
        """Start it on a stream, given by its handle. Raises MeasurementError if it does not start."""
        self._kernel.driver.launch(self._kernel.function, self._launch, stream, ctypes.addressof(self._parameters))


def _value(name: str, kind: str, argument: Argument) -> int | float:
    if kind != POINTER:
        if isinstance(argument, torch.Tensor):
            raise InputError(f"argument {name!r} must be a number, but got a tensor {list(argument.shape)}")
        return argument
    if not isinstance(argument, torch.Tensor) or not argument.is_contiguous() or argument.data_ptr() % PIECE:
        raise InputError(
            f"argument {name!r} must be a contiguous tensor that begins at a multiple of {PIECE} bytes, but got "
            f"{argument if not isinstance(argument, torch.Tensor) else list(argument.stride())}; copy it"
        )
    return argument.data_ptr()


def _bindings() -> Any:
    try:
        from cuda.bindings import driver

        driver.cuDriverGetVersion()
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"kernels are launched by CUDA's driver, but {error}; install NVIDIA's driver and pip install "
            "'pruneaug[gpu]'"
        ) from error
    return driver


def _text(words: bytes | None) -> str:
    return words.decode() if words else "an unknown error"
