"""The emulator's wgmma against layouts of the PTX ISA, written out as shapes and strides, and CuTe's map of sums."""

from dataclasses import dataclass

import numpy as np
import pytest
from emulate import compile_for_cpu, needs_gxx, run

pytestmark = needs_gxx
SHARED = 32768
KERNEL = """#define ushort unsigned short
#endif
__forceinline__ __device__ void tvm_builtin_store(uint32_t to, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;");
}
__forceinline__ __device__ void tvm_builtin_proxy() {
  asm volatile("fence.proxy.async.shared::cta;");
}
__forceinline__ __device__ void tvm_builtin_fence() {
  asm volatile("wgmma.fence.sync.aligned;");
}
__forceinline__ __device__ void tvm_builtin_product(REGISTERS, uint64_t a, uint64_t b, uint32_t adds) {
  asm volatile("{ .reg .pred ps0; setp.ne.b32 ps0, %LAST, 0; wgmma.mma_async.sync.aligned.m64nCOLUMNSk16.f32.f16.f16
{OPERANDS}, %FIRST, %SECOND, ps0, 1, 1, TRANSPOSED_A, TRANSPOSED_B; }");
}
__forceinline__ __device__ void tvm_builtin_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;");
}
__forceinline__ __device__ void tvm_builtin_wait() {
  asm volatile("wgmma.wait_group.sync.aligned 0;");
}
extern "C" __global__ void __launch_bounds__(128) main_kernel(uint* __restrict__ words_ptr, float* __restrict__ d_ptr) {
  extern __shared__ __align__(1024) uchar memory[];
  for (int i = threadIdx.x; i < SHARED_WORDS; i += 128)
    tvm_builtin_store(__cvta_generic_to_shared(memory + i * 4), words_ptr[i]);
  tvm_builtin_proxy();
  __syncthreads();
  float* d = &d_ptr[threadIdx.x * SUMS];
  tvm_builtin_fence();
  tvm_builtin_product(D_VALUES, A_DESCRIPTORull, B_DESCRIPTORull, ADDS);
  tvm_builtin_commit();
  tvm_builtin_wait();
}
"""


@dataclass(frozen=True)
class Layout:
    """Where a value lies, in values: ((shape of M or N), (shape of K)) and the strides, both with the first fastest."""

    shape: tuple
    stride: tuple
    bits: int  # of an address that are swizzled
    leading: int  # bytes
    distance: int  # bytes
    transposed: bool
    start: int = 0  # bytes

    @property
    def size(self):
        return int(np.prod(self.shape[0]))

    def address(self, mn, k):
        at = 0
        for number, shape, stride in zip((mn, k), self.shape, self.stride):
            for extent, step in zip(shape, stride):
                at += number % extent * step
                number //= extent
        address = self.start + 2 * at
        for bit in range(self.bits):
            address ^= (address >> (7 + bit) & 1) << (4 + bit)
        return address

    def descriptor(self, base):
        mode = {3: 1, 2: 2, 1: 3}[self.bits]
        return (base + self.start) >> 4 | (self.leading >> 4) << 16 | (self.distance >> 4) << 32 | mode << 62


LAYOUTS = {
    "K 128 bytes": Layout(((8, 8), (8, 2)), ((64, 512), (1, 8)), 3, 16, 1024, False),
    "K 128 bytes, the third 16 values": Layout(((8, 8), (8, 2)), ((64, 512), (1, 8)), 3, 16, 1024, False, 64),
    "K 64 bytes, the second 16 values": Layout(((8, 8), (8, 2)), ((32, 256), (1, 8)), 2, 16, 512, False, 32),
    "K 32 bytes": Layout(((8, 8), (8, 2)), ((16, 128), (1, 8)), 1, 16, 256, False),
    # Examples of the manual: 32 and 64 bytes in bfloat16.
    "MN 32 bytes": Layout(((8, 2, 2), (8, 2)), ((1, 8, 128), (16, 256)), 1, 256, 512, True),
    "MN 64 bytes": Layout(((8, 4, 2), (8, 2)), ((1, 8, 256), (32, 512)), 2, 512, 1024, True),
    "MN 128 bytes, strips of 32": Layout(((8, 8, 2), (8, 2)), ((1, 8, 2048), (64, 512)), 3, 4096, 1024, True),
}


def sums_of(columns):
    """(row, column) of each sum [128, columns / 2]: CuTe's ((4,8,4),(2,2,n/8)):((128,1,16),(64,8,512)) of 64 n + m."""
    thread, value = np.arange(128)[:, None], np.arange(columns // 2)[None]
    at = thread % 4 * 128 + thread // 4 % 8 + thread // 32 * 16
    at = at + value % 2 * 64 + value // 2 % 2 * 8 + value // 4 * 512
    return at % 64, at // 64


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(
    ("left", "right"),
    [(a, b) for a in LAYOUTS for b in LAYOUTS if LAYOUTS[a].size == 64 and (a == "K 128 bytes" or b == "K 128 bytes")],
)
def test_operands_and_sums_lie_where_the_manual_says(left, right, adds):
    rng = np.random.default_rng(0)
    a_layout, b_layout, columns = LAYOUTS[left], LAYOUTS[right], LAYOUTS[right].size
    a, b = (rng.standard_normal((size, 16)).astype(np.float16) for size in (64, columns))
    memory = np.full(SHARED // 2, np.nan, np.float16)
    half = SHARED // 2
    for layout, values, base in ((a_layout, a, 0), (b_layout, b, half)):
        for mn in range(layout.size):
            for k in range(16):
                memory[(base + layout.address(mn, k)) // 2] = values[mn, k]
    count = columns // 2
    texts = {
        "REGISTERS": ", ".join(f"float& d{i}" for i in range(count)),
        "OPERANDS": ", ".join(f"%{i}" for i in range(count)),
        "LAST": count + 2, "FIRST": count, "SECOND": count + 1, "COLUMNS": columns,
        "TRANSPOSED_A": int(a_layout.transposed), "TRANSPOSED_B": int(b_layout.transposed),
        "SHARED_WORDS": SHARED // 4, "SUMS": count, "ADDS": int(adds),
        "D_VALUES": ", ".join(f"d[{i}]" for i in range(count)),
        "A_DESCRIPTOR": a_layout.descriptor(0), "B_DESCRIPTOR": b_layout.descriptor(half),
    }  # fmt: skip
    source = KERNEL.replace("f16\n{", "f16 {")
    for name, text in texts.items():
        source = source.replace(name, str(text))
    library, parameters, _ = compile_for_cpu(source)
    rows, places = sums_of(columns)
    want = (a.astype(np.float64) @ b.astype(np.float64).T)[rows, places]
    for eager in (False, True):
        d = np.ones(128 * count, np.float32)
        run(library, parameters, (1, 1), SHARED, {"words": memory.view(np.uint32), "d": d}, eager=eager)
        np.testing.assert_allclose(d.reshape(128, count), want + adds, rtol=1e-6, atol=1e-6)
