// The threads of emulator.h, and its instructions.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "threads.h"

namespace gpu {

void fail(const char* what) { throw std::runtime_error(what); }

struct Range {
  const uint8_t *begin, *end;
};

Index thread_index, block_index;
uint8_t* shared;
long shared_size;
Thread* current;
std::vector<Thread> threads;
std::vector<int> arrived_at_warp, arrived_at_warpgroup;
ucontext_t scheduler;
std::vector<Range> arrays;
bool eager;
long conflicts;
std::string error;

void yield(State state) {
  current->state = state;
  swapcontext(&current->context, &scheduler);
}

void check_global(const void* address, size_t size) {
  auto at = static_cast<const uint8_t*>(address);
  for (const Range& array : arrays)
    if (at >= array.begin && at + size <= array.end) {
      return;
    }
  fail("an address lies outside of all arrays");
}

void check_aligned(const void* address, size_t size) {
  if (reinterpret_cast<uintptr_t>(address) % size) fail("an address in global memory is not aligned");
}

uint8_t* shared_at(uint32_t address, size_t size) {
  if (address + size > shared_size) fail("an address lies outside of shared memory");
  if (address % size) fail("an address in shared memory is not aligned");
  return shared + address;
}

void store_shared(uint32_t to, const void* from, uint32_t size) {
  std::memcpy(shared_at(to, size), from, size);
  current->unfenced.push_back({to, size});
  forget_unfenced(to, size);
}

void perform(const Copy& copy) {
  uint8_t bytes[16] = {};
  std::memcpy(bytes, copy.from, copy.size);
  store_shared(copy.to, bytes, copy.width);
}

// The first `size` of `width` bytes; the others become zero.
void start(int width, uint32_t to, const void* from, uint32_t size) {
  if (int(size) > width) fail("cp.async copies at most its own size");
  shared_at(to, width);
  check_global(from, size);
  check_aligned(from, width);
  Copy copy{to, static_cast<const uint8_t*>(from), size, width};
  eager ? perform(copy) : current->open.push_back(copy);
}

float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

float from_f16(uint16_t bits) {
  uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float value = exponent == 31 ? (mantissa ? NAN : INFINITY)
                : exponent     ? std::ldexp(1024.0f + mantissa, int(exponent) - 25)
                               : std::ldexp(float(mantissa), -24);
  return bits >> 15 ? -value : value;
}

// To the nearest number, ties to the even one.
uint16_t to_f16(float value) {
  uint16_t sign = as_bits(value) >> 31 << 15;
  double size = std::fabs(double(value));
  if (std::isnan(value)) return 0x7fff;
  if (size >= 65520.0) return sign | 0x7c00;
  int exponent = size < std::ldexp(1.0, -14) ? -14 : std::ilogb(size);
  uint32_t units = std::nearbyint(std::ldexp(size, 10 - exponent));
  return sign | (units + ((exponent + 14) << 10));  // the implicit bit of `units` counts the exponent up
}

uint16_t to_bf16(float value) {
  uint32_t bits = as_bits(value);
  if (std::isnan(value)) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

struct Fragment {
  uint32_t word[4];
};

struct Product {
  float d[4];
  uint32_t a[4], b[2];
  float c[4];
};

float element(const uint32_t* words, int index, int kind) {  // kind: 0 f16, 1 bf16, 2 tf32
  if (kind == 2) return as_float(words[index] & 0xffffe000);
  uint16_t bits = words[index / 2] >> (index % 2 * 16);
  return kind ? as_float(uint32_t(bits) << 16) : from_f16(bits);
}

// m16n8k16 (f16, bf16) or m16n8k8 (tf32): figures "MMA .m16n8k16 fragment layout" and "MMA .m16n8k8 ... .tf32".
float towards_zero(double sum) {
  float nearest = float(sum);
  bool away = std::isfinite(nearest) && std::fabs(double(nearest)) > std::fabs(sum);
  return away ? std::nextafter(nearest, 0.0f) : nearest;
}

void mma(Product& own, int kind) {
  together(own, [kind](Product** lane) {
    int depth = kind == 2 ? 8 : 16;
    double a[16][16], b[16][8];
    for (int i = 0; i < 32; ++i) {
      int group = i / 4, thread = i % 4;
      for (int e = 0; e < (kind == 2 ? 4 : 8); ++e) {
        int row = kind == 2 ? group + (e % 2) * 8 : group + (e / 2 % 2) * 8;
        int column = kind == 2 ? thread + (e / 2) * 4 : thread * 2 + e % 2 + (e / 4) * 8;
        a[row][column] = element(lane[i]->a, e, kind);
      }
      for (int e = 0; e < (kind == 2 ? 2 : 4); ++e) {
        int row = kind == 2 ? thread + e * 4 : thread * 2 + e % 2 + (e / 2) * 8;
        b[row][group] = element(lane[i]->b, e, kind);
      }
    }
    for (int i = 0; i < 32; ++i)
      for (int e = 0; e < 4; ++e) {
        int row = i / 4 + (e / 2) * 8, column = i % 4 * 2 + e % 2;
        double sum = lane[i]->c[e];
        for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
        lane[i]->d[e] = towards_zero(sum);
      }
  });
}

void mma(int kind, float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2,
                uint32_t a3, uint32_t b0, uint32_t b1, float c0, float c1, float c2, float c3) {
  Product own{{}, {a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}};
  mma(own, kind);
  d0 = own.d[0], d1 = own.d[1], d2 = own.d[2], d3 = own.d[3];
}

struct Matrices {
  uint32_t address, word[4];
};

// Lanes 8i to 8i + 7 have the addresses of the rows of matrix i, of 8 values of 16 bits.
void ldmatrix(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, uint32_t address, bool transposed) {
  Matrices own{address, {}};
  together(own, [transposed](Matrices** lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t value[8][8];
      unsigned banks = 0;
      for (int row = 0; row < 8; ++row) {
        uint32_t at = lane[matrix * 8 + row]->address;
        std::memcpy(value[row], shared_at(at, 16), 16);
        unsigned bank = 1u << (at / 16 % 8);  // of 4 x 4 bytes
        conflicts += (banks & bank) != 0;
        banks |= bank;
      }
      for (int i = 0; i < 32; ++i) {
        int row = i / 4, column = i % 4 * 2;
        uint16_t low = transposed ? value[column][row] : value[row][column];
        uint16_t high = transposed ? value[column + 1][row] : value[row][column + 1];
        lane[i]->word[matrix] = low | uint32_t(high) << 16;
      }
    }
  });
  r0 = own.word[0], r1 = own.word[1], r2 = own.word[2], r3 = own.word[3];
}

}  // namespace gpu

