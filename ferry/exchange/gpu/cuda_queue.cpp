// A CUDA stream, by the driver's own interface (cuda.h), which is loaded when the first device is
// asked for: the program runs on machines without it. The kernels travel inside the program, as the
// image that cmake/ferry_cuda.cmake builds.
#include <cuda.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/exchange/gpu/cuda.h"
#include "ferry/transport/loaded_library.h"

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

namespace ferry {

namespace {

LoadedLibrary& driver_library() {
  static LoadedLibrary one(
      {.what = "CUDA", .files = {"libcuda.so.1"}, .remedy = "install NVIDIA's driver"});
  return one;
}

/// The functions of the driver that are used here, found once.
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

constexpr std::size_t kExchangeKernels = 7;  // the first ones of GpuKernel

/// A device's context with the kernels in it, for all queues of the process.
class Device {
 public:
  explicit Device(int number) {
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

  ~Device() {
    make_current();
    driver().unload_module(module_);
    driver().release_context(device_);
  }

  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  void make_current() const { check(driver().set_context(context_), "cuCtxSetCurrent"); }

  CUfunction kernel(std::size_t index) const { return kernels_[index]; }

  int attribute(CUdevice_attribute which) const {
    int value = 0;
    check(driver().device_attribute(&value, which, device_), "cuDeviceGetAttribute");
    return value;
  }

  /// Of the kernel of an exchange of which the fewest fit: others wait for nobody.
  int blocks_per_multiprocessor(int threads, std::size_t shared) const {
    int least = 1 << 16;
    for (std::size_t i = 0; i < kExchangeKernels; ++i) {
      int blocks = 0;
      check(driver().occupancy(&blocks, kernels_[i], threads, shared), "cuOccupancy...");
      least = std::min(least, blocks);
    }
    return least;
  }

 private:
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  CUmodule module_ = nullptr;
  std::vector<CUfunction> kernels_;
};

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

class Owned final : public GpuMemory {
 public:
  Owned(std::shared_ptr<Device> device, CUdeviceptr data, std::size_t bytes)
      : GpuMemory(reinterpret_cast<std::byte*>(data), bytes), device_(std::move(device)) {}

  ~Owned() override {
    device_->make_current();
    driver().free(reinterpret_cast<CUdeviceptr>(data()));
  }

  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;

 private:
  std::shared_ptr<Device> device_;
};

/// A peer's: of another process by a handle, of this one by its address.
class Opened final : public GpuMemory {
 public:
  Opened(std::shared_ptr<Device> device, CUdeviceptr data, std::size_t bytes, bool by_handle)
      : GpuMemory(reinterpret_cast<std::byte*>(data), bytes),
        device_(std::move(device)),
        by_handle_(by_handle) {}

  ~Opened() override {
    if (!by_handle_) return;
    device_->make_current();
    driver().close(reinterpret_cast<CUdeviceptr>(data()));
  }

  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

 private:
  std::shared_ptr<Device> device_;
  bool by_handle_;
};

/// Pinned, at an address that may differ from the host's.
class Mapped final : public GpuMapped {
 public:
  Mapped(std::shared_ptr<Device> device, CUdeviceptr data, std::span<std::byte> host)
      : GpuMapped(reinterpret_cast<std::byte*>(data), host),
        device_(std::move(device)),
        host_(host.data()) {}

  ~Mapped() override {
    device_->make_current();
    driver().unmap(host_);
  }

  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

 private:
  std::shared_ptr<Device> device_;
  std::byte* host_;
};

struct Shared {
  pid_t process = 0;
  CUdeviceptr address = 0;
  CUipcMemHandle handle{};
};

/// What is left of a captured graph is what runs: its nodes are not changed afterwards.
class CudaGraph final : public GpuGraph {
 public:
  CudaGraph(std::shared_ptr<Device> device, CUgraph graph, CUstream stream)
      : device_(std::move(device)), stream_(stream) {
    const CUresult result = driver().instantiate(&instance_, graph, 0);
    driver().destroy_graph(graph);
    check(result, "cuGraphInstantiate");
    // Now rather than at the first launch, when a peer's kernel may be waiting for this one.
    const CUresult uploaded = driver().upload_graph(instance_, stream_);
    if (uploaded != CUDA_SUCCESS) driver().destroy_instance(instance_);
    check(uploaded, "cuGraphUpload");
  }

