// A CUDA device's context with our kernels in it, which travel inside the program as the image that
// cmake/ferry_cuda.cmake builds. Code that calls it includes <cuda.h> and then this header.
#pragma once

#include <memory>
#include <vector>

#include "ferry/exchange/gpu/cuda_driver.h"

namespace ferry::cuda {

/// For all queues of the process. Threads: any. Errors: the driver's.
class Device {
 public:
  explicit Device(int number);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  /// For this thread.
  void make_current() const;

  /// `index` as of the alternatives of GpuKernel.
  CUfunction kernel(std::size_t index) const { return kernels_[index]; }

  int attribute(CUdevice_attribute which) const;

  /// Of the kernel of an exchange of which the fewest fit: others wait for nobody.
  int blocks_per_multiprocessor(int threads, std::size_t shared) const;

 private:
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  CUmodule module_ = nullptr;
  std::vector<CUfunction> kernels_;
};

/// Kept as long as somebody has it.
std::shared_ptr<Device> device_of(int number);

}  // namespace ferry::cuda
