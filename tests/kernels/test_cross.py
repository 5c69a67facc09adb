"""Kernels for another machine: they are compiled for aarch64, and compute what they should there, under an emulator."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm_ffi
from torch import nn

from pruneaug.errors import CompileError, DeviceError
from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.cross import Libraries, find_compiler, linked_by
from pruneaug.kernels.layers import from_memory, layer_calls, to_memory
from pruneaug.kernels.variants import candidates
from pruneaug.kernels.weights import Weights
from pruneaug.network.layers import find_layers
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.profiler.op_data import OpData
from pruneaug.runtime.compiler import build_programs
from pruneaug.runtime.graph import export_program
from pruneaug.runtime.network import link_library
from pruneaug.sparsity.patterns import parse_pattern

ARM = CpuTarget(lanes=4, registers=32, threads=2, mcpu="cortex-a72", triple="aarch64-unknown-linux-gnu")
AARCH64 = 183  # the number of the machine in the header of an ELF file
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
RUN = Path(__file__).parent / "run_chain.c"
EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp" / "run_network.cpp"
HEADERS = tvm_ffi.libinfo.find_include_path()

needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"needs {COMPILER}")
needs_emulator = pytest.mark.skipif(
    shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None, reason=f"needs {COMPILER} and {EMULATOR}"
)
OPS = [
    (LinearOp(tokens=37, in_features=48, out_features=40), "block:4x1"),
    (LinearOp(tokens=1, in_features=64, out_features=48), "block:8x1"),
    (Conv2dOp(1, 12, 9, 11, 16, (3, 3), padding=(1, 1, 1, 1)), "block:1x1"),
    (Conv2dOp(1, 8, 12, 12, 16, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1)), "dense"),  # two kernels: it is copied
]


def machine_of(path):
    return int.from_bytes(path.read_bytes()[18:20], "little")


def compile_for_arm(model, inputs, path):
    """The path, to which the network was compiled."""
    programs = {"main": export_program(model, inputs)}
    executable, _ = build_programs(programs, find_layers(model, inputs), {}, {}, ARM)
    link_library(executable, path, path, linked_by(find_compiler("aarch64", None)))
    return path


@pytest.fixture(scope="module")
def libraries():
    return Libraries(ARM)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """Runs a chain's library under the emulator."""
    program = tmp_path_factory.mktemp("emulated") / "run_chain"
    command = [COMPILER, "-O1", "-Wall", "-Werror", f"-I{HEADERS}", "-rdynamic", "-o", program, RUN, "-ldl"]
    subprocess.run(command, check=True)

    def run(*words):
        command = [EMULATOR, "-L", "/usr/aarch64-linux-gnu", program, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.returncode, done.stderr)

    return run


def chain_files(folder, x, calls):
    """The words that `run_chain` takes for these calls on the input, and the file that it writes."""
    paths, numbers, layout = [], [], [1, len(calls)]

    def array(values):
        paths.append(folder / f"{len(paths)}.{values.dtype}")
        paths[-1].write_bytes(np.ascontiguousarray(values).tobytes())
        return len(paths) - 1

    x_number = array(x)
    for index, call in enumerate(calls):
        constants = [array(constant) for constant in call.constants]
        y = array(np.full(call.size, np.nan, np.float32))
        numbers += [x_number, *constants, y]
        layout.append(len(constants) + 2)
        x_number = y
        assert index == len(calls) - 1 or call.size
    (folder / "layout").write_bytes(np.array([*layout, *numbers], np.int64).tobytes())
    return [folder / "layout", *paths, folder / "output"], folder / "output"


@pytest.mark.slow
@needs_emulator
@pytest.mark.parametrize(("op", "pattern"), OPS, ids=lambda value: getattr(value, "key", value))
def test_kernels_for_aarch64_compute_what_they_should(op, pattern, libraries, emulated, tmp_path):
    data, block = OpData(op), parse_pattern(pattern)
    mask = data.mask(block, 0.5, 0)
    rows = 1 if block is None else block.rows
    variants = candidates(op, rows, 0.5 if block else 0.0, lanes=4, registers=32, threads=2, most=2)
    for number, variant in enumerate(variants):
        x, y, calls = layer_calls(op, Weights(data.matrix, mask, data.bias), variant, ARM)
        library = libraries.chain(calls)
        assert machine_of(library) == AARCH64
        folder = tmp_path / str(number)
        folder.mkdir()
        flat = data.x.reshape(-1) if x is None else to_memory(data.x, x)
        words, output = chain_files(folder, flat.numpy(), calls)
        emulated(library, *words)
        got = torch.from_numpy(np.fromfile(output, np.float32))
        result = got[None] if y is None else from_memory(got, y)
        assert data.relative_error(result, mask) < 1e-5


