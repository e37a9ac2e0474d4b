// A GPU on a host, for kernels that are written against ferry/kernels/gpu/thread.h: runs them, and
// watches what a GPU would let pass until it does not.
//
// Threads of a block are fibres (gpu/fibre.h). Several blocks are resident at once; which thread
// runs next is drawn, with switches at barriers, shuffles, pauses, often at atomics and now and
// then at plain accesses. The same seed draws the same order, as long as one host thread launches.
//
// Faults, each with kernel, block, threads, file and line, and the place in memory:
//   - an access outside known memory, not aligned to its size; shared memory that nobody wrote
//   - a race: two accesses of one byte, one of them a write, not both atomic, without order
//   - shuffles and ballots without the whole warp; different barriers or steps at once; lanes that
//     others wait for and that went elsewhere or returned
//   - a launch that does not end in GpuEmulatorOptions::timeout: who waits where. A loop that calls
//     nothing of its thread is not found.
//
// What orders accesses (happens before; it is transitive):
//   - a thread's own accesses, as they stand in the program
//   - sync() and sync_warp(): what the threads that take part did before, for all of them. Not what
//     a thread did that returned before. Shuffles and ballots order nothing.
//   - store_release() and add_release(), for who reads that value, or one that additions have made
//     of it, with load_acquire(). A later store takes its place.
//   - add_acquire_release(), for who does the same to that place later
//   - fence() and then add(), like a release, for who acquires; add() and then fence(), like an
//     acquire. Of the same thread: a fence of another one does not do. add() alone orders nothing.
//   - launches of one host thread: one whole after the other
//   - launches of different host threads: by acquire and release as above, and by what the host
//     tells: host_released(), host_acquired(), synchronize(). The first launch of a host thread
//     comes after all that have ended by then (somebody started the thread).
// add() is atomic for the launches of one host thread alone, since ranks may be different devices;
// atomics of different sizes or places that overlap are not atomic for each other.
#pragma once

#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <typeinfo>

#include "ferry/kernels/gpu/thread.h"
#include "support/gpu/site.h"

namespace ferry::testing {

namespace gpu {
enum class Access : std::uint8_t;
enum class WarpStep : std::uint8_t;
struct KernelCall;
struct Thread;
}  // namespace gpu

struct GpuEmulatorOptions {
  std::uint64_t seed = 0;
  bool watch = true;  ///< races and bounds; barriers and steps of warps are watched in any case
  std::chrono::milliseconds timeout{60000};  ///< of a launch
  int resident_blocks = 16;  ///< of a launch at once; others begin when one has ended
  /// Whether a launch comes after all that have ended when it begins, whoever launched them. For
  /// hosts that tell nothing of how they wait for each other; finds less.
  bool launches_in_order = false;
  /// Every host thread is a process of its own: what it allocates, only it may reach, and others
  /// through open(), at another address. Found besides: another process's address, and memory that
  /// its owner frees while somebody has it open.
  bool processes = false;
};

/// What a kernel did that no GPU promises to do well. One line.
class GpuFault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The thread handle of thread.h; see there.
class EmulatedThread {
 public:
  explicit EmulatedThread(gpu::Thread& self);

  int block() const { return block_; }

  int blocks() const { return blocks_; }

  int thread() const { return thread_; }

  int threads() const { return threads_; }

  int lane() const { return thread_ % kWarpThreads; }

  int warp() const { return thread_ / kWarpThreads; }

  int warps() const { return threads_ / kWarpThreads; }

  template <class V>
  V load(const V* p, Site site = Site::current()) const {
    check_type<V>();
    before_load(p, sizeof(V), site);
    Bytes<V> bytes;
    std::memcpy(&bytes, p, sizeof(V));
    return std::bit_cast<V>(bytes);
  }

  template <class V>
  void store(V* p, std::type_identity_t<V> v, Site site = Site::current()) const {
    check_type<V>();
    before_store(p, sizeof(V), site);
    std::memcpy(p, &v, sizeof(V));
  }

  std::byte* shared() const { return shared_; }

  void sync(Site site = Site::current()) const;
  void sync_warp(Site site = Site::current()) const;

  template <class V>
  V shuffle(V v, int lane, Site site = Site::current()) const {
    return from_bits<V>(shuffle_bits(bits_of(v), sizeof(V), lane, site));
  }

  template <class V>
  V shuffle_xor(V v, int mask, Site site = Site::current()) const {
    return from_bits<V>(shuffle_xor_bits(bits_of(v), sizeof(V), mask, site));
  }

  template <class V>
  V shuffle_up(V v, int lanes, Site site = Site::current()) const {
    return from_bits<V>(shuffle_up_bits(bits_of(v), sizeof(V), lanes, site));
  }

  std::uint32_t ballot(bool b, Site site = Site::current()) const;

  std::uint32_t add(std::uint32_t* p, std::uint32_t v, Site site = Site::current()) const;
  std::uint64_t add(std::uint64_t* p, std::uint64_t v, Site site = Site::current()) const;
  std::uint32_t add_acquire_release(std::uint32_t* p,
                                    std::uint32_t v,
                                    Site site = Site::current()) const;
  std::uint32_t load_acquire(const std::uint32_t* p, Site site = Site::current()) const;
  std::uint64_t load_acquire(const std::uint64_t* p, Site site = Site::current()) const;
  void store_release(std::uint32_t* p, std::uint32_t v, Site site = Site::current()) const;
  void store_release(std::uint64_t* p, std::uint64_t v, Site site = Site::current()) const;
  void add_release(std::uint32_t* p, std::uint32_t v, Site site = Site::current()) const;
  void add_release(std::uint64_t* p, std::uint64_t v, Site site = Site::current()) const;
  void fence(Site site = Site::current()) const;
  void pause(Site site = Site::current()) const;
  /// Done by the wait for it, or at the end; until then nobody has written there.
  void copy_async(std::byte* to, const std::byte* from, bool there, Site site = Site::current());
  void commit_copies();

