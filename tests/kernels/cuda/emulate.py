"""A kernel's CUDA C++, the text that goes to NVRTC, compiled for the CPU and run there; see emulator.h."""

import ctypes
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pruneaug.kernels.cuda.compiler import cuda_source
from pruneaug.kernels.cuda.spmm import cuda_spmm
from pruneaug.kernels.cuda.target import CudaTarget

HERE = Path(__file__).parent
needs_gxx = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
_FLAGS = ("-std=c++17", "-w", "-fPIC")
_OBJECTS = ("emulator", "wgmma")
_HELPER = re.compile(
    r"^__forceinline__ __device__ (.+?) ((?:tvm_builtin|pruneaug)_\w+)\((.*?)\) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL
)
_ASM = re.compile(r'asm volatile\("([\w.:]+)([^"]*)"')
_NOTHING = re.compile(r'asm volatile\(""')  # to the compiler, a change of its operands
_WGMMA = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(f16|bf16)\.\2 \{(.*?)\}, (.*?);")
_KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\((\d+)\) main_kernel\((.*?)\) \{')


def _emulated(match):
    """A helper function whose one PTX instruction is a call of the function of emulator.h with its name."""
    returned, name, parameters, body = match.groups()
    if product := _WGMMA.search(body):
        body = _warpgroup_product(product, [parameter.split()[-1].lstrip("&") for parameter in parameters.split(",")])
    elif _NOTHING.search(body):
        body = ""
    elif asm := _ASM.search(body):
        mnemonic, operands = asm.groups()
        constants = re.findall(r"(?<![%\w])\d+", operands)
        registers = [parameter.split()[-1].lstrip("&*") for parameter in parameters.split(",") if parameter]
        # The registers stand in the text in the order of the parameters.
        assert [int(i) for i in re.findall(r"%(\d+)", operands)] == list(range(len(registers)))
        body = f"  ptx_{re.sub(r'[.:]', '_', mnemonic)}({', '.join(constants + registers)});\n"
    return f"inline {returned} {name}({parameters}) {{\n{body}}}"


def _warpgroup_product(product, registers):
    """Its operands are sums, two descriptors, a predicate that stands for the last register, and four constants."""
    columns, kind, sums, others = product.groups()
    count = int(columns) // 2
    assert re.findall(r"\d+", sums) == [str(i) for i in range(count)]
    left, right, predicate, *constants = others.split(", ")
    assert (left, right, predicate, len(registers)) == (f"%{count}", f"%{count + 1}", "ps0", count + 3)
    addresses = ", ".join(f"&{register}" for register in registers[:count])
    operands = ", ".join([*registers[count:], *constants])
    return (
        f"  float* sums[] = {{{addresses}}};\n"
        f"  ptx_wgmma_mma_async({columns}, {int(kind == 'bf16')}, sums, {operands});\n"
    )


def cpu_source(source):
    """(C++ for the CPU, threads of a block, [(type, name)] of the kernel's parameters)."""
    text = source[source.rindex("#define ushort unsigned short\n#endif\n") :].split("\n", 2)[2]
    text = _HELPER.sub(_emulated, text)
    assert "asm" not in text
    threads, parameters = _KERNEL.search(text).groups()
    pairs = [parameter.replace("* __restrict__", "*").rsplit(" ", 1) for parameter in parameters.split(", ")]
    taken = [
        (f"gpu::Array<{kind.rstrip('*')}>" if kind.endswith("*") else kind, name.removesuffix("_ptr"))
        for kind, name in pairs
    ]
    signature = ", ".join(f"{kind} {name}" for (kind, _), (_, name) in zip(taken, pairs))
    text = re.sub(r'extern "C" __global__ [^;{]*;\n', "", text, count=1)
    text = _KERNEL.sub(f"void main_kernel({signature}) {{", text)
    text, shared = re.subn(r"extern __shared__ __align__\(\d+\) uchar (\w+)\[\];", r"uchar* \1 = gpu::shared;", text)
    assert shared == 1
    numbers = iter(range(len(taken)))
    arguments = [
        f"{kind}{{({kind[11:-1]}*)arrays[{i}], sizes[{i}]}}" if "Array" in kind else f"({kind})numbers[{i}]"
        for i, (kind, _) in zip(numbers, taken)
    ]
    launch = f"""
static void **arrays;
static long *sizes;
static double *numbers;
static void start() {{ main_kernel({", ".join(arguments)}); }}
extern "C" int launch(int grid_x, int grid_y, long shared_bytes, int backwards, int eager, void** arrays_, long* sizes_,
                      double* numbers_, const uint8_t** ends, int array_ends, char* message) {{
  arrays = arrays_, sizes = sizes_, numbers = numbers_;
  return gpu::run_grid(start, grid_x, grid_y, {threads}, shared_bytes, backwards, eager, ends, array_ends, message);
}}
"""
    return f'#include "emulator.h"\n{text}{launch}', int(threads), taken


@cache
def _emulator():
    """A folder with the emulator's objects, compiled once."""
    folder = tempfile.TemporaryDirectory()
    for name in _OBJECTS:
        command = ["g++", *_FLAGS, "-O2", "-c", str(HERE / f"{name}.cc"), "-o", f"{folder.name}/{name}.o"]
        subprocess.run(command, check=True)
    return folder


def compile_for_cpu(source):
    """(library, parameters, threads of a block) of CUDA C++."""
    code, threads, parameters = cpu_source(source)
    with tempfile.TemporaryDirectory() as folder:
        path, library = Path(folder) / "kernel.cc", Path(folder) / "kernel.so"
        path.write_text(code, encoding="utf-8")
        objects = [f"{_emulator().name}/{name}.o" for name in _OBJECTS]
        command = ["g++", *_FLAGS, "-shared", f"-I{HERE}", str(path), *objects]
        built = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True)
        assert built.returncode == 0, built.stderr[:3000]
        return ctypes.CDLL(str(library)), parameters, threads


