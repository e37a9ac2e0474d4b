// Exchanges on GPUs of ranks that are processes, as far as they can be had in one: the emulator
// gives each rank memory that only it may reach, and the others open it by a handle, at another
// address.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "ferry/core/error.h"
#include "gpu_harness.h"
#include "support/emulated_queue.h"
#include "support/long_tests.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using testing::EmulatedQueue;
using testing::GpuEmulator;
using testing::GpuLane;
using testing::GpuRuns;
using testing::run_gpu_exchanges;

DispatcherOptions options_of(DispatchFormat format, int tp, WireType combine) {
  DispatcherOptions o{.exchange = exchange_options(MoeA2ABackend::pplx),
                      .slots_per_rank = 3,
                      .hidden = 40,
                      .topk = 3,
                      .max_tokens = 6,
                      .tp = tp,
                      .combine_wire = combine,
                      .timeout = std::chrono::seconds(60)};
  o.exchange.format = format;
  o.exchange.fixed_format = true;
  o.row_weights = tp == 1;
  // The routing, too, is read in another process's memory then.
  if (combine == WireType::bf16) o.exchange.reduce_at = ExchangeOptions::ReduceAt::rank_then_home;
  return o;
}

TEST(GpuProcesses, DeliverEveryRowAndSumInOrder) {
  for (const int ranks : {1, 2, 4}) {
    if (slow_run() && ranks != 2) continue;
    for (const DispatchFormat format :
         {DispatchFormat::padded, DispatchFormat::ragged, DispatchFormat::row_pointers}) {
      for (const auto& [tp, wire] : {std::pair(1, WireType::f32),
                                     std::pair(2, WireType::fp8),
                                     std::pair(2, WireType::bf16)}) {
        if (ranks % tp != 0) continue;
        GpuEmulator device({.seed = static_cast<std::uint64_t>(ranks), .processes = true});
        const DispatcherOptions options = options_of(format, tp, wire);
        on_ranks({.ranks = ranks}, [&](Transport& transport) {
          EmulatedQueue queue(device, 2);
          run_gpu_exchanges({.dispatcher = options,
                             .seed = 31,
                             .count = slow_run() ? 1 : 4,
                             .runs = GpuRuns::either},
                            transport,
                            queue);
        });
        ASSERT_EQ(device.fault(), "") << ranks << " ranks, " << format_name(format);
      }
    }
  }
}

// --- Faults that are planted
// -----------------------------------------------------------------------

/// Takes a peer's own address for one of this process.
class RawAddress final : public EmulatedQueue {
 public:
  using EmulatedQueue::EmulatedQueue;

  std::vector<std::byte> share(const GpuMemory& memory) override {
    std::byte* const data = memory.data();
    std::vector<std::byte> shared(sizeof data);
    std::memcpy(shared.data(), &data, sizeof data);
    return shared;
  }

  std::unique_ptr<GpuMemory> open(std::span<const std::byte> shared, std::size_t size) override {
    std::byte* data = nullptr;
    std::memcpy(&data, shared.data(), sizeof data);
    return std::make_unique<Borrowed>(data, size);
  }

 private:
  struct Borrowed final : GpuMemory {
    Borrowed(std::byte* data, std::size_t size) : GpuMemory(data, size) {}
  };
};

std::string fault_of_raw_addresses(bool processes) {
  GpuEmulator device({.seed = 1, .processes = processes});
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    RawAddress queue(device, 1);
    try {
      run_gpu_exchanges(
          {.dispatcher = options_of(DispatchFormat::ragged, 1, WireType::f32), .seed = 3},
          transport,
          queue);
    } catch (const testing::GpuFault&) {
      // device.fault() has the first one.
    }
  });
  return device.fault();
}

TEST(GpuProcesses, APeersRawAddressIsFound) {
  EXPECT_EQ(fault_of_raw_addresses(/*processes=*/false), "");
  const std::string fault = fault_of_raw_addresses(/*processes=*/true);
  EXPECT_NE(fault.find("another process's address"), std::string::npos) << fault;
}

TEST(GpuProcesses, MemoryThatIsFreedTooEarlyIsFound) {
  GpuEmulator device({.seed = 1, .processes = true});
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    EmulatedQueue queue(device, 1);
    auto lane = std::make_unique<GpuLane>(
        options_of(DispatchFormat::ragged, 1, WireType::f32), transport, queue);
    if (transport.rank() == 0) lane = nullptr;  // and does not leave() before
    ASSERT_EQ(transport.barrier(kNoDeadline), WaitResult::reached);
  });
  EXPECT_NE(device.fault().find("was freed while another process had it open"), std::string::npos)
      << device.fault();
}

}  // namespace
}  // namespace ferry
