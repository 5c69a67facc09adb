// The instructions of warpgroups of sm_90a, as the PTX ISA describes them ("Asynchronous Warpgroup Level Matrix
// Instructions"): descriptors are decoded by its table of fields, operands found by its canonical layouts.
#include "threads.h"

namespace gpu {

struct Matrix {
  uint32_t start, leading, stride, base, swizzling;  // bytes, and the numbers of the fields
  bool transposed;                                   // rows of M or N values, not of K values
};

struct Product {
  int columns, kind;  // kind: 0 f16, 1 bf16
  Matrix a, b;
  bool accumulates;
  std::vector<float*> sums[128];
};

struct Warpgroup {
  bool fenced;
  std::vector<Product> open;
  std::vector<std::vector<Product>> groups;
};

std::vector<Warpgroup> warpgroups;
std::vector<uint8_t> seen;  // shared memory as the asynchronous proxy sees it

void reset_warpgroups(int count) {
  warpgroups.assign((count + 127) / 128, {});
  seen.assign(shared_size, 0xff);
}

void forget_unfenced(uint32_t at, uint32_t size) { std::memset(&seen[at], 0xff, size); }

Warpgroup& own_group() {
  if (threads.size() % 128) fail("a warpgroup is four warps");
  return warpgroups[current->index / 128];
}

void check_finished() {
  const Warpgroup& group = warpgroups[current->index / 128];
  if (!group.open.empty() || !group.groups.empty()) fail("a thread ends before the products of its warpgroup");
}

Matrix decode(uint64_t descriptor, bool transposed) {
  auto field = [=](int low, int bits) { return uint32_t(descriptor >> low & ((1u << bits) - 1)); };
  Matrix matrix{field(0, 14) << 4, field(16, 14) << 4, field(32, 14) << 4, field(49, 3), field(62, 2), transposed};
  if (matrix.swizzling == 0) fail("matrices without swizzling are not emulated");
  if (matrix.base) fail("patterns that begin between their multiples are not emulated");
  if (descriptor & 0x3ff1c000c000c000) fail("a descriptor has bits between its fields");
  return matrix;
}

// Values of 2 bytes, T = 8 to 16 bytes. K-major: ((8,m),(T,2k)):((wT,SBO),(1,T)). MN-major: ((T,w,m),(8,k)):
// ((1,T,LBO),(wT,SBO)). w is 8, 4 and 2 for swizzling of 128, 64 and 32 bytes, which is Swizzle<log2(w),4,3>.
uint32_t address_of(const Matrix& matrix, int mn, int k) {
  const int T = 8, w = 16 >> matrix.swizzling;
  uint32_t address = matrix.start;
  if (matrix.transposed) {
    address += (mn % T + mn / T % w * T) * 2 + mn / (T * w) * matrix.leading;
    address += k % 8 * (w * T) * 2 + k / 8 * matrix.stride;
  } else {
    address += mn % 8 * (w * T) * 2 + mn / 8 * matrix.stride;
    address += (k % T + k / T * T) * 2;
  }
  return address ^ ((address >> 7 & (w - 1)) << 4);
}

float value_at(const Matrix& matrix, int mn, int k, int kind) {
  uint32_t address = address_of(matrix, mn, k), word = 0;
  if (address + 2 > shared_size) fail("a matrix lies outside of shared memory");
  std::memcpy(&word, &seen[address], 2);
  return element(&word, 0, kind);
}

// Figure "WGMMA .m64nNk16 register fragment layout for accumulator matrix D".
void perform(const Product& product) {
  std::vector<float> a(64 * 16), b(product.columns * 16);
  for (int k = 0; k < 16; ++k) {
    for (int m = 0; m < 64; ++m) a[m * 16 + k] = value_at(product.a, m, k, product.kind);
    for (int n = 0; n < product.columns; ++n) b[n * 16 + k] = value_at(product.b, n, k, product.kind);
  }
  for (int thread = 0; thread < 128; ++thread)
    for (int i = 0; i < product.columns / 2; ++i) {
      int m = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, n = i / 4 * 8 + thread % 4 * 2 + i % 2;
      float& at = *product.sums[thread][i];
      double sum = product.accumulates ? at : 0.0;
      for (int k = 0; k < 16; ++k) sum += double(a[m * 16 + k]) * b[n * 16 + k];
      at = towards_zero(sum);
    }
}

struct Operands {
  float* const* sums;
  uint64_t a, b;
  bool accumulates;
};

void multiply(int columns, int kind, bool transposed_a, bool transposed_b, Operands own) {
  together<128>(own, [&](Operands** lane) {
    Warpgroup& group = own_group();
    if (!group.fenced) fail("wgmma.fence must come before the first product");
    Product product{columns, kind, decode(own.a, transposed_a), decode(own.b, transposed_b), own.accumulates, {}};
    for (int i = 0; i < 128; ++i) {
      if (lane[i]->a != own.a || lane[i]->b != own.b || lane[i]->accumulates != own.accumulates)
        fail("the threads of a warpgroup have different descriptors");
      product.sums[i].assign(lane[i]->sums, lane[i]->sums + columns / 2);
    }
    // Copies that are late meet products that are early, and the other way round.
    eager ? group.open.push_back(product) : perform(product);
  });
}

struct Nothing {};

}  // namespace gpu

void ptx_wgmma_mma_async(int columns, int kind, float* const* sums, uint64_t a, uint64_t b, uint32_t accumulates,
                         int scale_a, int scale_b, int transposed_a, int transposed_b) {
  if (scale_a != 1 || scale_b != 1) gpu::fail("negated operands are not emulated");
  gpu::multiply(columns, kind, transposed_a, transposed_b, {sums, a, b, accumulates != 0});
}

void ptx_wgmma_fence_sync_aligned() {
  gpu::Nothing own;
  gpu::together<128>(own, [](gpu::Nothing**) { gpu::own_group().fenced = true; });
}

void ptx_wgmma_commit_group_sync_aligned() {
  gpu::Nothing own;
  gpu::together<128>(own, [](gpu::Nothing**) {
    gpu::Warpgroup& group = gpu::own_group();
    group.groups.push_back(std::move(group.open));
    group.open.clear();
  });
}

void ptx_wgmma_wait_group_sync_aligned(int pending) {
  gpu::Nothing own;
  gpu::together<128>(own, [pending](gpu::Nothing**) {
    auto& groups = gpu::own_group().groups;
    while (int(groups.size()) > pending) {
      for (const gpu::Product& product : groups.front()) gpu::perform(product);
      groups.erase(groups.begin());
    }
  });
}

void ptx_fence_proxy_async_shared__cta() {
  for (gpu::Bytes bytes : gpu::current->unfenced)
    std::memcpy(&gpu::seen[bytes.at], gpu::shared + bytes.at, bytes.size);
  gpu::current->unfenced.clear();
}