  /// The driver keeps what a launch still runs until it has ended.
  ~CudaGraph() override {
    device_->make_current();
    driver().destroy_instance(instance_);
  }

  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  void launch() override {
    device_->make_current();
    check(driver().launch_graph(instance_, stream_), "cuGraphLaunch");
  }

 private:
  std::shared_ptr<Device> device_;
  CUstream stream_;
  CUgraphExec instance_ = nullptr;
};

class CudaQueue final : public GpuQueue {
 public:
  CudaQueue(int number, int ranks_there)
      : number_(number), ranks_there_(ranks_there), owns_stream_(true), device_(device_of(number)) {
    device_->make_current();
    check(driver().create_stream(&stream_, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  }

  CudaQueue(int number, int ranks_there, CUstream stream)
      : number_(number),
        ranks_there_(ranks_there),
        owns_stream_(false),
        device_(device_of(number)),
        stream_(stream) {}

  ~CudaQueue() override {
    device_->make_current();
    for (const CUevent event : events_) driver().destroy_event(event);
    if (owns_stream_) driver().destroy_stream(stream_);
  }

  CudaQueue(const CudaQueue&) = delete;
  CudaQueue& operator=(const CudaQueue&) = delete;

  std::string_view name() const override { return "cuda"; }

  MemoryPlace place() const override {
    return {.kind = MemoryKind::device, .device = number_, .queue = stream_};
  }

  std::unique_ptr<GpuMemory> allocate(std::size_t bytes) override {
    refuse_in_capture("an allocation");
    device_->make_current();
    CUdeviceptr data = 0;
    check(driver().allocate(&data, std::max<std::size_t>(bytes, 1)), "cuMemAlloc");
    auto memory = std::make_unique<Owned>(device_, data, bytes);
    check(driver().set(data, 0, bytes, stream_), "cuMemsetD8Async");
    synchronise();
    return memory;
  }

  std::vector<std::byte> share(const GpuMemory& memory) override {
    device_->make_current();
    Shared shared{.process = getpid(), .address = reinterpret_cast<CUdeviceptr>(memory.data())};
    check(driver().share(&shared.handle, shared.address), "cuIpcGetMemHandle");
    const auto* bytes = reinterpret_cast<const std::byte*>(&shared);
    return {bytes, bytes + sizeof shared};
  }

  std::unique_ptr<GpuMemory> open(std::span<const std::byte> bytes, std::size_t size) override {
    Shared shared;
    FERRY_CHECK(bytes.size() == sizeof shared, "{} bytes of a handle", bytes.size());
    std::memcpy(&shared, bytes.data(), sizeof shared);
    device_->make_current();
    const bool by_handle = shared.process != getpid();
    CUdeviceptr data = shared.address;
    if (by_handle) {
      check(driver().open(&data, shared.handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS),
            "cuIpcOpenMemHandle");
    }
    return std::make_unique<Opened>(device_, data, size, by_handle);
  }

  std::unique_ptr<GpuMapped> map(std::span<std::byte> host) override {
    refuse_in_capture("a mapping");
    device_->make_current();
    check(driver().map(
              host.data(), host.size(), CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP),
          "cuMemHostRegister");
    CUdeviceptr data = 0;
    const CUresult result = driver().mapped_address(&data, host.data(), 0);
    if (result != CUDA_SUCCESS) driver().unmap(host.data());
    check(result, "cuMemHostGetDevicePointer");
    return std::make_unique<Mapped>(device_, data, host);
  }

  void copy(void* to, const void* from, std::size_t bytes) override {
    if (bytes == 0) return;
    device_->make_current();
    check(
        driver().copy(
            reinterpret_cast<CUdeviceptr>(to), reinterpret_cast<CUdeviceptr>(from), bytes, stream_),
        "cuMemcpyAsync");
  }

  void launch(const GpuKernel& kernel, const GpuGrid& grid) override {
    device_->make_current();
    std::visit(
        [&](auto arguments) {
          std::array<void*, 1> parameters = {&arguments};
          check(driver().launch(device_->kernel(kernel.index()),
                                static_cast<unsigned>(grid.blocks),
                                1,
                                1,
                                static_cast<unsigned>(grid.threads),
                                1,
                                1,
                                static_cast<unsigned>(grid.shared_bytes),
                                stream_,
                                parameters.data(),
                                nullptr),
                "cuLaunchKernel");
        },
        kernel);
  }

  void synchronise() override {
    refuse_in_capture("synchronise()");
    check(driver().synchronise(stream_), "cuStreamSynchronize");
  }

  std::uint64_t capturing() const override {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    cuuint64_t number = 0;
#if CUDA_VERSION >= 13000
    check(driver().capture_info(stream_, &status, &number, nullptr, nullptr, nullptr, nullptr),
          "cuStreamGetCaptureInfo");
#else
    check(driver().capture_info(stream_, &status, &number, nullptr, nullptr, nullptr),
          "cuStreamGetCaptureInfo");
#endif
    return status == CU_STREAM_CAPTURE_STATUS_NONE ? 0 : number;
  }

  std::size_t mark() override {
    refuse_in_capture("a mark");
    device_->make_current();
    if (marks_ == events_.size()) {
      events_.emplace_back();
      check(driver().create_event(&events_.back(), CU_EVENT_DEFAULT), "cuEventCreate");
    }
    check(driver().record(events_[marks_], stream_), "cuEventRecord");
    return marks_++;
  }

  double microseconds(std::size_t from, std::size_t to) override {
    float milliseconds = 0;
    check(driver().elapsed(&milliseconds, events_[from], events_[to]), "cuEventElapsedTime");
    return double{milliseconds} * 1000;
  }

  void forget_marks() override { marks_ = 0; }

  int resident_blocks(int threads) const override {
    const int all = device_->attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) *
                    device_->blocks_per_multiprocessor(threads, shared_bytes());
    return std::max(1, all / ranks_there_);
  }

  std::size_t shared_bytes() const override { return std::size_t{48} << 10; }

 private:
  /// Thread-local: what other ranks' threads allocate meanwhile is no affair of this capture.
  void begin_capture() override {
    device_->make_current();
    check(driver().begin_capture(stream_, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
          "cuStreamBeginCapture");
  }

  std::unique_ptr<GpuGraph> end_capture() override {
    CUgraph graph = nullptr;
    check(driver().end_capture(stream_, &graph), "cuStreamEndCapture");
    return std::make_unique<CudaGraph>(device_, graph, stream_);
  }

  int number_;
  int ranks_there_;
  bool owns_stream_;
  std::shared_ptr<Device> device_;
  CUstream stream_ = nullptr;
  std::vector<CUevent> events_;
  std::size_t marks_ = 0;  // of them, in use
};

}  // namespace

CudaDevices find_cuda_devices() {
  CudaDevices found{.why_none = driver_library().why_not()};
  if (!found.why_none.empty()) return found;
  // Else the first launch of a kernel waits for those that run, which may be waiting for it.
  setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/0);
  int count = 0;
  if (driver().init(0) != CUDA_SUCCESS || driver().device_count(&count) != CUDA_SUCCESS ||
      count == 0) {
    found.why_none = "NVIDIA's driver finds no device";
    return found;
  }
  for (int number = 0; number < count; ++number) {
    std::array<char, 256> name{};
    CUdevice device = 0;
    if (driver().device(&device, number) == CUDA_SUCCESS)
      driver().device_name(name.data(), static_cast<int>(name.size()), device);
    found.names.emplace_back(name.data());
  }
  return found;
}

namespace {

void check_device(int device, int ranks_there) {
  const CudaDevices found = find_cuda_devices();
  if (found.names.empty()) fail<ConfigError>("device cuda {}: {}", device, found.why_none);
  if (device < 0 || static_cast<std::size_t>(device) >= found.names.size())
    fail<ConfigError>("device cuda {}: this machine has 0..{}", device, found.names.size() - 1);
  FERRY_CHECK(ranks_there >= 1, "{} ranks on a device", ranks_there);
}

}  // namespace

std::unique_ptr<GpuQueue> make_cuda_queue(int device, int ranks_there) {
  check_device(device, ranks_there);
  return std::make_unique<CudaQueue>(device, ranks_there);
}

std::unique_ptr<GpuQueue> use_cuda_stream(int device, int ranks_there, void* stream) {
  check_device(device, ranks_there);
  return std::make_unique<CudaQueue>(device, ranks_there, static_cast<CUstream>(stream));
}

}  // namespace ferry
