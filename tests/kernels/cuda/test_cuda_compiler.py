"""Kernels as CUDA C++, and as machine code by NVRTC, both without a GPU."""

import re
from importlib.util import find_spec

import pytest

from pruneaug.errors import CompileError
from pruneaug.kernels.cuda.compiler import assemble, build, cuda_source
from pruneaug.kernels.cuda.formats import BFLOAT16, FLOAT16, FLOAT32, TF32
from pruneaug.kernels.cuda.shapes import Shape
from pruneaug.kernels.cuda.spmm import cuda_spmm
from pruneaug.kernels.cuda.target import CudaTarget
from pruneaug.kernels.cuda.variants import VARIANTS, parse_cuda_variant

SM80, SM90A = CudaTarget("sm_80"), CudaTarget("sm_90a")
needs_nvrtc = pytest.mark.skipif(
    not find_spec("cuda") or not find_spec("cuda.bindings"), reason="needs NVRTC: pip install 'pruneaug[gpu]'"
)
ADDED_WAITS = re.compile(r"C7517|C7510|instructions are serialized|warpgroup.wait is injected")
SHAPES = {
    "float16 rows": Shape(FLOAT16, parse_cuda_variant("t128n128k32s4w2x2"), "rows", 16, "gelu", True),
    "bfloat16 columns": Shape(BFLOAT16, parse_cuda_variant("t64n64k32s4w2x2"), "columns", 1),
    "tf32 rows": Shape(TF32, parse_cuda_variant("t16n64k64s4w1x2"), "rows", 16),
    "float32 rows": Shape(FLOAT32, parse_cuda_variant("t16n64k64s4w1x2"), "rows", 16),
    "float16 gathered": Shape(FLOAT16, parse_cuda_variant("t64n32k64s4w2x2"), "rows", 1),
    "float32 gathered": Shape(FLOAT32, parse_cuda_variant("t64n64k32s4w2x2"), "rows", 1),
    "tf32 images gathered": Shape(TF32, parse_cuda_variant("t64n64k32s4w2x2"), "rows", 2, image=True),
    "float16 images": Shape(FLOAT16, parse_cuda_variant("t64n32k64s4w2x2"), "rows", 16, image=True),
    "bfloat16 warpgroups": Shape(BFLOAT16, parse_cuda_variant("t128n256k64s4g2x1"), "rows", 64, "gelu", True),
    "float16 warpgroups columns": Shape(FLOAT16, parse_cuda_variant("t256n128k64s4g1x2"), "columns", 1, "gelu", True),
    "bfloat16 warpgroups images": Shape(
        BFLOAT16, parse_cuda_variant("t256n128k64s4g2x1"), "rows", 32, "gelu", True, image=True
    ),
    "bfloat16 images gathered": Shape(BFLOAT16, parse_cuda_variant("t64n32k64s4w2x2"), "rows", 1, image=True),
}
INSTRUCTIONS = {
    "float16 rows": ["cp.async.cg.shared.global", "m8n8.x4.shared.b16", "f32.f16.f16.f32", "st.global.v4.b32"],
    "bfloat16 columns": ["cp.async.cg.shared.global", "m8n8.x4.trans.shared.b16", "f32.bf16.bf16.f32"],
    "tf32 rows": ["m16n8k8.row.col.f32.tf32.tf32.f32", "cvt.rna.tf32.f32", "cp.async.wait_group 2"],
    "float32 rows": ["m16n8k8.row.col.f32.tf32.tf32.f32", "cvt.rna.tf32.f32"],
    "float16 gathered": ["ld.global.nc.b16", "st.shared.b16"],
    "float32 gathered": ["cp.async.ca.shared.global", "cp.async.cg.shared.global"],
    "tf32 images gathered": ["cp.async.ca.shared.global", "ld.global.nc.v4.b32"],
    "float16 images": ["cp.async.cg.shared.global", "ld.global.nc.v4.b32", "f32.f16.f16.f32"],
    "bfloat16 images gathered": ["ld.global.nc.b16", "st.shared.b16", "ld.global.nc.v4.b32"],
    "bfloat16 warpgroups": ["m64n256k16.f32.bf16.bf16", "cp.async.wait_group 1", "fence.proxy.async.shared::cta"],
    "float16 warpgroups columns": ["m64n256k16.f32.f16.f16", "ps0, 1, 1, 0, 1;", "wgmma.wait_group.sync.aligned 1"],
    "bfloat16 warpgroups images": ["m64n128k16.f32.bf16.bf16", "ps0, 1, 1, 0, 0;", "ld.global.nc.v4.b32"],
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_source_has_the_instructions(name):
    source = cuda_source(cuda_spmm(SHAPES[name]), SM90A if SHAPES[name].variant.wgmma else SM80)
    assert all(
        f" {' '.join(instruction.split())}" in source or instruction in source for instruction in INSTRUCTIONS[name]
    )
    assert source.count("__syncthreads()") == 1  # in the loop over tiles, through a function
    assert f"__launch_bounds__({SHAPES[name].variant.threads})" in source


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name", [name for name in SHAPES if "warpgroups" not in name])
def test_machine_code_keeps_its_sums_in_registers(name, arch):
    target, variant = CudaTarget(arch), SHAPES[name].variant
    code = assemble(cuda_source(cuda_spmm(SHAPES[name]), target), target)
    assert code.cubin.startswith(b"\x7fELF")
    assert code.spilled_bytes == 0
    assert variant.least_registers <= code.registers <= target.registers(variant.threads)


@pytest.mark.slow
@needs_nvrtc
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_each_tile_of_warps_fits_a_gpus_registers(variant):
    shape = Shape(FLOAT16, variant, "rows", 16, "gelu", residual=True)
    code = assemble(cuda_source(cuda_spmm(shape), SM80), SM80)
    assert code.spilled_bytes == 0
    assert code.registers <= SM80.registers(variant.threads)


@needs_nvrtc
@pytest.mark.parametrize("name", [name for name in SHAPES if "warpgroups" in name])
def test_the_compiler_adds_no_wait_for_products_of_warpgroups(name):
    """Where it finds that sums of running products are used, it adds waits, or runs them one by one, and says so."""
    source = cuda_source(cuda_spmm(SHAPES[name]), SM90A)
    code = assemble(source, SM90A)
    assert code.spilled_bytes == 0
    assert SHAPES[name].variant.least_registers <= code.registers <= SM90A.registers(SHAPES[name].variant.threads)
    assert not ADDED_WAITS.search(code.log)
    ((sums, commit),) = re.findall(
        r"pruneaug_settle\((\w+)\[0\]\);.*?(\w+commit_group_sync_aligned\(\);)", source, re.DOTALL
    )
    used = f"{commit} {sums}[0] += 1.0f;".join(source.rsplit(commit, 1))
    assert ADDED_WAITS.search(assemble(used, SM90A).log)


@needs_nvrtc
def test_a_source_that_nvrtc_refuses_is_a_bug_of_ours():
    with pytest.raises(CompileError, match="must take the source of a kernel, but said"):
        assemble("__global__ void kernel() { undeclared(); }", SM80)


def test_a_function_for_another_machine_is_a_bug_of_ours():
    with pytest.raises(CompileError, match="could not make a CUDA kernel for sm_80"):
        build(None, SM80)
