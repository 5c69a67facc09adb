// Runs a network that pruneaug compiled, without Python and PyTorch: only TVM's runtime and the one file.
//
//     run_network network.so [calls]
//
// It makes an input of the shape that the network was compiled for (random numbers, zeros for integers), runs the
// network, and prints the first values of its outputs and the median time of a call. A network that was compiled for
// several batch sizes has a function for each.

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;
using Object = ffi::json::Object;
using List = ffi::json::Array;

// The kernels read whole vectors, so arrays must start at multiples of 64 bytes.
struct AlignedMemory {
  void AllocData(DLTensor* tensor) {
    size_t bytes = ffi::GetDataSize(*tensor);
    tensor->data = std::aligned_alloc(64, (bytes + 64) / 64 * 64);
    std::memset(tensor->data, 0, bytes);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

// "float32 [1, 3, 224, 224]" as a tensor: random if it is float32, else zeros.
ffi::Tensor MakeInput(const std::string& description) {
  size_t space = description.find(' ');
  DLDataType dtype = ffi::StringToDLDataType(description.substr(0, space));
  std::vector<int64_t> shape;
  for (const char* at = description.c_str() + space; *at != '\0' && *at != ']';) {
    if (*at >= '0' && *at <= '9') {
      shape.push_back(std::strtoll(at, const_cast<char**>(&at), 10));
    } else {
      ++at;
    }
  }
  ffi::Tensor tensor = ffi::Tensor::FromNDAlloc(AlignedMemory(), {shape.data(), shape.size()}, dtype, DLDevice{kDLCPU, 0});
  if (dtype.code == kDLFloat && dtype.bits == 32) {
    std::mt19937 generator(0);
    std::normal_distribution<float> normal;
    float* values = static_cast<float*>(tensor.data_ptr());
    std::generate(values, values + tensor.numel(), [&] { return normal(generator); });
  }
  return tensor;
}

// Makes inputs for the function of this name, calls it, and prints what it takes and returns, and how long.
void Run(const ffi::Module& machine, const std::string& name, const Object& signature, int calls) {
  std::printf("function %s\n", name.c_str());
  List described = signature.at("inputs").cast<List>();
  std::vector<ffi::Tensor> inputs;
  std::vector<ffi::AnyView> arguments;
  for (ffi::Any index : signature.at("tensors").cast<List>()) {
    std::string description = described[index.cast<int64_t>()].cast<std::string>();
    std::printf("input    %s\n", description.c_str());
    inputs.push_back(MakeInput(description));
  }
  for (const ffi::Tensor& input : inputs) arguments.push_back(input);

  ffi::Function network = *machine->GetFunction(name);
  ffi::Any result;
  std::vector<double> milliseconds;
  for (int call = 0; call < calls + 10; ++call) {  // ten to warm up
    auto start = std::chrono::steady_clock::now();
    network.CallPacked(arguments.data(), static_cast<int>(arguments.size()), &result);
    std::chrono::duration<double, std::milli> passed = std::chrono::steady_clock::now() - start;
    if (call >= 10) milliseconds.push_back(passed.count());
  }

  for (ffi::Tensor output : result.cast<ffi::Array<ffi::Tensor>>()) {
    std::printf("output  ");
    for (int64_t i = 0; i < std::min<int64_t>(output.numel(), 5); ++i) {
      bool is_float = output.dtype().code == kDLFloat && output.dtype().bits == 32;
      is_float ? std::printf(" %.5f", static_cast<const float*>(output.data_ptr())[i]) : std::printf(" ?");
    }
    std::printf(output.numel() > 5 ? " ... (%lld values)\n" : "\n", static_cast<long long>(output.numel()));
  }
  std::nth_element(milliseconds.begin(), milliseconds.begin() + calls / 2, milliseconds.end());
  std::printf("median   %.3f ms of %d calls\n", milliseconds[calls / 2], calls);
}

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::fprintf(stderr, "usage: run_network network.so [calls]\n");
    return 2;
  }
  int calls = argc > 2 ? std::max(std::atoi(argv[2]), 1) : 100;

  // A file holds an executable; a virtual machine runs it, on the CPU, with an allocator that keeps memory (2).
  // A path without a slash would be searched for where the system keeps its libraries.
  ffi::Module file = ffi::Module::LoadFromFile(std::filesystem::absolute(argv[1]).string());
  ffi::Module machine = (*file->GetFunction("vm_load_executable"))().cast<ffi::Module>();
  (*machine->GetFunction("vm_initialization"))(static_cast<int>(kDLCPU), 0, 2);

  // The network describes itself in JSON: its functions, what they take, and for how many threads it was compiled.
  ffi::Tensor text = (*machine->GetFunction("metadata"))().cast<ffi::Tensor>();
  std::string json(static_cast<const char*>(text.data_ptr()), text.numel());
  Object metadata = ffi::json::Parse(json).cast<Object>();
  ffi::Function::GetGlobalRequired("runtime.config_threadpool")(1, metadata.at("threads").cast<int>());

  for (const auto& [name, signature] : metadata.at("functions").cast<Object>()) {
    Run(machine, name.cast<std::string>(), signature.cast<Object>(), calls);
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