  template <int Groups>
  void wait_copies(Site site = Site::current()) {
    finish_copies(Groups, site);
  }

  /// In order of the depth, fused.
  void multiply(float (&sums)[4],
                const MatrixWords& a,
                std::uint32_t b0,
                std::uint32_t b1,
                Site site = Site::current()) const;
  std::uint32_t multiply_pairs(std::uint32_t a, std::uint32_t b) const;
  std::uint32_t pick_bytes(std::uint32_t v, std::uint32_t picks) const;
  std::uint64_t nanoseconds() const;

 private:
  template <class V>
  struct Bytes {
    std::byte bytes[sizeof(V)];
  };

  template <class V>
  static void check_type() {
    static_assert(std::is_trivially_copyable_v<V>);
    static_assert(sizeof(V) <= 16 && std::has_single_bit(sizeof(V)), "1, 2, 4, 8 or 16 bytes");
  }

  template <class V>
  static std::uint64_t bits_of(V v) {
    static_assert(std::is_trivially_copyable_v<V> && (sizeof(V) == 4 || sizeof(V) == 8));
    std::uint64_t bits = 0;
    std::memcpy(&bits, &v, sizeof(V));
    return bits;
  }

  template <class V>
  static V from_bits(std::uint64_t bits) {
    Bytes<V> bytes;
    std::memcpy(&bytes, &bits, sizeof(V));
    return std::bit_cast<V>(bytes);
  }

  void before_load(const void* p, std::size_t bytes, Site site) const;
  void before_store(const void* p, std::size_t bytes, Site site) const;
  std::uint64_t shuffle_bits(std::uint64_t v, std::size_t bytes, int lane, Site site) const;
  std::uint64_t shuffle_xor_bits(std::uint64_t v, std::size_t bytes, int mask, Site site) const;
  std::uint64_t shuffle_up_bits(std::uint64_t v, std::size_t bytes, int lanes, Site site) const;
  template <class V>
  V add_word(V* p, V v, Site site) const;
  template <class V>
  V acquire_word(const V* p, Site site) const;
  template <class V>
  void release_word(V* p, V v, Site site) const;
  template <class V>
  void add_release_word(V* p, V v, Site site) const;
  void finish_copies(std::size_t groups_left, Site site);

  gpu::Thread& self_;
  int block_, blocks_, thread_, threads_;
  std::byte* shared_;
};

/// A device. Ranks that are threads may share it: launches of several host threads at once take
/// turns, thread by thread. Any thread may call. After a fault every launch, running ones too, ends
/// with it.
class GpuEmulator {
 public:
  explicit GpuEmulator(GpuEmulatorOptions options = {});
  ~GpuEmulator();
  GpuEmulator(const GpuEmulator&) = delete;
  GpuEmulator& operator=(const GpuEmulator&) = delete;

  /// Device memory, aligned to 256 bytes, full of 0xa5, with zones around it that nobody may touch.
  /// The caller frees it, or the emulator does at its end. The host may use it as its own.
  void* allocate(std::size_t bytes, std::string name = {});
  void free(void* memory);

  /// What open() on any host thread takes for this allocation.
  std::uint64_t share(const void* memory);
  /// Allocated memory as this host thread's launches reach it; that of its own process lies where
  /// it was allocated. Until close().
  void* open(std::uint64_t shared);
  void close(void* opened);

  /// What was found first, also by a call that may not throw; empty: nothing.
  std::string fault() const;

  /// Memory of the host that kernels may reach: pinned, a peer's region. Until unwatch(), once for
  /// each watch(). What is known already, or part of it, may be watched again.
  void watch(const void* memory, std::size_t bytes, std::string name);
  void unwatch(const void* memory);

  /// Runs the kernel to its end. Throws GpuFault, and std::invalid_argument for a wrong grid.
  template <class Kernel>
  void launch(const Kernel& kernel, const GpuGrid& grid) {
    static_assert(std::is_trivially_copyable_v<Kernel>, "a kernel's arguments are copied as bytes");
    run(
        &kernel,
        [](const void* k, EmulatedThread& t) { (*static_cast<const Kernel*>(k))(t); },
        typeid(Kernel),
        grid);
  }

  // --- What the host does between launches. Nobody needs to tell, but what is not told is not
  // ordered, and not watched.
  // -----------------------------------------------------------------------
  /// The host thread reads or writes this memory now, in order with its launches.
  void host_reads(const void* p, std::size_t bytes, Site site = Site::current());
  void host_writes(const void* p, std::size_t bytes, Site site = Site::current());
  /// Copies as cudaMemcpy does, between any two of memory of the device and the host's.
  void copy(void* to, const void* from, std::size_t bytes, Site site = Site::current());
  /// What this host thread has launched, and what it knows, is known to who acquires at `p`: any
  /// address that both sides know, in known memory or not.
  void host_released(const void* p);
  void host_acquired(const void* p);
  /// All launches that have ended are known to this host thread: it has waited for their threads.
  void synchronize();

 private:
  struct Impl;
  void run(const void* kernel,
           void (*call)(const void*, EmulatedThread&),
           const std::type_info& type,
           const GpuGrid& grid);

  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry::testing