@pytest.mark.slow
@needs_compiler
def test_a_network_is_compiled_for_aarch64(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 10), nn.Softmax(-1),
    ).eval()  # fmt: skip
    inputs = (torch.randn(1, 3, 8, 8),)
    assert machine_of(compile_for_arm(model, inputs, tmp_path / "network.so")) == AARCH64


@pytest.mark.slow
@needs_emulator
@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or "TVM_AARCH64" not in os.environ,
    reason="needs aarch64-linux-gnu-g++, and the packages apache-tvm and apache-tvm-ffi for aarch64, unpacked in the "
    "folder TVM_AARCH64",
)
def test_a_network_for_aarch64_computes_what_it_should(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8), nn.LayerNorm(8)).eval()
    ids = torch.zeros(2, 5, dtype=torch.int64)  # the program's own input: it feeds zeros for integers
    network = compile_for_arm(model, (ids,), tmp_path / "network.so")
    site = Path(os.environ["TVM_AARCH64"])
    folders = [site / "tvm_ffi" / "lib", site / "tvm" / "lib"]
    searched = [f"-Wl,-rpath,{folder},-rpath-link,{folder}" for folder in folders] + [
        f"-L{folder}" for folder in folders
    ]
    libraries = ["-Wl,--no-as-needed", *searched, "-ltvm_runtime_extra", "-ltvm_runtime", "-ltvm_ffi"]
    program = tmp_path / "run_network"
    command = ["aarch64-linux-gnu-g++", "-std=c++17", "-o", program, EXAMPLE, "-isystem", HEADERS, *libraries]
    subprocess.run([*command, "-Wl,--allow-shlib-undefined"], check=True)
    emulated = [EMULATOR, "-L", "/usr/aarch64-linux-gnu", program, network, "1"]
    out = subprocess.run(emulated, capture_output=True, text=True, check=True).stdout
    printed = re.search(r"^output +(.*) \.\.\. ", out, flags=re.MULTILINE)
    got = torch.tensor([float(value) for value in printed[1].split()])
    torch.testing.assert_close(got, model(ids).detach().flatten()[: len(got)], atol=2e-5, rtol=1e-4)


@needs_compiler
def test_kernels_for_aarch64_use_its_vectors(libraries):
    data = OpData(LinearOp(tokens=32, in_features=32, out_features=32))
    (variant,) = candidates(data.op, 4, 0.5, lanes=4, registers=32, threads=2, most=1)
    weights = Weights(data.matrix, data.mask(parse_pattern("block:4x1"), 0.5, 0), data.bias)
    library = libraries.chain(layer_calls(data.op, weights, variant, ARM)[2])
    code = subprocess.run(["aarch64-linux-gnu-objdump", "-d", library], capture_output=True, text=True, check=True)
    assert "fmla\tv" in code.stdout


def test_each_library_is_built_once():
    target = CpuTarget(lanes=8, registers=16, threads=1, mcpu="x86-64-v3", triple="x86_64-unknown-linux-gnu")
    libraries = Libraries(target)
    assert libraries.facts() == libraries.facts()


def test_a_compiler_that_is_not_there_is_named():
    with pytest.raises(DeviceError, match=r"'no-such-gcc -O3' is not found; install it .*gcc-aarch64-linux-gnu"):
        find_compiler("aarch64", "no-such-gcc -O3")


def test_a_compiler_that_fails_says_why(tmp_path):
    with pytest.raises(CompileError, match=r"nothing\.o.*platform\.remote\.compiler"):
        linked_by(["cc"])(str(tmp_path / "x.so"), ["nothing.o"])
