// Runs the CUDA C++ of a kernel on a CPU: each thread is a coroutine, and PTX instructions are functions.
//
// Instructions do what the PTX ISA (CUDA 13) says of them; the layouts of mma and ldmatrix operands are its figures'.
// Stricter than a GPU: memory outside of an array, addresses that are not aligned, bank conflicts of ldmatrix, and
// threads that wait for one another for ever are errors; shared memory holds NaN at first. Copies are done as late as
// they may be, when they are waited for, or at once, and warps run one after the other in a given order from barrier to
// barrier, so that a barrier or a wait that is missing shows as a wrong result. Products of warpgroups are done at once
// where copies are late, and late where copies are at once; what a thread has written to shared memory is NaN to them
// until its next proxy fence.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __launch_bounds__(threads)
#define __forceinline__ inline
#define __device__
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short

struct half {
  uint16_t bits;
};
using nv_bfloat16 = half;
using __nv_bfloat16 = half;

namespace gpu {

[[noreturn]] void fail(const char* what);

// An array in global memory; an index outside is an error.
template <typename T>
struct Array {
  T* data;
  long size;
  T& operator[](long index) const {
    if (index < 0 || index >= size) fail("an index lies outside of its array");
    return data[index];
  }
};

struct Index {
  int x, y, z;
};

extern Index thread_index, block_index;
extern uint8_t* shared;

// Runs `kernel` for each thread of each block; `arrays` are the pairs of ends of those in global memory. Returns the
// number of bank conflicts, or -1 and a message.
int run_grid(void (*kernel)(), int grid_x, int grid_y, int threads, long shared_bytes, bool backwards, bool eager,
             const uint8_t* const* arrays, int array_ends, char* message);

}  // namespace gpu

#define threadIdx gpu::thread_index
#define blockIdx gpu::block_index

// PTX: the constants of an instruction's text come first, then its registers.

void ptx_cp_async_ca_shared_global(int bytes, uint32_t to, const void* from, uint32_t size);
void ptx_cp_async_cg_shared_global(int bytes, uint32_t to, const void* from, uint32_t size);
void ptx_cp_async_commit_group();
void ptx_cp_async_wait_group(int pending);
void ptx_ldmatrix_sync_aligned_m8n8_x4_shared_b16(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, uint32_t at);
void ptx_ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3,
                                                        uint32_t at);
#define MMA(name)                                                                                                   \
  void name(float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,         \
            uint32_t b0, uint32_t b1, float c0, float c1, float c2, float c3)
MMA(ptx_mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32);
MMA(ptx_mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32);
MMA(ptx_mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32);
void ptx_cvt_rn_f16x2_f32(uint32_t& d, float high, float low);
void ptx_cvt_rn_bf16x2_f32(uint32_t& d, float high, float low);
void ptx_cvt_rna_tf32_f32(uint32_t& d, float a);
void ptx_cvt_f32_f16(float& d, uint16_t a);
void ptx_ld_global_nc_v4_b32(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, const void* from);
void ptx_ld_global_nc_v4_f32(float& a, float& b, float& c, float& d, const void* from);
void ptx_ld_global_nc_v2_b32(uint32_t& a, uint32_t& b, const void* from);
void ptx_ld_global_nc_b32(uint32_t& a, const void* from);
void ptx_ld_global_nc_b16(uint16_t& a, const void* from);
void ptx_st_global_v4_b32(const void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d);
void ptx_st_global_v2_b32(const void* to, uint32_t a, uint32_t b);
void ptx_st_global_b32(const void* to, uint32_t a);
void ptx_st_shared_b16(uint32_t to, uint16_t value);
void ptx_st_shared_b32(uint32_t to, uint32_t value);

// Of sm_90a. `sums` are the addresses of a thread's registers; kind: 0 f16, 1 bf16.
void ptx_wgmma_mma_async(int columns, int kind, float* const* sums, uint64_t a, uint64_t b, uint32_t accumulates,
                         int scale_a, int scale_b, int transposed_a, int transposed_b);
void ptx_wgmma_fence_sync_aligned();
void ptx_wgmma_commit_group_sync_aligned();
void ptx_wgmma_wait_group_sync_aligned(int pending);
void ptx_fence_proxy_async_shared__cta();

// CUDA C++.

void __syncthreads();
int __shfl_sync(uint mask, int value, int source, int width);
inline uint32_t __cvta_generic_to_shared(const void* address) {
  return static_cast<const uint8_t*>(address) - gpu::shared;
}
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline int max(int a, int b) { return a < b ? b : a; }
inline int min(int a, int b) { return a < b ? a : b; }
