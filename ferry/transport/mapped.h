// What inproc and shm share: ranks that map the same memory. A put is memcpy + atomic add, a wait
// polls and then sleeps on a doorbell. inproc.cpp and shm.cpp add where the memory comes from and
// how a dead rank shows.
#pragma once

#include <atomic>
#include <bitset>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/join.h"
#include "ferry/transport.h"
#include "ferry/transport/contract.h"

namespace ferry {

inline constexpr int kMaxMappedRanks = 256;

/// What one rank tells the others. Lines of its own: peers poll it.
struct alignas(64) RankBlock {
  enum class AbortState : std::uint32_t { none, being_written, set };
  static constexpr std::size_t kReasonBytes = 500;

  std::atomic<std::uint64_t> arrived{0};   // barriers entered so far
  std::atomic<std::uint32_t> doorbell{0};  // futex; rung when something this rank may await changed
  std::atomic<std::uint32_t> sleepers{
      0};                              // 1 while the rank sleeps on its doorbell, or is about to
  std::atomic<std::uint32_t> left{0};  // 1 once it has left in good order
  std::int32_t process_id = 0;         // shm only; fixed before others attach
  std::uint64_t process_started = 0;
  std::uintptr_t memory = 0;  // inproc only: what it registers in the register_region it is in
  RegionRequest request;      // of the allocate_region it is in
  std::atomic<AbortState> abort_state{AbortState::none};
  char abort_reason[kReasonBytes] = {};  // fixed once abort_state is set
};

/// What the ranks of a group share beside regions. Lies in memory that all map; valid when zeroed.
struct ControlBlock {
  std::atomic<std::int32_t> aborts{0};          // ranks that gave up: what polls look at
  std::atomic<std::int32_t> first_to_abort{0};  // that rank + 1; 0: none
  RankBlock ranks[kMaxMappedRanks];
};

/// The memory of one region, all ranks' parts in a row. Owned by every rank that has it mapped.
class RegionMemory {
 public:
  virtual ~RegionMemory() = default;
  virtual std::byte* base() const = 0;
};

class MappedRegion;

class MappedTransport : public Transport {
 public:
  struct Options {
    std::string_view name;                  // static storage
    std::shared_ptr<ControlBlock> control;  // owned by the ends that this process has
    bool shared = false;                    // ranks are processes
    JoinOptions join;                       // rank, size, and what groups split off have alike
  };

  ~MappedTransport() override;

  Rank rank() const override { return rank_; }

  int size() const override { return size_; }

  std::string_view name() const override { return name_; }

  Capabilities capabilities() const override {
    return {.load_store = true, .survives_peer_death = true, .one_process = !shared_};
  }

  std::unique_ptr<Region> allocate_region(std::size_t bytes, int num_signals) override;
  std::unique_ptr<Region> register_region(std::span<std::byte> memory, int num_signals) override;
  std::unique_ptr<Transport> split(int color, int key) override;
  void put(const Put& put) override;
  WaitResult wait(Region& region, int signal, std::uint64_t count, Deadline deadline) override;
  std::uint64_t signal_value(Region& region, int signal) override;
  bool progress() override;
  WaitResult barrier(Deadline deadline) override;
  void abort(std::string_view reason) noexcept override;
  void mask(Rank peer) override;
  std::span<std::byte> peer_window(Region& region, Rank peer) override;

 protected:
  explicit MappedTransport(Options options);

  ControlBlock& control() const { return *control_; }

  /// Called by rank 0 alone, before the others attach to what it made.
  virtual std::shared_ptr<RegionMemory> create_memory(std::size_t bytes) = 0;
  virtual std::shared_ptr<RegionMemory> attach_memory(std::size_t bytes) = 0;
  /// Whether `peer` is known to be gone, in good order or not. Called now and then by idle waits.
  virtual bool has_ended(Rank peer) = 0;

 private:
  friend class MappedRegion;
  template <class Reached, class Missing>
  WaitResult wait_until(const char* call, Deadline deadline, Reached reached, Missing missing);
  template <class Reached>
  void doze(Reached reached, std::chrono::nanoseconds at_most);
  [[noreturn]] void throw_gone(const char* call, Rank died, Rank left);
  template <class Missing>
  void find_gone(Missing missing, Rank& died, Rank& left);
  void ring(Rank peer) noexcept;
  Rank aborter() const;
  void throw_if_aborted(const char* call);
  void enter_together(const char* call);
  void compare_requests();
  std::shared_ptr<RegionMemory> share_memory(const char* call,
                                             const RegionRequest& request,
                                             std::size_t bytes);
  void deliver();

  const std::string_view name_;
  const std::shared_ptr<ControlBlock> control_;
  const JoinOptions join_;
  const Rank rank_;
  const int size_;
  const bool shared_;
  const std::chrono::nanoseconds start_timeout_;
  const int unwinding_;  // exceptions in flight when this was made
  Deadline next_look_for_deaths_{};
  std::uint64_t barriers_ = 0;  // entered so far
  std::bitset<kMaxMappedRanks> masked_;
  std::vector<std::uintptr_t> registered_at_;  // [R] RankBlock::memory of the latest region
  std::vector<MappedRegion*> mailboxes_;       // regions into which puts need this rank's help
};

}  // namespace ferry
