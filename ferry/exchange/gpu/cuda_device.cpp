// Our header builds on CUDA's, so it comes behind.
// clang-format off
#include <cuda.h>

#include "ferry/exchange/gpu/cuda_device.h"

// clang-format on

#include <algorithm>
#include <array>
#include <mutex>
#include <variant>

#include "ferry/exchange/gpu/gpu_queue.h"

// FERRY_CUDA_IMAGE: the file.
asm(".section .rodata\n"
    ".balign 16\n"
    ".global ferry_cuda_image\n"
    ".hidden ferry_cuda_image\n"
    "ferry_cuda_image:\n"
    ".incbin \"" FERRY_CUDA_IMAGE
    "\"\n"
    ".byte 0\n"
    ".previous\n");
extern "C" __attribute__((visibility("hidden"))) const char ferry_cuda_image[];

namespace ferry::cuda {

namespace {

constexpr std::size_t kExchangeKernels = 7;  // the first ones of GpuKernel

}  // namespace

Device::Device(int number) {
  check(driver().device(&device_, number), "cuDeviceGet");
  check(driver().retain_context(&context_, device_), "cuDevicePrimaryCtxRetain");
  make_current();
  check(driver().load_module(&module_, ferry_cuda_image), "cuModuleLoadData");
  // In the order of GpuKernel.
  constexpr std::array kNames = {"ferry_send_tokens",
                                 "ferry_receive_tokens",
                                 "ferry_send_results",
                                 "ferry_send_sums",
                                 "ferry_sum_results",
                                 "ferry_send_far_tokens",
                                 "ferry_send_far_results",
                                 "ferry_product_bf16",
                                 "ferry_product_bf16_fp8",
                                 "ferry_product_fp8_bf16",
                                 "ferry_product_fp8",
                                 "ferry_product_peak"};
  static_assert(kNames.size() == std::variant_size_v<GpuKernel>);
  for (const char* name : kNames) {
    kernels_.emplace_back();
    check(driver().function(&kernels_.back(), module_, name), name);
  }
}

Device::~Device() {
  make_current();
  driver().unload_module(module_);
  driver().release_context(device_);
}

void Device::make_current() const { check(driver().set_context(context_), "cuCtxSetCurrent"); }

int Device::attribute(CUdevice_attribute which) const {
  int value = 0;
  check(driver().device_attribute(&value, which, device_), "cuDeviceGetAttribute");
  return value;
}

int Device::blocks_per_multiprocessor(int threads, std::size_t shared) const {
  int least = 1 << 16;
  for (std::size_t i = 0; i < kExchangeKernels; ++i) {
    int blocks = 0;
    check(driver().occupancy(&blocks, kernels_[i], threads, shared), "cuOccupancy...");
    least = std::min(least, blocks);
  }
  return least;
}

std::shared_ptr<Device> device_of(int number) {
  static std::mutex mutex;
  static std::vector<std::weak_ptr<Device>> all;
  const std::lock_guard lock(mutex);
  const auto at = static_cast<std::size_t>(number);
  if (all.size() <= at) all.resize(at + 1);
  std::shared_ptr<Device> device = all[at].lock();
  if (!device) all[at] = device = std::make_shared<Device>(number);
  return device;
}

}  // namespace ferry::cuda
