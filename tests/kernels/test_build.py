"""Compiling kernels: for this machine, once, and for others without running them."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.build import Builder, CpuTarget, compile_kernel

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
STACK = r"\(%r[bs]p.*%[xyz]mm|%[xyz]mm.*\(%r[bs]p|\bq\d+.*\[(sp|x29)"  # a vector register to or from the stack
TILES = {
    "avx512": [(1, 12), (2, 12), (4, 6), (8, 3), (14, 2), (16, 1)],
    "avx2": [(1, 12), (2, 6), (3, 4), (8, 1), (14, 1)],
    "neon": [(1, 12), (2, 12), (3, 9), (8, 3), (14, 2), (16, 1)],
}


def basic_blocks(assembly):
    """The instructions between labels: [[instruction, ...], ...]."""
    return [
        [line.strip() for line in block.splitlines() if re.match(r"\s+\w", line)]
        for block in re.split(r"^\.?L\w+:", assembly, flags=re.MULTILINE)
    ]


def count(pattern, lines):
    return sum(bool(re.search(pattern, line)) for line in lines)


@pytest.mark.parametrize(("isa", "tile"), [(isa, tile) for isa in TILES for tile in TILES[isa]])
def test_the_inner_loop_is_one_vector_instruction_a_product_and_spills_nothing(isa, tile):
    height, vectors = tile
    assembly = compile_kernel(TARGETS[isa], "spmm", height, vectors, TARGETS[isa].lanes).mod.inspect_source("s")
    (loop,) = [block for block in basic_blocks(assembly) if count(PRODUCTS[isa], block)]
    assert count(PRODUCTS[isa], loop) == height * vectors
    assert count(STACK, loop) == 0


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize(("name", "argument"), [("pad_phases", 1), ("pad_phases", 2), ("transpose", 16)])
def test_the_layout_kernels_compile_for_every_machine(isa, name, argument):
    assert "ret" in compile_kernel(TARGETS[isa], name, argument).mod.inspect_source("s")


def test_another_machines_kernel_is_written_as_an_object_file(tmp_path):
    path = tmp_path / "spmm.o"
    compile_kernel(TARGETS["neon"], "spmm", 8, 2, 4).mod.write_to_file(str(path), "o")
    header = path.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64


def test_a_kernel_is_compiled_once_even_when_threads_ask_for_it_at_once(builder):
    with ThreadPoolExecutor(4) as pool:
        kernels = set(pool.map(lambda _: builder.kernel("transpose", 8), range(8)))
    assert len(kernels) == 1
    assert builder.kernel("transpose", 4) not in kernels


def test_an_unknown_cpu_is_refused_rather_than_compiled_for_slowly():
    with pytest.raises(
        InputError, match=r"mcpu must be a CPU that LLVM knows for .*, but got 'pentium-9'; leave it out"
    ):
        Builder(CpuTarget(16, 32, 2, "pentium-9")).kernel("transpose", 16)


def test_a_kernel_that_does_not_compile_is_an_error_that_names_it(builder):
    with pytest.raises(CompileError, match=r"kernel spmm\(1, 2\) for CpuTarget\(.*please report it") as caught:
        builder.kernel("spmm", 1, 2)
    assert isinstance(caught.value.__cause__, TypeError)