// PTX: the constants of an instruction's text come first, then its registers.

void ptx_cp_async_cg_shared_global(int bytes, uint32_t to, const void* from, uint32_t size) {
  if (bytes != 16) gpu::fail("cp.async.cg copies 16 bytes");
  gpu::start(bytes, to, from, size);
}
void ptx_cp_async_ca_shared_global(int bytes, uint32_t to, const void* from, uint32_t size) {
  if (bytes != 4 && bytes != 8 && bytes != 16) gpu::fail("cp.async.ca copies 4, 8 or 16 bytes");
  gpu::start(bytes, to, from, size);
}

void ptx_cp_async_commit_group() {
  gpu::current->groups.push_back(std::move(gpu::current->open));
  gpu::current->open.clear();
}

void ptx_cp_async_wait_group(int pending) {
  auto& groups = gpu::current->groups;
  while (int(groups.size()) > pending) {
    for (const gpu::Copy& copy : groups.front()) gpu::perform(copy);
    groups.erase(groups.begin());
  }
}

void ptx_ldmatrix_sync_aligned_m8n8_x4_shared_b16(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, uint32_t at) {
  gpu::ldmatrix(r0, r1, r2, r3, at, false);
}
void ptx_ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3,
                                                        uint32_t at) {
  gpu::ldmatrix(r0, r1, r2, r3, at, true);
}

#define OPERANDS d0, d1, d2, d3, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3
MMA(ptx_mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32) { gpu::mma(0, OPERANDS); }
MMA(ptx_mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32) { gpu::mma(1, OPERANDS); }
MMA(ptx_mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32) { gpu::mma(2, OPERANDS); }

void ptx_cvt_rn_f16x2_f32(uint32_t& d, float high, float low) {
  d = gpu::to_f16(low) | uint32_t(gpu::to_f16(high)) << 16;
}
void ptx_cvt_rn_bf16x2_f32(uint32_t& d, float high, float low) {
  d = gpu::to_bf16(low) | uint32_t(gpu::to_bf16(high)) << 16;
}
void ptx_cvt_rna_tf32_f32(uint32_t& d, float a) {
  uint32_t bits = gpu::as_bits(a);
  d = std::isfinite(a) ? (bits + 0x1000) & 0xffffe000 : bits;
}
void ptx_cvt_f32_f16(float& d, uint16_t a) { d = gpu::from_f16(a); }

