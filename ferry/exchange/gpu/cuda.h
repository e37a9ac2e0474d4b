// CUDA devices, where this program was built with their kernels and the machine has one.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ferry/exchange/gpu/gpu_queue.h"

namespace ferry {

struct CudaDevices {
  std::vector<std::string> names;
  std::string why_none;  ///< where there are none
};

/// Looks for the driver and its devices. Throws ConfigError where the driver is too old.
CudaDevices find_cuda_devices();

/// A stream on a device. `ranks_there`: how many ranks of this exchange use that device, all of
/// whose kernels must fit on it at once. Throws ConfigError where there is no such device.
std::unique_ptr<GpuQueue> make_cuda_queue(int device, int ranks_there);

/// The same over a stream of the caller's (CUstream, of the device's primary context), which
/// outlives it.
std::unique_ptr<GpuQueue> use_cuda_stream(int device, int ranks_there, void* stream);

}  // namespace ferry
