"""CUDA's driver on a machine without a GPU: "machine code" is CUDA C++, which the emulator runs in launches."""

import ctypes
import gc
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from emulate import compile_for_cpu, run

from pruneaug.kernels.cuda.compiler import cuda_source
from pruneaug.kernels.cuda.program import Program, parameters_of
from pruneaug.kernels.cuda.spmm import cuda_spmm
from pruneaug.kernels.cuda.target import CudaTarget

STATIC_LIMIT = 48 << 10
INVALID, NOT_FOUND = 1, 500
_BYTES = {"half": 2, "nv_bfloat16": 2}


def fake_program(shape, arch="sm_80"):
    """A program for this driver."""
    source = cuda_source(cuda_spmm(shape), CudaTarget(arch))
    return Program(shape, arch, parameters_of(source), 32, 0, source.encode())


@dataclass
class Function:
    library: object
    parameters: list
    threads: int
    shared_limit: int = STATIC_LIMIT


class FakeApi:
    """The functions of `cuda.bindings.driver` that are used, for one thread; `launches` are those that were taken."""

    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")

    def __init__(self):
        self.launches = []

    def cuModuleLoadData(self, code):
        if b"main_kernel" not in code:
            return INVALID, None
        return 0, compile_for_cpu(code.decode())

    def cuModuleGetFunction(self, module, name):
        return (0, Function(*module)) if name == b"main_kernel" else (NOT_FOUND, None)

    def cuFuncSetAttribute(self, function, attribute, value):
        assert attribute == "shared"
        function.shared_limit = value
        return (0,)

    def cuGetErrorName(self, status):
        return 0, {INVALID: b"CUDA_ERROR_INVALID_VALUE"}.get(status)

    def cuGetErrorString(self, status):
        return 0, {INVALID: b"invalid argument"}.get(status)

    def cuLaunchKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra):
        if (gz, bx, by, bz, extra) != (1, function.threads, 1, 1, 0) or shared > function.shared_limit:
            return (INVALID,)
        run(function.library, function.parameters, (gx, gy), shared, _arguments(function.parameters, parameters))
        self.launches.append(((gx, gy), bx, shared, stream))
        return (0,)


def _arguments(parameters, address):
    """What lies where the addresses at `address` point to, by name."""
    addresses = (ctypes.c_void_p * len(parameters)).from_address(address)
    found = {}
    for (kind, name), at in zip(parameters, addresses):
        if "Array" in kind:
            pointer = ctypes.c_void_p.from_address(at).value
            size = _bytes_at(pointer)
            width = _BYTES.get(kind[len("gpu::Array<") : -1], 4)
            dtype = np.int16 if width == 2 else np.int32
            found[name] = np.frombuffer((ctypes.c_char * size).from_address(pointer), dtype)
        else:
            found[name] = (ctypes.c_float if kind == "float" else ctypes.c_int32).from_address(at).value
    return found


def _bytes_at(pointer):
    """How much memory of a tensor begins here."""
    for tensor in (value for value in gc.get_objects() if type(value) is torch.Tensor):
        storage = tensor.untyped_storage()
        if 0 <= pointer - storage.data_ptr() < storage.nbytes():
            return storage.data_ptr() + storage.nbytes() - pointer
    raise AssertionError("an argument points to no tensor")
