/* Runs the library of a chain of kernels without TVM, one thread, as a device would: RUN LIBRARY LAYOUT ARRAY... OUTPUT

   LAYOUT is a file of int64: copies, steps, arguments of each step; then, for each argument in turn, the number of its
   array. Arrays are files of int32 or float32, alike for what is only copied. The last array is written to OUTPUT. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tvm/ffi/c_api.h>

typedef int (*Function)(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
typedef struct {
  void* sync_handle;
  int32_t num_task;
} Environment;
typedef int (*Task)(int, Environment*, void*);

void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) { fprintf(stderr, "%s: %s\n", kind, message); }
void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t n) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < n; ++i) fputs(parts[i] ? parts[i] : "", stderr);
  fputs("\n", stderr);
}

static int in_turn(Task task, void* data, int count) {
  Environment environment = {NULL, count ? count : 1};
  for (int i = 0; i < environment.num_task; ++i)
    if (task(i, &environment, data)) return -1;
  return 0;
}

static void* workspace(int device, int id, uint64_t size, int code, int bits) {
  (void)device, (void)id, (void)code, (void)bits;
  return aligned_alloc(64, (size + 63) / 64 * 64);
}
static int free_workspace(int device, int id, void* memory) {
  (void)device, (void)id;
  free(memory);
  return 0;
}

static void* read_file(const char* path, int64_t* size) {
  FILE* file = fopen(path, "rb");
  if (!file) exit(2);
  fseek(file, 0, SEEK_END);
  *size = ftell(file);
  rewind(file);
  void* data = aligned_alloc(64, ((size_t)*size + 127) / 64 * 64);
  if (fread(data, 1, (size_t)*size, file) != (size_t)*size) exit(2);
  fclose(file);
  return data;
}

static TVMFFIAny tensor(void* data, int64_t size, DLDataType type) {
  DLTensor* made = calloc(1, sizeof(DLTensor));
  made->shape = malloc(sizeof(int64_t));
  made->shape[0] = size / (type.bits / 8);
  made->data = data, made->ndim = 1, made->dtype = type;
  made->device.device_type = kDLCPU;
  TVMFFIAny value = {0};
  value.type_index = kTVMFFIDLTensorPtr;
  value.v_ptr = made;
  return value;
}

int main(int count, char** words) {
  void* library = dlopen(words[1], RTLD_NOW);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 3;
  void** launch = dlsym(library, "__TVMBackendParallelLaunch");
  void** allocate = dlsym(library, "__TVMBackendAllocWorkspace");
  void** release = dlsym(library, "__TVMBackendFreeWorkspace");
  if (launch) *launch = (void*)in_turn;
  if (allocate) *allocate = (void*)workspace;
  if (release) *release = (void*)free_workspace;
  Function bind = (Function)dlsym(library, "__tvm_ffi_bind_chain"), run = (Function)dlsym(library, "__tvm_ffi_time_chain");
  int64_t size, total = 0;
  int64_t* layout = read_file(words[2], &size);
  for (int64_t i = 0; i < layout[1]; ++i) total += layout[2 + i];
  TVMFFIAny* arguments = calloc((size_t)(3 + total + count), sizeof(TVMFFIAny));
  int arrays = count - 4;
  TVMFFIAny* loaded = calloc((size_t)arrays, sizeof(TVMFFIAny));
  void* data = NULL;
  for (int i = 0; i < arrays; ++i) {
    const char* name = words[3 + i];
    int is_int = strstr(name, "int32") != NULL;
    data = read_file(name, &size);
    loaded[i] = tensor(data, size, (DLDataType){is_int ? kDLInt : kDLFloat, 32, 1});
  }
  arguments[0] = tensor(layout, 8 * (2 + layout[1]), (DLDataType){kDLInt, 64, 1});
  arguments[1].type_index = kTVMFFIInt; /* one array to flush, so that the instruction is run too */
  arguments[1].v_int64 = 1;
  arguments[2] = loaded[0];
  const int64_t* numbers = layout + 2 + layout[1];
  for (int64_t i = 0; i < total; ++i) arguments[3 + i] = loaded[numbers[i]];
  TVMFFIAny handle = {0}, nothing = {0};
  if (bind(NULL, arguments, (int32_t)(3 + total), &handle)) return 4;
  double times[2] = {-1, -1};
  TVMFFIAny timing[3] = {handle, {0}, tensor(times, sizeof times, (DLDataType){kDLFloat, 64, 1})};
  timing[1].type_index = kTVMFFIInt;
  if (run(NULL, timing, 3, &nothing) || times[0] < 0 || times[1] < 0) return 5;
  FILE* out = fopen(words[count - 1], "wb");
  fwrite(data, 1, (size_t)size, out);
  return fclose(out);
}
