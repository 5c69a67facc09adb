/* Linked to the kernels of a remote device: reads its files, and times chains of kernels there.

   Every function has the interface of TVM's packed functions; 0 means success. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <tvm/ffi/c_api.h>

enum { MAX_STEPS = 2 };

typedef struct {
  int copies;                 /* of all arguments; each timed run takes the next one */
  int next;
  int steps;
  int counts[MAX_STEPS];      /* arguments of each step */
  int total;                  /* arguments of all steps */
  int flushes;                /* arrays that are driven from the caches before each run */
  DLTensor* flushed;
  DLTensor* tensors;          /* [copies * total] */
  TVMFFIAny* arguments;       /* the same as the kernels take them */
} Chain;

#ifdef KERNELS
typedef int (*Kernel)(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
extern int __tvm_ffi_step0(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
extern int __tvm_ffi_step1(void*, const TVMFFIAny*, int32_t, TVMFFIAny*) __attribute__((weak));
#endif

static DLTensor* tensor(const TVMFFIAny* value) {
  if (value->type_index == kTVMFFITensor) return (DLTensor*)((char*)value->v_obj + sizeof(TVMFFIObject));
  return (DLTensor*)value->v_ptr;
}

static void* data(const DLTensor* t) { return (char*)t->data + t->byte_offset; }

static size_t bytes(const DLTensor* t) {
  size_t size = (size_t)(t->dtype.bits / 8) * t->dtype.lanes;
  for (int i = 0; i < t->ndim; ++i) size *= (size_t)t->shape[i];
  return size;
}

static void give_int(TVMFFIAny* result, int64_t value) {
  memset(result, 0, sizeof *result);
  result->type_index = kTVMFFIInt;
  result->v_int64 = value;
}

/* (path uint8 [n], ended by zero; text uint8 [m]) -> bytes of the file that were read, -1 if there is none. */
TVM_FFI_DLL_EXPORT int __tvm_ffi_read_file(void* self, const TVMFFIAny* args, int32_t n, TVMFFIAny* result) {
  (void)self, (void)n;
  DLTensor* text = tensor(&args[1]);
  FILE* file = fopen((const char*)data(tensor(&args[0])), "rb");
  if (!file) {
    give_int(result, -1);
    return 0;
  }
  give_int(result, (int64_t)fread(data(text), 1, bytes(text), file));
  fclose(file);
  return 0;
}

#ifdef KERNELS
static int fail(const char* message) {
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", message);
  return -1;
}

static void copy_tensor(DLTensor* to, const DLTensor* from) {
  *to = *from;
  to->strides = NULL; /* all are contiguous */
  to->shape = malloc(sizeof(int64_t) * (size_t)(from->ndim + 1));
  memcpy(to->shape, from->shape, sizeof(int64_t) * (size_t)from->ndim);
}

/* (int64 [2 + steps]: copies, steps, arguments of each step; number of arrays to flush; those arrays; the arguments of
   all steps of the first copy, of the second, ...) -> a handle. The arrays must outlive it. */
TVM_FFI_DLL_EXPORT int __tvm_ffi_bind_chain(void* self, const TVMFFIAny* args, int32_t n, TVMFFIAny* result) {
  (void)self;
  const int64_t* layout = data(tensor(&args[0]));
  Chain* chain = calloc(1, sizeof(Chain));
  if (!chain) return fail("out of memory");
  chain->copies = (int)layout[0];
  chain->steps = (int)layout[1];
  if (chain->steps > MAX_STEPS || (chain->steps > 1 && !__tvm_ffi_step1)) return fail("a chain has too many steps");
  for (int i = 0; i < chain->steps; ++i) chain->total += chain->counts[i] = (int)layout[2 + i];
  chain->flushes = (int)args[1].v_int64;
  int count = chain->copies * chain->total;
  if (n != 2 + chain->flushes + count) return fail("a chain got another number of arguments");
  chain->flushed = calloc((size_t)chain->flushes + 1, sizeof(DLTensor));
  chain->tensors = calloc((size_t)count, sizeof(DLTensor));
  chain->arguments = calloc((size_t)count, sizeof(TVMFFIAny));
  if (!chain->flushed || !chain->tensors || !chain->arguments) return fail("out of memory");
  for (int i = 0; i < chain->flushes; ++i) copy_tensor(&chain->flushed[i], tensor(&args[2 + i]));
  for (int i = 0; i < count; ++i) {
    copy_tensor(&chain->tensors[i], tensor(&args[2 + chain->flushes + i]));
    chain->arguments[i].type_index = kTVMFFIDLTensorPtr;
    chain->arguments[i].v_ptr = &chain->tensors[i];
  }
  give_int(result, (int64_t)(intptr_t)chain);
  return 0;
}

/* (handle) -> nothing; frees it. */
TVM_FFI_DLL_EXPORT int __tvm_ffi_free_chain(void* self, const TVMFFIAny* args, int32_t n, TVMFFIAny* result) {
  (void)self, (void)n, (void)result;
  Chain* chain = (Chain*)(intptr_t)args[0].v_int64;
  for (int i = 0; i < chain->flushes; ++i) free(chain->flushed[i].shape);
  for (int i = 0; i < chain->copies * chain->total; ++i) free(chain->tensors[i].shape);
  free(chain->flushed);
  free(chain->tensors);
  free(chain->arguments);
  free(chain);
  return 0;
}

static void flush(const DLTensor* t) {
#if defined(__aarch64__)
  uint64_t kind;
  __asm__ volatile("mrs %0, ctr_el0" : "=r"(kind));
  uintptr_t line = (uintptr_t)4 << ((kind >> 16) & 15);
  uintptr_t end = (uintptr_t)data(t) + bytes(t);
  for (uintptr_t at = (uintptr_t)data(t) & ~(line - 1); at < end; at += line)
    __asm__ volatile("dc civac, %0" ::"r"(at) : "memory");
  __asm__ volatile("dsb ish" ::: "memory");
#elif defined(__x86_64__)
  char* end = (char*)data(t) + bytes(t);
  for (char* at = data(t); at < end; at += 64) __builtin_ia32_clflush(at);
  __builtin_ia32_mfence();
#else
#error "driver.c knows no way to flush the caches of this CPU"
#endif
}

static double now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e6 * (double)now.tv_sec + 1e-3 * (double)now.tv_nsec;
}

static int run(Chain* chain) {
  const Kernel kernels[MAX_STEPS] = {__tvm_ffi_step0, __tvm_ffi_step1};
  TVMFFIAny* arguments = chain->arguments + chain->next * chain->total;
  chain->next = (chain->next + 1) % chain->copies;
  for (int i = 0; i < chain->steps; arguments += chain->counts[i++]) {
    TVMFFIAny nothing = {0};
    int code = kernels[i](NULL, arguments, chain->counts[i], &nothing);
    if (code != 0) return code;
  }
  return 0;
}

/* (handle; number of runs before the timed ones; float64 [runs]) -> nothing: microseconds of each run. */
TVM_FFI_DLL_EXPORT int __tvm_ffi_time_chain(void* self, const TVMFFIAny* args, int32_t n, TVMFFIAny* result) {
  (void)self, (void)n, (void)result;
  Chain* chain = (Chain*)(intptr_t)args[0].v_int64;
  double* times = data(tensor(&args[2]));
  int64_t untimed = args[1].v_int64, runs = (int64_t)(bytes(tensor(&args[2])) / sizeof(double));
  for (int64_t i = -untimed; i < runs; ++i) {
    for (int j = 0; j < chain->flushes; ++j) flush(&chain->flushed[j]);
    double start = now_us();
    int code = run(chain);
    if (code != 0) return code;
    if (i >= 0) times[i] = now_us() - start;
  }
  return 0;
}
#endif
