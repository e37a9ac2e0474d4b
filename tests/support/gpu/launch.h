// One launch on the emulator: its blocks and threads, in what order they run, where they meet, and
// what they know of each other.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "ferry/kernels/gpu/thread.h"
#include "support/gpu/clocks.h"
#include "support/gpu/fibre.h"
#include "support/gpu/memory.h"
#include "support/gpu/turn.h"

namespace ferry::testing {
class EmulatedThread;
struct GpuEmulatorOptions;
}  // namespace ferry::testing

namespace ferry::testing::gpu {

class Launch;
struct Block;

/// A kernel without its type.
struct KernelCall {
  const void* kernel = nullptr;
  void (*call)(const void* kernel, EmulatedThread& thread) = nullptr;
};

/// What the lanes of a warp do together.
enum class WarpStep : std::uint8_t { sync, shuffle, shuffle_xor, shuffle_up, ballot };

/// 16 bytes that are under way into shared memory.
struct AsyncCopy {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;  ///< null: zeros
};

struct Thread {
  enum class State : std::uint8_t { ready, pausing, in_sync, in_warp_step, returned };

  Launch* launch = nullptr;
  Block* block = nullptr;
  Actor actor;
  State state = State::ready;
  std::unique_ptr<Fibre> fibre;
  ClocksPtr fenced;   ///< what its last fence gives to atomics behind it
  ClocksPtr relaxed;  ///< what a fence will make of what it has seen by relaxed atomics
  std::uint64_t given = 0, got = 0;  ///< of a warp step
  int source = 0;                    ///< the lane that it wants
  Site site;                         ///< of its last word to the emulator
  const void* touched = nullptr;     ///< by it last
  // Here, since what lies on a fibre that a fault ends is never destroyed.
  std::vector<AsyncCopy> copies = {};
  std::vector<std::size_t> copy_groups = {};  ///< of committed ones: how many copies are in each
};

struct Warp {
  int live = kWarpThreads;
  int in_sync = 0;  ///< lanes that wait in the block's barrier
  std::uint32_t priority = 0;
  int waiting = 0;  ///< lanes that wait in the step:
  WarpStep step = WarpStep::sync;
  std::size_t bytes = 0;
  Site site;
};

struct Block {
  std::uint32_t number = 0;
  int live = 0;
  int in_sync = 0;
  Site sync_site;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::unique_ptr<Region> shared;
};

/// What launches of one device share.
struct Device {
  const GpuEmulatorOptions& options;
  Memory memory;
  Turn turn;
  std::string fault = {};  ///< the first one; nothing runs after it
};

class Launch {
 public:
  /// `known` is what the host thread knows; with its turn, from here to the end of run().
  Launch(Device& device, KernelCall call, const GpuGrid& grid, Actor host, std::uint64_t seed);
  ~Launch();
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  /// Returns what the threads knew at their ends. Throws GpuFault.
  ClocksPtr run();

  // --- For EmulatedThread, on the thread's fibre. A fault does not return. ----------------------
  const GpuGrid& grid() const { return grid_; }

  void call(EmulatedThread& handle) const;
  void access(Thread& thread, const void* p, std::size_t size, Access kind, Site site);
  /// A line of shared memory is written some time from now on.
  void start_copy(Thread& thread, const void* to, Site site);
  void sync(Thread& thread, Site site);
  /// `value` for the other lanes; what lane `source` gave. Of a ballot, the bits.
  std::uint64_t warp_step(
      Thread& thread, WarpStep step, std::size_t bytes, std::uint64_t value, int source, Site site);
  void pause(Thread& thread);
  void fence(Thread& thread);
  void acquire(Thread& thread, const void* p);
  /// `keep`: what others released there stays, as for an atomic addition.
  void release(Thread& thread, const void* p, bool keep);
  void add_relaxed(Thread& thread, const void* p);

 private:
  void start_block();
  void end_block(Block& block);
  Thread& draw();
  Thread& take(std::vector<Thread*>& from);
  void run_thread(Thread& thread);
  void thread_returned(Thread& thread);
  void ready(Thread& thread);
  void look_after_others();
  [[noreturn]] void stuck(const std::string& what) const;
  std::string waits() const;
  template <class Work>
  void guard(Thread& thread, const Work& work);
  void maybe_switch(Thread& thread, int weight);
  void complete_sync(Block& block);
  void complete_warp_step(Thread& last);
  void join_lanes(std::span<Thread> lanes);
  ClocksPtr publish(Thread& thread);
  void learn(Thread& thread, const ClocksPtr& known);

  Device& device_;
  KernelCall call_;
  GpuGrid grid_;
  Actor host_;
  std::minstd_rand random_;
  int candidates_ = 1;     // how many are drawn; the first by priority runs
  int switch_every_ = 32;  // accesses, about
  int until_switch_ = 32;
  unsigned pass_every_ = 8;           // looks after others, about; so often one of them goes on
  std::vector<std::uint32_t> order_;  // of blocks that have not begun, from the back
  std::vector<std::unique_ptr<Block>> blocks_;  // resident
  std::vector<std::unique_ptr<Block>> idle_blocks_;
  std::vector<Thread*> ready_, pausing_;
  std::size_t quiet_turns_ = 0;  // since a thread wrote, passed a barrier or returned
  unsigned turns_ = 0;
  std::chrono::steady_clock::time_point deadline_;
  ClockJoiner joiner_;
  ClocksPtr known_at_end_;
  std::string fault_;
};

}  // namespace ferry::testing::gpu
