// In place of cuda_queue.cpp where FERRY_WITH_CUDA is off.
#include "ferry/core/error.h"
#include "ferry/exchange/gpu/cuda.h"

namespace ferry {

CudaDevices find_cuda_devices() {
  return {.why_none = "this program was built without CUDA (FERRY_WITH_CUDA)"};
}

std::unique_ptr<GpuQueue> make_cuda_queue(int device, int) {
  fail<ConfigError>("device cuda {}: {}", device, find_cuda_devices().why_none);
}

std::unique_ptr<GpuQueue> use_cuda_stream(int device, int ranks_there, void*) {
  return make_cuda_queue(device, ranks_there);
}

}  // namespace ferry
