"""The emulator itself: instructions against TVM's own maps of their operands, and what it must not let pass."""

import numpy as np
import pytest
import torch
from emulate import compile_for_cpu, emulate, needs_gxx, run
from test_cuda_products import SM80, array

from pruneaug.kernels.cuda.compiler import cuda_source
from pruneaug.kernels.cuda.formats import FLOAT16
from pruneaug.kernels.cuda.products import linear_product
from pruneaug.kernels.cuda.variants import parse_cuda_variant
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import LinearOp

pytestmark = needs_gxx
MMA = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
LDMATRIX = "ldmatrix.sync.aligned.m8n8.x4{}.shared.b16"
ARRAYS = ("tile", "loaded", "a", "b", "c")
# A 16x16 tile of each operand: four registers of the left side, two for each of the right side's halves.
KERNEL = """#define ushort unsigned short
#endif
__forceinline__ __device__ void tvm_builtin_load(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, uint32_t at) {
  asm volatile("LDMATRIX {%0, %1, %2, %3}, [%4];");
}
__forceinline__ __device__ void tvm_builtin_mma(float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1,
    uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, float c0, float c1, float c2, float c3) {
  asm volatile("MMA {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};");
}
extern "C" __global__ void __launch_bounds__(32) main_kernel(PARAMETERS) {
  extern __shared__ __align__(128) uchar memory[];
  int lane = threadIdx.x;
  for (int i = 0; i < 4; ++i) ((uint*)memory)[lane * 4 + i] = tile_ptr[lane * 4 + i];
  __syncthreads();
  uint r[4];
  tvm_builtin_load(r[0], r[1], r[2], r[3], __cvta_generic_to_shared(memory + (lane % 16) * 32 + lane / 16 * 16));
  for (int i = 0; i < 4; ++i) loaded_ptr[lane * 4 + i] = r[i];
  uint* a = &a_ptr[lane * 4];
  for (int half = 0; half < 2; ++half) {
    uint* b = &b_ptr[lane * 4 + half * 2];
    float* c = &c_ptr[lane * 8 + half * 4];
    tvm_builtin_mma(c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]);
  }
}
""".replace(
    "PARAMETERS",
    ", ".join(f"{kind}* __restrict__ {name}_ptr" for kind, name in zip(["uint"] * 4 + ["float"], ARRAYS)),
)


def layout(i, j):
    """(lane, value) of a tile's row and column, as TVM's tensor intrinsics map them.

    It is `tvm.s_tir.tensor_intrin.cuda.shared_16x16_to_ldmatrix_32x8_layout`, whose import takes ten seconds.
    """
    return 4 * (i % 8) + (j % 8) // 2, 4 * (j // 8) + (i // 8) * 2 + j % 2


def in_lanes(tile):
    """A 16x16 tile as lanes [32, 8] hold it."""
    lanes = np.empty((32, 8), tile.dtype)
    for i in range(16):
        for j in range(16):
            lanes[layout(i, j)] = tile[i, j]
    return lanes


@pytest.mark.parametrize("transposed", [False, True])
def test_instructions_agree_with_the_maps_of_tvm(transposed):
    rng = np.random.default_rng(0)
    a, b, tile = (rng.standard_normal((16, 16)).astype(np.float16) for _ in range(3))
    source = KERNEL.replace("LDMATRIX", LDMATRIX.format(".trans" if transposed else "")).replace("MMA", MMA)
    library, parameters, _ = compile_for_cpu(source)
    # A lane's registers of the right side: those of its columns 0 to 7, then those of 8 to 15. In the map of the
    # transposed tile they are [lane, half of k, half of the columns].
    right = in_lanes(b.T).view(np.uint32).reshape(32, 2, 2).transpose(0, 2, 1)
    arguments = {
        "tile": tile.reshape(-1).view(np.uint32).copy(),
        "loaded": np.zeros(128, np.uint32),
        "a": in_lanes(a).reshape(-1).view(np.uint32),
        "b": np.ascontiguousarray(right).reshape(-1),
        "c": np.zeros(256, np.float32),
    }
    with pytest.raises(RuntimeError, match="bank conflicts"):  # rows of 32 bytes in their own order
        run(library, parameters, (1, 1), 512, arguments)
    held = tile
    if transposed:  # each of the four 8x8 matrices, in its place
        held = np.block([[tile[:8, :8].T, tile[:8, 8:].T], [tile[8:, :8].T, tile[8:, 8:].T]])
    np.testing.assert_array_equal(arguments["loaded"].view(np.float16).reshape(32, 8), in_lanes(held))
    want = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(arguments["c"].reshape(32, 8), in_lanes(want), rtol=1e-6, atol=1e-6)


MISTAKES = {
    "a barrier that is missing": ("    tvm_builtin_cuda_cta_sync();\n", ""),
    "a wait for too few copies": ("cp.async.wait_group 1;", "cp.async.wait_group 2;"),
    "copies of no group": ("    tvm_builtin_ptx_cp_async_commit_group_async_commit_group();\n", ""),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_synchronisation_show(mistake):
    variant, generator = parse_cuda_variant("t64n32k32s3w2x1"), torch.Generator().manual_seed(0)
    op = LinearOp(64, 320, 32)
    x, matrix = torch.randn(64, 320, generator=generator).half(), torch.randn(32, 320, generator=generator).half()
    call = linear_product(op, Weights(matrix.float()), 1000, variant, FLOAT16, "rows", SM80, Epilogue())
    before, after = MISTAKES[mistake]
    source = cuda_source(call.function, SM80)
    assert before in source
    library, parameters, _ = compile_for_cpu(source.replace(before, after))
    wrong = 0
    for backwards in (False, True):
        for eager in (False, True):
            y = torch.zeros(call.y_size, dtype=torch.float16)
            arguments = {"x": array(x, FLOAT16), "y": array(y, FLOAT16), **call.constants, **call.scalars._asdict()}
            emulate(call.shape, arguments, backwards=backwards, eager=eager, compiled=(library, parameters))
            want = x.double() @ matrix.double().T
            wrong += not torch.allclose(y.view(64, 32).double(), want, rtol=1e-2, atol=1e-2)
    assert wrong