template <typename... Words>
void load_global(const void* from, Words&... words) {
  gpu::check_global(from, (sizeof(words) + ...));
  gpu::check_aligned(from, (sizeof(words) + ...));
  auto at = static_cast<const uint8_t*>(from);
  ((std::memcpy(&words, at, sizeof(words)), at += sizeof(words)), ...);
}
template <typename... Words>
void store_global(const void* to, Words... words) {
  gpu::check_global(to, (sizeof(words) + ...));
  gpu::check_aligned(to, (sizeof(words) + ...));
  auto at = static_cast<uint8_t*>(const_cast<void*>(to));
  ((std::memcpy(at, &words, sizeof(words)), at += sizeof(words)), ...);
}
void ptx_ld_global_nc_v4_b32(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, const void* from) {
  load_global(from, a, b, c, d);
}
void ptx_ld_global_nc_v4_f32(float& a, float& b, float& c, float& d, const void* from) {
  load_global(from, a, b, c, d);
}
void ptx_ld_global_nc_v2_b32(uint32_t& a, uint32_t& b, const void* from) { load_global(from, a, b); }
void ptx_ld_global_nc_b32(uint32_t& a, const void* from) { load_global(from, a); }
void ptx_ld_global_nc_b16(uint16_t& a, const void* from) { load_global(from, a); }
void ptx_st_global_v4_b32(const void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  store_global(to, a, b, c, d);
}
void ptx_st_global_v2_b32(const void* to, uint32_t a, uint32_t b) { store_global(to, a, b); }
void ptx_st_global_b32(const void* to, uint32_t a) { store_global(to, a); }
void ptx_st_shared_b16(uint32_t to, uint16_t value) { gpu::store_shared(to, &value, 2); }
void ptx_st_shared_b32(uint32_t to, uint32_t value) { gpu::store_shared(to, &value, 4); }

// CUDA C++.

void __syncthreads() { gpu::yield(gpu::State::at_barrier); }

int __shfl_sync(uint, int value, int source, int) {
  struct Value {
    int in, out;
  } own{value, 0};
  gpu::together(own, [source](Value** lane) {
    for (int i = 0; i < 32; ++i) lane[i]->out = lane[source]->in;
  });
  return own.out;
}

namespace gpu {

void (*kernel)();

void start() {
  try {
    kernel();
    check_finished();
  } catch (const std::exception& failure) {
    error = failure.what();
  }
  current->state = State::done;
  swapcontext(&current->context, &scheduler);
}

bool run_ready(int warp) {
  bool any = false;
  for (bool again = true; again && error.empty();) {
    again = false;
    for (int lane = 0; lane < 32 && error.empty(); ++lane) {
      Thread& thread = threads[warp * 32 + lane];
      if (thread.state != State::ready) continue;
      again = any = true;
      current = &thread;
      thread_index = {thread.index, 0, 0};
      swapcontext(&scheduler, &thread.context);
    }
  }
  return any;
}

void run_block(int count, bool backwards) {
  std::memset(shared, 0xff, shared_size);
  threads.resize(count);
  arrived_at_warp.assign(count / 32, 0);
  arrived_at_warpgroup.assign((count + 127) / 128, 0);
  reset_warpgroups(count);
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.index = i;
    thread.state = State::ready;
    thread.groups.clear();
    thread.open.clear();
    thread.unfenced.clear();
    if (!thread.stack) thread.stack.reset(new char[1 << 16]);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = 1 << 16;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, start, 0);
  }
  while (error.empty()) {
    bool any = false;
    for (int i = 0; i < count / 32; ++i) any |= run_ready(backwards ? count / 32 - 1 - i : i);
    auto all = [&](State state) {
      return std::all_of(threads.begin(), threads.end(), [=](const Thread& t) { return t.state == state; });
    };
    if (all(State::done)) return;
    if (all(State::at_barrier))
      for (Thread& thread : threads) thread.state = State::ready;
    else if (!any)
      fail("threads wait for one another for ever");
  }
  fail(error.c_str());
}

int run_grid(void (*body)(), int grid_x, int grid_y, int count, long shared_bytes, bool backwards, bool copies_at_once,
             const uint8_t* const* ends, int array_ends, char* message) {
  std::unique_ptr<uint8_t, decltype(&std::free)> memory(
      static_cast<uint8_t*>(std::aligned_alloc(128, (shared_bytes + 127) / 128 * 128)), std::free);
  shared = memory.get(), shared_size = shared_bytes;
  kernel = body, eager = copies_at_once, conflicts = 0;
  error.clear(), arrays.clear();
  for (int i = 0; i < array_ends; i += 2) arrays.push_back({ends[i], ends[i + 1]});
  try {
    for (int y = 0; y < grid_y; ++y)
      for (int x = 0; x < grid_x; ++x) {
        block_index = {x, y, 0};
        run_block(count, backwards);
      }
  } catch (const std::exception& failure) {
    std::snprintf(message, 200, "block %d, %d: %s", block_index.x, block_index.y, failure.what());
    return -1;
  }
  return int(conflicts);
}

}  // namespace gpu
