// Exchanges on GPUs of ranks on several hosts: what goes wrong, and faults that are planted.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "ferry/core/error.h"
#include "gpu_harness.h"
#include "support/emulated_queue.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using testing::EmulatedQueue;
using testing::GpuEmulator;
using testing::run_gpu_exchanges;

DispatcherOptions small_options() {
  return {.exchange = exchange_options(MoeA2ABackend::pplx),
          .slots_per_rank = 3,
          .hidden = 40,
          .topk = 2,
          .max_tokens = 8,
          .timeout = std::chrono::seconds(60)};
}

testing::GpuHarnessOptions far_ranks(const DispatcherOptions& options, int count) {
  return {.dispatcher = options, .seed = 57, .count = count, .ranks_per_host = 1};
}

/// Counts how often its exchange has sent, and does something else the third time.
class Interrupted : public EmulatedQueue {
 public:
  Interrupted(GpuEmulator& device, std::function<void()> third)
      : EmulatedQueue(device, 2), third_(std::move(third)) {}

  void launch(const GpuKernel& kernel, const GpuGrid& grid) override {
    if (std::holds_alternative<gpu::SendResults>(kernel) && ++sent_ == 3) third_();
    EmulatedQueue::launch(kernel, grid);
  }

 private:
  std::function<void()> third_;
  int sent_ = 0;
};

/// What three ranks of which one does `what` in its third exchange run into, and when.
void expect_named(const RanksOptions& on,
                  const std::function<void()>& what,
                  const std::string& text) {
  GpuEmulator shared({.seed = 5});
  on_ranks(on, [&](Transport& transport) {
    GpuEmulator own({.seed = 5});
    GpuEmulator& device = on.kind.processes() ? own : shared;
    const auto start = std::chrono::steady_clock::now();
    const bool victim = transport.rank() == 1;
    Interrupted queue(
        device, victim ? what : [] {});
    try {
      run_gpu_exchanges(far_ranks(small_options(), 4), transport, queue);
      ADD_FAILURE() << "no error on rank " << transport.rank();
    } catch (const TransportError& e) {
      if (victim) return;
      // Or of a rank that heard of it before, and gave up.
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
  });
}

TEST(GpuNetworkFaults, ARankThatGivesUpEndsTheWaitsForIt) {
  for (const char* transport : {"shm", "inproc"}) {  // forks before threads
    SCOPED_TRACE(transport);
    expect_named(
        {.kind = {.transport = transport}, .ranks = 3},
        [] { throw TransportError(TransportError::Kind::io, 1, "its experts fail"); },
        "rank 1 gave up");
  }
}

TEST(GpuNetworkFaults, ARankThatDiesEndsTheWaitsForIt) {
  for (const RankKind& kind : testing::kinds_that_die()) {
    SCOPED_TRACE(kind.label());
    expect_named(
        {.kind = kind, .ranks = 3, .killed_rank = 1}, [] { raise(SIGKILL); }, "rank 1 died");
  }
}

TEST(GpuNetworkFaults, NamesTheRankThatDoesNotCome) {
  GpuEmulator device({.seed = 1});
  DispatcherOptions options = small_options();
  options.timeout = std::chrono::milliseconds(300);
  on_ranks({.ranks = 3}, [&](Transport& transport) {
    EmulatedQueue queue(device, 1);
    testing::GpuLane lane(options, transport, queue, /*ranks_per_host=*/1);
    const testing::ExchangeCase exchange{.options = options, .ranks = 3};
    lane.bring(exchange, /*accumulate=*/false);
    if (transport.rank() != 1) {
      lane.dispatch_send();
      lane.dispatch_recv();
      testing::expect_nothing_from(1, "dispatch_recv", lane.exchange());
    }
    ASSERT_EQ(transport.barrier(kNoDeadline), WaitResult::reached);
  });
}

TEST(GpuNetworkFaults, ItsThreadSleepsWhileNothingMoves) {
  GpuEmulator device({.seed = 1});
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    EmulatedQueue queue(device, 1);
    testing::GpuLane lane(small_options(), transport, queue, /*ranks_per_host=*/1);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    ASSERT_EQ(transport.barrier(kNoDeadline), WaitResult::reached);
    const auto cpu_ms = [] {
      timespec now{};
      clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
      return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6;
    };
    const double before = cpu_ms();
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    EXPECT_LT(cpu_ms() - before, 250) << "of two ranks, in 500 ms";
    lane.exchange().leave();
  });
}

// --- Faults that are planted
// -----------------------------------------------------------------------

/// A thread whose releases are stores, and one whose acquires are loads.
struct StoresPlainly : testing::EmulatedThread {
  template <class V>
  void store_release(V* p, std::type_identity_t<V> v) const {
    store(p, v);
  }
};

struct LoadsPlainly : testing::EmulatedThread {
  template <class V>
  V load_acquire(const V* p) const {
    return load(p);
  }
};

