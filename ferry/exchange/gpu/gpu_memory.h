// Memory that kernels reach: of a device, or of the host.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ferry {

/// Memory of a device, of this rank or opened from a peer's.
class GpuMemory {
 public:
  virtual ~GpuMemory() = default;
  GpuMemory(const GpuMemory&) = delete;
  GpuMemory& operator=(const GpuMemory&) = delete;

  std::byte* data() const { return data_; }

  std::size_t size() const { return size_; }

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 protected:
  GpuMemory(std::byte* data, std::size_t size) : data_(data), size_(size) {}

 private:
  std::byte* data_;
  std::size_t size_;
};

/// Memory of the host that kernels reach, too: at data(), which need not be an address of the
/// host's. Does not own that memory, which outlives it. The host goes to it by its own address;
/// what it does there in turn with kernels it does through, or tells, this. Threads: any.
class GpuMapped : public GpuMemory {
 public:
  /// Whether a kernel has released at least `value` at this word; then what it wrote before is
  /// seen.
  bool acquire(std::size_t offset, std::uint64_t value) {
    if (word(offset).load(std::memory_order_acquire) < value) return false;
    tell_acquired(offset);
    return true;
  }

  /// For kernels that acquire the word, with all that this thread wrote, or knows to be written.
  void release(std::size_t offset, std::uint64_t value) {
    tell_releases(offset);
    word(offset).store(value, std::memory_order_release);
  }

  /// These bytes are read, or have been written, now: for those who watch, as the emulator does.
  virtual void reads(std::size_t, std::size_t) {}

  virtual void writes(std::size_t, std::size_t) {}

 protected:
  GpuMapped(std::byte* data, std::span<std::byte> host)
      : GpuMemory(data, host.size()), host_(host.data()) {}

 private:
  virtual void tell_acquired(std::size_t) {}

  virtual void tell_releases(std::size_t) {}

  std::atomic_ref<std::uint64_t> word(std::size_t offset) const {
    return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(host_ + offset));
  }

  std::byte* host_;
};

}  // namespace ferry
