// Our header builds on CUDA's, so it comes behind.
// clang-format off
#include <cuda.h>

#include "ferry/exchange/gpu/cuda_driver.h"

// clang-format on

#include <cstring>

#include "ferry/core/error.h"
#include "ferry/transport/loaded_library.h"

namespace ferry::cuda {

namespace {

LoadedLibrary& driver_library() {
  static LoadedLibrary one(
      {.what = "CUDA", .files = {"libcuda.so.1"}, .remedy = "install NVIDIA's driver"});
  return one;
}

}  // namespace

std::string why_no_driver() { return driver_library().why_not(); }

#define FERRY_STRING_OF(x) #x
#define FERRY_NAME_OF(function) FERRY_STRING_OF(function)  // of the version that cuda.h means

const Driver& driver() {
  static const Driver one = [] {
    Driver driver{};
    const auto find = [](auto& to, const char* name) {
      void* found = driver_library().find({.name = name});
      std::memcpy(&to, &found, sizeof found);
    };
    find(driver.init, FERRY_NAME_OF(cuInit));
    find(driver.error_string, FERRY_NAME_OF(cuGetErrorString));
    find(driver.device_count, FERRY_NAME_OF(cuDeviceGetCount));
    find(driver.device, FERRY_NAME_OF(cuDeviceGet));
    find(driver.device_name, FERRY_NAME_OF(cuDeviceGetName));
    find(driver.device_attribute, FERRY_NAME_OF(cuDeviceGetAttribute));
    find(driver.retain_context, FERRY_NAME_OF(cuDevicePrimaryCtxRetain));
    find(driver.release_context, FERRY_NAME_OF(cuDevicePrimaryCtxRelease));
    find(driver.set_context, FERRY_NAME_OF(cuCtxSetCurrent));
    find(driver.load_module, FERRY_NAME_OF(cuModuleLoadData));
    find(driver.unload_module, FERRY_NAME_OF(cuModuleUnload));
    find(driver.function, FERRY_NAME_OF(cuModuleGetFunction));
    find(driver.occupancy, FERRY_NAME_OF(cuOccupancyMaxActiveBlocksPerMultiprocessor));
    find(driver.create_stream, FERRY_NAME_OF(cuStreamCreate));
    find(driver.destroy_stream, FERRY_NAME_OF(cuStreamDestroy));
    find(driver.synchronise, FERRY_NAME_OF(cuStreamSynchronize));
    find(driver.allocate, FERRY_NAME_OF(cuMemAlloc));
    find(driver.free, FERRY_NAME_OF(cuMemFree));
    find(driver.set, FERRY_NAME_OF(cuMemsetD8Async));
    find(driver.copy, FERRY_NAME_OF(cuMemcpyAsync));
    find(driver.map, FERRY_NAME_OF(cuMemHostRegister));
    find(driver.unmap, FERRY_NAME_OF(cuMemHostUnregister));
    find(driver.mapped_address, FERRY_NAME_OF(cuMemHostGetDevicePointer));
    find(driver.share, FERRY_NAME_OF(cuIpcGetMemHandle));
    find(driver.open, FERRY_NAME_OF(cuIpcOpenMemHandle));
    find(driver.close, FERRY_NAME_OF(cuIpcCloseMemHandle));
    find(driver.launch, FERRY_NAME_OF(cuLaunchKernel));
    find(driver.begin_capture, FERRY_NAME_OF(cuStreamBeginCapture));
    find(driver.end_capture, FERRY_NAME_OF(cuStreamEndCapture));
    find(driver.capture_info, FERRY_NAME_OF(cuStreamGetCaptureInfo));
    find(driver.instantiate, FERRY_NAME_OF(cuGraphInstantiate));
    find(driver.upload_graph, FERRY_NAME_OF(cuGraphUpload));
    find(driver.launch_graph, FERRY_NAME_OF(cuGraphLaunch));
    find(driver.destroy_graph, FERRY_NAME_OF(cuGraphDestroy));
    find(driver.destroy_instance, FERRY_NAME_OF(cuGraphExecDestroy));
    find(driver.create_event, FERRY_NAME_OF(cuEventCreate));
    find(driver.destroy_event, FERRY_NAME_OF(cuEventDestroy));
    find(driver.record, FERRY_NAME_OF(cuEventRecord));
    find(driver.elapsed, FERRY_NAME_OF(cuEventElapsedTime));
    return driver;
  }();
  return one;
}

void check(CUresult result, std::string_view call) {
  if (result == CUDA_SUCCESS) return;
  const char* text = nullptr;
  driver().error_string(result, &text);
  fail<Error>("{}: {}", call, text != nullptr ? text : "unknown error");
}

}  // namespace ferry::cuda
