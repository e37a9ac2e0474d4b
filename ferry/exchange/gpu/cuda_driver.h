// The driver's own interface (cuda.h), loaded when the first device is asked for: the program runs
// on machines without it. For the files of this folder that are compiled with FERRY_WITH_CUDA
// alone.
#pragma once

#include <string>
#include <string_view>

namespace ferry::cuda {

/// Empty, or why there is no driver here.
std::string why_no_driver();

/// The functions of the driver that are used here.
struct Driver {
  decltype(&::cuInit) init;
  decltype(&::cuGetErrorString) error_string;
  decltype(&::cuDeviceGetCount) device_count;
  decltype(&::cuDeviceGet) device;
  decltype(&::cuDeviceGetName) device_name;
  decltype(&::cuDeviceGetAttribute) device_attribute;
  decltype(&::cuDevicePrimaryCtxRetain) retain_context;
  decltype(&::cuDevicePrimaryCtxRelease) release_context;
  decltype(&::cuCtxSetCurrent) set_context;
  decltype(&::cuModuleLoadData) load_module;
  decltype(&::cuModuleUnload) unload_module;
  decltype(&::cuModuleGetFunction) function;
  decltype(&::cuOccupancyMaxActiveBlocksPerMultiprocessor) occupancy;
  decltype(&::cuStreamCreate) create_stream;
  decltype(&::cuStreamDestroy) destroy_stream;
  decltype(&::cuStreamSynchronize) synchronise;
  decltype(&::cuMemAlloc) allocate;
  decltype(&::cuMemFree) free;
  decltype(&::cuMemsetD8Async) set;
  decltype(&::cuMemcpyAsync) copy;
  decltype(&::cuMemHostRegister) map;
  decltype(&::cuMemHostUnregister) unmap;
  decltype(&::cuMemHostGetDevicePointer) mapped_address;
  decltype(&::cuIpcGetMemHandle) share;
  decltype(&::cuIpcOpenMemHandle) open;
  decltype(&::cuIpcCloseMemHandle) close;
  decltype(&::cuLaunchKernel) launch;
  decltype(&::cuStreamBeginCapture) begin_capture;
  decltype(&::cuStreamEndCapture) end_capture;
  decltype(&::cuStreamGetCaptureInfo) capture_info;
  decltype(&::cuGraphInstantiate) instantiate;
  decltype(&::cuGraphUpload) upload_graph;
  decltype(&::cuGraphLaunch) launch_graph;
  decltype(&::cuGraphDestroy) destroy_graph;
  decltype(&::cuGraphExecDestroy) destroy_instance;
  decltype(&::cuEventCreate) create_event;
  decltype(&::cuEventDestroy) destroy_event;
  decltype(&::cuEventRecord) record;
  decltype(&::cuEventElapsedTime) elapsed;
};

/// Found at the first call. Throws ConfigError where there is no driver, or one that is too old.
const Driver& driver();

/// Throws Error with the driver's words where `call` has failed.
void check(CUresult result, std::string_view call);

}  // namespace ferry::cuda