def target_of(variant):
    """The oldest architecture that has what a variant needs."""
    return CudaTarget("sm_90a" if variant.wgmma else "sm_80")


@cache
def _compiled(shape):
    library, parameters, threads = compile_for_cpu(cuda_source(cuda_spmm(shape), target_of(shape.variant)))
    assert threads == shape.variant.threads
    return library, parameters


def emulate(shape, arguments, *, backwards=False, eager=False, compiled=None):
    """Run the kernel on `arguments` (its parameters by name: arrays, which it writes to, and numbers).

    `backwards` begins with the last warp; `eager` copies at once what else is copied when it is waited for; `compiled`
    is another library and its parameters. Raises RuntimeError for what a GPU would refuse or leave undefined.
    """
    grid = (-(-arguments["tokens"] // shape.variant.tokens), -(-arguments["outputs"] // shape.variant.outputs))
    run(*(compiled or _compiled(shape)), grid, shape.variant.shared_bytes, arguments, backwards, eager)


def run(library, parameters, grid, shared_bytes, arguments, backwards=False, eager=False):
    """Run a library of `compile_for_cpu` for a grid of blocks; see `emulate`."""
    assert {name for _, name in parameters} <= set(arguments)  # what it never reads is no parameter
    count = len(parameters)
    arrays, sizes, numbers = (ctypes.c_void_p * count)(), (ctypes.c_long * count)(), (ctypes.c_double * count)()
    ends = []
    for i, (_, name) in enumerate(parameters):
        value = arguments[name]
        if isinstance(value, np.ndarray):
            assert value.ndim == 1
            arrays[i], sizes[i] = value.ctypes.data, value.size
            ends += [value.ctypes.data, value.ctypes.data + value.nbytes]
        else:
            numbers[i] = value
    message = ctypes.create_string_buffer(256)
    conflicts = library.launch(
        *grid, ctypes.c_long(shared_bytes), backwards, eager, arrays, sizes, numbers,
        (ctypes.c_void_p * len(ends))(*ends), len(ends), message,
    )  # fmt: skip
    if conflicts:
        raise RuntimeError(message.value.decode() or f"{conflicts} bank conflicts of ldmatrix")
