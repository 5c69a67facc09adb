"""Compiling kernels: for this machine, once, and for others without running them."""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels import build
from pruneaug.kernels.build import Builder, CpuTarget, compile_function
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.copies import phase_copy, to_plain_image, to_plain_tokens, tokens_from_plain
from pruneaug.kernels.elementwise import binary
from pruneaug.kernels.gemv import gemv
from pruneaug.kernels.planes import image_planes, token_planes
from pruneaug.kernels.spmm import spmm

TARGETS = {
    "avx512": CpuTarget(16, 32, 2, "skylake-avx512", "x86_64-linux-gnu"),
    "avx2": CpuTarget(8, 16, 2, "haswell", "x86_64-linux-gnu"),
    "neon": CpuTarget(4, 32, 2, "cortex-a72", "aarch64-linux-gnu"),
}
PRODUCTS = {
    "avx512": r"vfmadd\d+ps\s.*%zmm",
    "avx2": r"vfmadd\d+ps\s.*%ymm",
    "neon": r"fmla\s+v\d+\.4s",
}
# A vector register to or from the stack.
STACK = r"\(%rsp.*%[xyz]mm|%[xyz]mm.*\(%rsp|\(%rbp\).*%[xyz]mm|%[xyz]mm.*\(%rbp\)|\bq\d+.*\[(sp|x29)"
TILES = {
    "avx512": [(1, 12), (2, 12), (4, 6), (8, 3), (14, 2), (16, 1)],
    "avx2": [(1, 12), (2, 6), (3, 4), (8, 1), (14, 1)],
    "neon": [(1, 12), (2, 12), (3, 9), (8, 3), (12, 2), (16, 1)],
}


def basic_blocks(assembly):
    """The instructions between labels: [[instruction, ...], ...]."""
    return [
        [line.strip() for line in block.splitlines() if re.match(r"\s+\w", line)]
        for block in re.split(r"^\.?L\w+:", assembly, flags=re.MULTILINE)
    ]


def count(pattern, lines):
    return sum(bool(re.search(pattern, line)) for line in lines)


def assembly_of(isa, function):
    return compile_function(TARGETS[isa], "kernel", function).mod.inspect_source("s")


def inner_loops(isa, function):
    """The basic blocks that multiply and add."""
    return [block for block in basic_blocks(assembly_of(isa, function)) if count(PRODUCTS[isa], block)]


@pytest.mark.parametrize(("isa", "tile"), [(isa, tile) for isa in TILES for tile in TILES[isa]])
def test_the_inner_loop_is_one_vector_instruction_a_product_and_spills_nothing(isa, tile):
    height, vectors = tile
    (loop,) = inner_loops(isa, spmm(height, vectors, 0, TARGETS[isa].lanes, "none", False, True))
    assert count(PRODUCTS[isa], loop) == height * vectors
    assert count(STACK, loop) == 0


@pytest.mark.parametrize("isa", TARGETS)
def test_a_narrower_last_tile_has_an_inner_loop_of_its_own(isa):
    loops = inner_loops(isa, spmm(4, 3, 2, TARGETS[isa].lanes, "none", False, True))
    products = {count(PRODUCTS[isa], loop) for loop in loops}
    # LLVM may compute two columns in a turn of the loop of the narrow one.
    assert {8, 12} <= products <= {8, 12, 16}
    assert all(count(STACK, loop) == 0 for loop in loops)


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("vectors", [1, 4])
def test_the_inner_loop_of_a_single_token_keeps_its_sums_in_registers(isa, vectors):
    lanes = TARGETS[isa].lanes
    loops = inner_loops(isa, gemv(vectors * lanes, lanes, "none", False))
    assert max(count(PRODUCTS[isa], loop) for loop in loops) == 8
    assert all(count(STACK, loop) == 0 for loop in loops)


@pytest.mark.parametrize("isa", TARGETS)
def test_the_layout_kernels_compile_for_every_machine(isa):
    lanes = TARGETS[isa].lanes
    image = image_planes(1, 3, 5, 7, lanes, pitch=8, before=9, after=9)
    tokens = token_planes(2, 5, 17, lanes)
    for call in (
        phase_copy((1, 3, 10, 14), image, ((0, 1),), (2, 2), lanes),
        to_plain_image(image, lanes),
        to_plain_tokens(tokens, lanes),
        tokens_from_plain(tokens, lanes),
    ):
        assert "ret" in assembly_of(isa, call.function)


def test_another_machines_kernel_is_written_as_an_object_file(tmp_path):
    path = tmp_path / "spmm.o"
    compile_function(TARGETS["neon"], "spmm", spmm(4, 1, 0, 4, "none", False, True)).mod.write_to_file(str(path), "o")
    header = path.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64


def added(channels):
    planes = token_planes(1, channels, 16, 16)
    return binary(planes, "add", np.array([2.0], np.float32), 16)


def test_a_kernel_is_compiled_once_even_when_threads_ask_for_it_at_once(builder, monkeypatch):
    compiled = []
    compile_once = build.compile_function
    monkeypatch.setattr(build, "compile_function", lambda *args: compiled.append(args) or compile_once(*args))
    own, call = Builder(builder.target), added(3)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: own.run(call, torch.ones(48)), range(8)))
    assert len(compiled) == 1
    assert all(torch.equal(result, torch.full((48,), 3.0)) for result in results)


def test_a_bound_kernel_owns_its_constants(builder):
    call = added(3)
    kernel = builder.bound(call)
    call.constants[0][:] = 100.0
    y = torch.empty(call.size)
    kernel(torch.ones(48), y)
    assert torch.equal(y, torch.full((48,), 3.0))


def test_an_unknown_cpu_is_refused_rather_than_compiled_for_slowly():
    with pytest.raises(
        InputError, match=r"mcpu must be a CPU that LLVM knows for .*, but got 'pentium-9'; leave it out"
    ):
        Builder(CpuTarget(16, 32, 2, "pentium-9")).bound(added(3))


class NoFunction:
    def with_attr(self, *args):
        return self


def test_a_kernel_that_does_not_compile_is_an_error_that_names_it(builder):
    broken = KernelCall("broken", NoFunction(), (), 1)
    with pytest.raises(CompileError, match=r"kernel broken for CpuTarget\(.*please report it") as caught:
        builder.bound(broken)
    assert caught.value.__cause__ is not None
