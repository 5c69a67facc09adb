"""Kernels as CUDA C++, and as machine code by NVRTC, both without a GPU."""

from importlib.util import find_spec

import pytest

from pruneaug.errors import CompileError
from pruneaug.kernels.cuda.compiler import assemble, build, cuda_source
from pruneaug.kernels.cuda.formats import BFLOAT16, FLOAT16, FLOAT32, TF32
from pruneaug.kernels.cuda.shapes import Shape
from pruneaug.kernels.cuda.spmm import cuda_spmm
from pruneaug.kernels.cuda.target import CudaTarget
from pruneaug.kernels.cuda.variants import parse_cuda_variant

SM80 = CudaTarget("sm_80")
needs_nvrtc = pytest.mark.skipif(
    not find_spec("cuda") or not find_spec("cuda.bindings"), reason="needs NVRTC: pip install 'pruneaug[gpu]'"
)
SHAPES = {
    "float16 rows": Shape(FLOAT16, parse_cuda_variant("t128n128k32s4w2x2"), "rows", 16, "gelu", True),
    "bfloat16 columns": Shape(BFLOAT16, parse_cuda_variant("t64n64k32s4w2x2"), "columns", 1),
    "tf32 rows": Shape(TF32, parse_cuda_variant("t16n64k64s4w1x2"), "rows", 16),
    "float32 rows": Shape(FLOAT32, parse_cuda_variant("t16n64k64s4w1x2"), "rows", 16),
    "float16 gathered": Shape(FLOAT16, parse_cuda_variant("t64n32k64s4w2x2"), "rows", 1),
    "float16 images": Shape(FLOAT16, parse_cuda_variant("t64n32k64s4w2x2"), "rows", 16, image=True),
    "bfloat16 images gathered": Shape(BFLOAT16, parse_cuda_variant("t64n32k64s4w2x2"), "rows", 1, image=True),
}
INSTRUCTIONS = {
    "float16 rows": ["cp.async.cg.shared.global", "m8n8.x4.shared.b16", "f32.f16.f16.f32", "st.global.v4.b32"],
    "bfloat16 columns": ["cp.async.cg.shared.global", "m8n8.x4.trans.shared.b16", "f32.bf16.bf16.f32"],
    "tf32 rows": ["m16n8k8.row.col.f32.tf32.tf32.f32", "cvt.rna.tf32.f32", "cp.async.wait_group 2"],
    "float32 rows": ["m16n8k8.row.col.f32.tf32.tf32.f32", "cvt.rna.tf32.f32"],
    "float16 gathered": ["ld.global.nc.b16", "st.shared.b16"],
    "float16 images": ["cp.async.cg.shared.global", "ld.global.nc.v4.b32", "f32.f16.f16.f32"],
    "bfloat16 images gathered": ["ld.global.nc.b16", "st.shared.b16", "ld.global.nc.v4.b32"],
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_source_has_the_instructions(name):
    source = cuda_source(cuda_spmm(SHAPES[name]), SM80)
    assert all(
        f" {' '.join(instruction.split())}" in source or instruction in source for instruction in INSTRUCTIONS[name]
    )
    assert source.count("__syncthreads()") == 1  # in the loop over tiles, through a function
    assert f"__launch_bounds__({SHAPES[name].variant.threads})" in source


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name", ["float16 rows", "bfloat16 columns", "float32 rows", "float16 images"])
def test_machine_code_keeps_its_sums_in_registers(name, arch):
    target, variant = CudaTarget(arch), SHAPES[name].variant
    code = assemble(cuda_source(cuda_spmm(SHAPES[name]), target), target)
    assert code.cubin.startswith(b"\x7fELF")
    assert code.spilled_bytes == 0
    assert variant.least_registers <= code.registers <= target.registers(variant.threads)


@needs_nvrtc
def test_a_source_that_nvrtc_refuses_is_a_bug_of_ours():
    with pytest.raises(CompileError, match="must take the source of a kernel, but said"):
        assemble("__global__ void kernel() { undeclared(); }", SM80)


def test_a_function_for_another_machine_is_a_bug_of_ours():
    with pytest.raises(CompileError, match="could not make a CUDA kernel for sm_80"):
        build(None, SM80)
