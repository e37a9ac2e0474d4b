// A CUDA stream, the memory that its kernels reach, and graphs of what it captured.
#include <cuda.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/exchange/gpu/cuda.h"
#include "ferry/exchange/gpu/cuda_device.h"

namespace ferry {

using cuda::check;
using cuda::Device;
using cuda::device_of;
using cuda::driver;

namespace {

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
  CudaDevices found{.why_none = cuda::why_no_driver()};
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