/// A thread that adds to what it stores in some memory.
struct Lies : testing::EmulatedThread {
  const std::uint32_t* begin = nullptr;
  std::size_t n = 0;
  std::uint32_t more = 0;

  template <class V>
  void store(V* p, std::type_identity_t<V> v) const {
    const auto* at = reinterpret_cast<const std::uint32_t*>(p);
    if constexpr (std::is_same_v<V, std::uint32_t>)
      if (at >= begin && at < begin + n) v += more;
    EmulatedThread::store(p, v);
  }
};

/// A kernel whose threads are such.
template <class Kernel, class Thread>
struct Planted {
  Kernel kernel;
  const std::uint32_t* begin = nullptr;
  std::size_t n = 0;
  std::uint32_t more = 0;

  void operator()(testing::EmulatedThread& t) const {
    Thread planted{t};
    if constexpr (std::is_same_v<Thread, Lies>) {
      planted.begin = begin;
      planted.n = n;
      planted.more = more;
    }
    kernel(planted);
  }
};

enum class Plant { none, doorbell_without_release, read_before_signal, raw_address, rows, counts };

class Planting final : public EmulatedQueue {
 public:
  Planting(GpuEmulator& device, Plant plant)
      : EmulatedQueue(device, 2), device_(device), plant_(plant) {}

  void launch(const GpuKernel& kernel, const GpuGrid& grid) override {
    const auto* send = std::get_if<gpu::SendTokens>(&kernel);
    const auto* receive = std::get_if<gpu::ReceiveTokens>(&kernel);
    if (plant_ == Plant::doorbell_without_release && send != nullptr) {
      device_.launch(Planted<gpu::SendTokens, StoresPlainly>{*send}, grid);
    } else if (plant_ == Plant::read_before_signal && receive != nullptr) {
      device_.launch(Planted<gpu::ReceiveTokens, LoadsPlainly>{*receive}, grid);
    } else if (plant_ == Plant::rows && receive != nullptr) {
      lie(*receive, receive->args.to[0].result_rows, 100'000, grid);
    } else if (plant_ == Plant::counts && send != nullptr) {
      lie(*send, send->args.to[0].counts, 6, grid);
    } else {
      EmulatedQueue::launch(kernel, grid);
    }
  }

  std::unique_ptr<GpuMapped> map(std::span<std::byte> host) override {
    std::unique_ptr<GpuMapped> mapped = EmulatedQueue::map(host);
    if (plant_ != Plant::raw_address) return mapped;
    EXPECT_NE(mapped->data(), host.data());
    return std::make_unique<Raw>(std::move(mapped), host);
  }

 private:
  /// Kernels are told the host's own address.
  struct Raw final : GpuMapped {
    Raw(std::unique_ptr<GpuMapped> inner, std::span<std::byte> host)
        : GpuMapped(host.data(), host), mapped(std::move(inner)) {}

    std::unique_ptr<GpuMapped> mapped;
  };

  template <class Kernel>
  void lie(const Kernel& kernel, const std::uint32_t* to, std::uint32_t more, const GpuGrid& grid) {
    device_.launch(Planted<Kernel, Lies>{kernel, to, 3, more}, grid);
  }

  GpuEmulator& device_;
  Plant plant_;
};

/// Where rank 1 has the fault, or both have, rank 0 runs into an error that says `text`; empty:
/// none.
void expect_error(Plant plant, bool on_both, const std::string& text, const RankKind& kind = {}) {
  GpuEmulator shared({.seed = 11});
  DispatcherOptions options = small_options();
  options.timeout = std::chrono::seconds(10);
  on_ranks({.kind = kind, .ranks = 2}, [&](Transport& transport) {
    GpuEmulator own({.seed = 11});
    const bool has_it = on_both || transport.rank() == 1;
    Planting queue(kind.processes() ? own : shared, has_it ? plant : Plant::none);
    std::string error;
    try {
      run_gpu_exchanges(far_ranks(options, 3), transport, queue);
    } catch (const std::exception& e) {
      error = e.what();
    }
    if (transport.rank() != 0) return;
    EXPECT_EQ(error.empty(), text.empty()) << error;
    EXPECT_NE(error.find(text), std::string::npos) << error;
  });
}

TEST(GpuNetworkFaults, AFaultOfOrderIsFound) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the sanitizer finds it, too";
#endif
  expect_error(Plant::none, true, "");
  expect_error(Plant::doorbell_without_release, true, "race: host thread");
  expect_error(Plant::read_before_signal, true, "race: kernel");
}

TEST(GpuNetworkFaults, TheHostsOwnAddressIsFound) {
  const RankKind kind{.transport = "shm"};  // whose memory can be mapped twice
  expect_error(Plant::none, true, "", kind);
  expect_error(Plant::raw_address, true, "not in memory that kernels may reach", kind);
}

TEST(GpuNetworkFaults, WhatCannotBeIsNotFollowed) {
  expect_error(Plant::rows, false, "rank 1 sent 1000");
  expect_error(Plant::counts, false, "rank 1 sent");
}

}  // namespace
}  // namespace ferry
