// Exchanges on GPUs that are captured once and launched again and again: with other tokens, ids and
// rows, several in one graph, beside exchanges whose phases are called, and with what goes wrong in
// one. gpu_exchange_test.cpp compares graphs with the CPU's bytes, over all layouts and wires.
#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <random>
#include <string>
#include <variant>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/exchange/gpu/gpu_exchange.h"
#include "gpu_harness.h"
#include "support/emulated_queue.h"
#include "support/long_tests.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using testing::EmulatedQueue;
using testing::GpuEmulator;
using testing::GpuRuns;
using testing::run_gpu_exchanges;

DispatcherOptions small_options() {
  return {.exchange = exchange_options(MoeA2ABackend::pplx),
          .slots_per_rank = 3,
          .hidden = 16,
          .topk = 2,
          .max_tokens = 4};
}

// --- Several exchanges in one graph
// ---------------------------------------------------------------

constexpr int kLayers = 3;

/// A rank's layers, each an exchange that reads what the one before has written. Experts return
/// their rows, by the device's copy.
class Layers {
 public:
  Layers(const DispatcherOptions& options, Transport& transport, GpuQueue& queue)
      : options_(options), queue_(queue), exchange_(options, transport, queue) {
    const auto entries = static_cast<std::size_t>(options.max_tokens * options.topk);
    tokens_ = queue.allocate(sizeof(int));
    slots_ = queue.allocate(kLayers * entries * sizeof(SlotId));
    weights_ = queue.allocate(entries * sizeof(float));
    rows_ = queue.allocate((kLayers + 1) * layer_bytes());
  }

  /// Other tokens, ids, rows and weights, drawn with this seed. What earlier ones left is gone.
  void draw(unsigned seed, int tokens) {
    std::mt19937 engine(seed);
    const int slots = options_.slots_per_rank * exchange_.ranks();
    std::vector<SlotId> ids(slots_->size() / sizeof(SlotId));
    for (SlotId& id : ids)
      id = static_cast<SlotId>(engine() % static_cast<unsigned>(slots + 1)) - 1;
    std::vector<float> weights(weights_->size() / sizeof(float));
    for (float& w : weights) w = static_cast<float>(engine() % 64 + 1) / 32;
    std::vector<float> rows(rows_->size() / sizeof(float));
    for (float& x : rows) x = static_cast<float>(engine() % 1000);
    queue_.copy(tokens_->data(), &tokens, sizeof tokens);
    queue_.copy(slots_->data(), ids.data(), slots_->size());
    queue_.copy(weights_->data(), weights.data(), weights_->size());
    queue_.copy(rows_->data(), rows.data(), rows_->size());
    queue_.synchronise();
  }

  void call() {
    for (int layer = 0; layer < kLayers; ++layer) {
      exchange_.dispatch_send(
          {.rows = {rows_of(layer), stride()},
           .count = options_.max_tokens,
           .tokens = tokens_->as<int>(),
           .slots = slots_->as<SlotId>() + layer * options_.max_tokens * options_.topk});
      const ExpertRows rows = exchange_.dispatch_recv();
      queue_.copy(rows.out.base,
                  rows.in.base,
                  static_cast<std::size_t>(exchange_.expert_rows() * stride()));
      exchange_.combine_send();
      exchange_.combine_recv(
          {.weights = weights_->as<float>(), .rows = {rows_of(layer + 1), stride()}});
    }
  }

  GpuExchange& exchange() { return exchange_; }

  SlotId* slots() const { return slots_->as<SlotId>(); }

  /// What all layers have written, when it is there.
  std::vector<float> rows() {
    exchange_.synchronise();
    return download(queue_, rows_->as<const float>(), rows_->size() / sizeof(float));
  }

 private:
  std::ptrdiff_t stride() const {
    return static_cast<std::ptrdiff_t>(sizeof(float)) * options_.hidden;
  }

  std::size_t layer_bytes() const {
    return static_cast<std::size_t>(options_.max_tokens * stride());
  }

  std::byte* rows_of(int layer) const {
    return rows_->data() + static_cast<std::size_t>(layer) * layer_bytes();
  }

  DispatcherOptions options_;
  GpuQueue& queue_;
  GpuExchange exchange_;
  std::unique_ptr<GpuMemory> tokens_, slots_, weights_, rows_;
};

void expect_same_as_called(Transport& transport, GpuQueue& queue, int replays) {
  const DispatcherOptions options = small_options();
  Layers called(options, transport, queue);
  Layers captured(options, transport, queue);
  std::unique_ptr<GpuGraph> graph = queue.capture([&] { captured.call(); });
  for (int n = 0; n < replays; ++n) {
    const auto seed = static_cast<unsigned>(100 * n + transport.rank());
    const int tokens = static_cast<int>(seed * 7 % 5);
    called.draw(seed, tokens);
    captured.draw(seed, tokens);
    called.call();
    if (n % 4 == 3) {
      captured.call();
    } else {
      graph->launch();
    }
    if (n == replays / 2) graph = queue.capture([&] { captured.call(); });
    ASSERT_EQ(captured.rows(), called.rows()) << "replay " << n << " on rank " << transport.rank();
  }
  called.exchange().leave();
  captured.exchange().leave();
}

TEST(GpuGraph, GivesTheBytesOfCalledPhases) {
  for (const int ranks : {1, 2, 4}) {
    if (slow_run() && ranks != 2) continue;
    GpuEmulator device({.seed = static_cast<std::uint64_t>(ranks)});
    on_ranks({.ranks = ranks}, [&](Transport& transport) {
      EmulatedQueue queue(device, 2);
      expect_same_as_called(transport, queue, slow_run() ? 2 : 10);
    });
  }
}

// --- What would be wrong in a graph
// ----------------------------------------------------------------

/// What an exchange would be whose kernels were told the number of the exchange by value.
class NumberByValue final : public EmulatedQueue {
 public:
  using EmulatedQueue::EmulatedQueue;

  void launch(const GpuKernel& kernel, const GpuGrid& grid) override {
    if (const auto* send = std::get_if<gpu::SendTokens>(&kernel)) {
      numbers_.push_back(numbers_.size());
      copy(&send->args.state->exchange, &numbers_.back(), sizeof numbers_.back());
    }
    EmulatedQueue::launch(kernel, grid);
  }

 private:
  std::deque<std::uint64_t> numbers_;
};

bool passes_with_number_by_value(GpuRuns runs, std::uint64_t seed) {
  GpuEmulator device({.seed = seed});
  DispatcherOptions options = small_options();
  options.timeout = std::chrono::seconds(2);
  bool passes = true;
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    NumberByValue queue(device, 2);
    try {
      run_gpu_exchanges(
          {.dispatcher = options, .seed = seed, .count = 40, .runs = runs}, transport, queue);
    } catch (const std::exception&) {
      passes = false;
    }
  });
  return passes;
}

TEST(GpuGraph, ANumberThatIsPassedByValueIsFound) {
  if (slow_run()) GTEST_SKIP() << "the main run looks for it";
  EXPECT_TRUE(passes_with_number_by_value(GpuRuns::calls, 1));
  EXPECT_FALSE(passes_with_number_by_value(GpuRuns::graphs, 1));
}

// --- What goes wrong
// -------------------------------------------------------------------------------

TEST(GpuGraph, SynchroniseNamesTheRankWhoseGraphDoesNotCome) {
  GpuEmulator device({.seed = 1});
  DispatcherOptions options = small_options();
  options.timeout = std::chrono::milliseconds(300);
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    EmulatedQueue queue(device, 1);
    Layers layers(options, transport, queue);
    const std::unique_ptr<GpuGraph> graph = queue.capture([&] { layers.call(); });
    layers.draw(1, 2);
    graph->launch();
    layers.exchange().synchronise();
    ASSERT_EQ(transport.barrier(kNoDeadline), WaitResult::reached);
    device.synchronize();  // knows of the barrier: these experts write whatever comes
    if (transport.rank() == 0) {
      graph->launch();
      try {
        layers.exchange().synchronise();
        ADD_FAILURE() << "no error";
      } catch (const TransportError& e) {
        EXPECT_EQ(e.peer(), 1);
        EXPECT_NE(std::string(e.what()).find("within 300 ms in exchange 4"), std::string::npos)
            << e.what();
      }
    }
    ASSERT_EQ(transport.barrier(kNoDeadline), WaitResult::reached);
  });
}

TEST(GpuGraph, SynchroniseNamesAnIdThatIsNoSlots) {
  GpuEmulator device({.seed = 1});
  on_ranks({.ranks = 1}, [&](Transport& transport) {
    EmulatedQueue queue(device, 2);
    Layers layers(small_options(), transport, queue);
    const std::unique_ptr<GpuGraph> graph = queue.capture([&] { layers.call(); });
    layers.draw(1, 2);
    graph->launch();
    layers.exchange().synchronise();
    const SlotId wrong = 3;
    queue.copy(layers.slots() + 2, &wrong, sizeof wrong);
    graph->launch();
    try {
      layers.exchange().synchronise();
      ADD_FAILURE() << "no error";
    } catch (const BrokenContract& e) {
      EXPECT_NE(std::string(e.what()).find("token 1: choice 0 is slot 3, outside -1..2"),
                std::string::npos)
          << e.what();
    }
  });
}

/// The line of the BrokenContract that it throws.
template <class Call>
std::string broken(Call call) {
  try {
    call();
  } catch (const BrokenContract& e) {
    return e.what();
  }
  return "no error";
}

TEST(GpuGraph, RefusesInACaptureWhatWouldWait) {
  GpuEmulator device;
  on_ranks({.ranks = 1}, [&](Transport& transport) {
    EmulatedQueue queue(device, 1);
    Layers layers(small_options(), transport, queue);
    const auto refusal = [&](auto call) { return broken([&] { queue.capture([&] { call(); }); }); };
    for (const std::string& line :
         {refusal([&] { layers.exchange().synchronise(); }),
          refusal([&] { queue.synchronise(); }),
          refusal([&] { queue.allocate(16); }),
          refusal([&] { queue.mark(); }),
          refusal([&] { download(queue, layers.slots(), 1); }),
          refusal([&] { queue.capture([] {}); }),
          refusal([&] { GpuExchange(small_options(), transport, queue); })}) {
      EXPECT_NE(line.find("while a graph is captured on the emulated queue"), std::string::npos)
          << line;
      EXPECT_EQ(line.find('\n'), std::string::npos);
    }
    // Each of these captures was ended by what it threw.
    layers.draw(1, 2);
    layers.call();
    layers.exchange().synchronise();
  });
}

// --- The order of phases
// ---------------------------------------------------------------------------

TEST(GpuGraph, PhasesOfCapturesHaveAnOrderOfTheirOwn) {
  GpuEmulator device;
  on_ranks({.ranks = 1}, [&](Transport& transport) {
    EmulatedQueue queue(device, 1);
    const auto memory = queue.allocate(1024);
    GpuExchange exchange(small_options(), transport, queue);
    const auto send = [&] { exchange.dispatch_send({}); };
    const auto finish = [&] {
      exchange.combine_send();
      exchange.combine_recv({.weights = memory->as<float>(), .rows = {memory->data(), 64}});
    };
    const auto captured = [&](auto call) { return queue.capture([&] { call(); }); };
    EXPECT_NE(broken([&] { captured([&] { exchange.combine_send(); }); }).find("out of turn"),
              std::string::npos);
    // Between phases that are called, an exchange is captured as two graphs.
    send();
    const auto dispatch = captured([&] {
      send();
      exchange.dispatch_recv();
    });
    exchange.dispatch_recv();
    const auto combine = captured(finish);
    finish();
    dispatch->launch();
    combine->launch();
    exchange.synchronise();
    // A capture that was given up leaves nothing behind.
    EXPECT_THROW(captured([&] {
                   send();
                   throw ConfigError("given up");
                 }),
                 ConfigError);
    captured([&] {
      send();
      exchange.dispatch_recv();
      finish();
      EXPECT_NE(broken(finish).find("out of turn"), std::string::npos);
    })->launch();
    exchange.synchronise();
  });
}

/// A phase that is called, or a graph that is launched.
enum Step {
  call_dispatch_send,
  call_dispatch_recv,
  call_combine_send,
  call_combine_recv,
  launch_dispatch_send,
  launch_dispatch_recv,
  launch_combine_send,
  launch_combine_recv,
  launch_all
};

constexpr int kPhases = 4;
using Steps = std::vector<int>;

/// An exchange's phases, which can be called, and graphs of each and of all.
class Parts {
 public:
  Parts(const DispatcherOptions& options, Transport& transport, GpuQueue& queue)
      : memory_(queue.allocate(1024)), exchange_(options, transport, queue) {
    for (int phase = 0; phase < kPhases; ++phase)
      graphs_.push_back(queue.capture([&] { call(phase); }));
    graphs_.push_back(queue.capture([&] {
      for (int phase = 0; phase < kPhases; ++phase) call(phase);
    }));
  }

  void run(const Steps& steps) {
    for (const int step : steps) {
      if (step < kPhases)
        call(step);
      else
        graphs_[static_cast<std::size_t>(step - kPhases)]->launch();
    }
  }

  GpuExchange& exchange() { return exchange_; }

 private:
  void call(int phase) {
    switch (phase) {
      case call_dispatch_send:
        return exchange_.dispatch_send({});
      case call_dispatch_recv:
        exchange_.dispatch_recv();
        return;
      case call_combine_send:
        return exchange_.combine_send();
      default:
        exchange_.combine_recv({.weights = memory_->as<float>(), .rows = {memory_->data(), 64}});
    }
  }

  std::unique_ptr<GpuMemory> memory_;
  GpuExchange exchange_;
  std::vector<std::unique_ptr<GpuGraph>> graphs_;
};

const Steps kCalled = {
    call_dispatch_send, call_dispatch_recv, call_combine_send, call_combine_recv};

TEST(GpuGraph, ALaunchOutOfTurnIsTold) {
  // What is told, of the phases that are called up to some, what is launched then, and the rest.
  struct Case {
    const char* told;
    std::size_t called;
    Steps launched;
  };

  const std::vector<Case> cases = {
      {"dispatch_send", 1, {launch_all}},
      {"dispatch_send", 2, {launch_all}},
      {"dispatch_send", 3, {launch_all}},
      {"dispatch_send", 0, {launch_dispatch_send, launch_dispatch_send}},
      {"dispatch_send", 0, {launch_dispatch_send, launch_dispatch_recv}},
      {"dispatch_recv", 0, {launch_dispatch_recv}},
      {"dispatch_recv", 2, {launch_dispatch_recv}},
      {"dispatch_recv", 3, {launch_dispatch_recv}},
      {"combine_send", 0, {launch_combine_send}},
      {"combine_send", 1, {launch_combine_send}},
      {"combine_send", 3, {launch_combine_send}},
      {"combine_recv", 0, {launch_combine_recv}},
      {"combine_recv", 2, {launch_combine_recv}},
      {"combine_recv", 4, {launch_combine_recv}},
  };
  for (std::size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    GpuEmulator device({.seed = i});
    on_ranks({.ranks = 1}, [&](Transport& transport) {
      EmulatedQueue queue(device, 2);
      Parts parts(small_options(), transport, queue);
      parts.run({launch_all,
                 launch_dispatch_send,
                 launch_dispatch_recv,
                 launch_combine_send,
                 launch_combine_recv});
      parts.run(kCalled);
      parts.exchange().synchronise();
      const auto turn = kCalled.begin() + static_cast<std::ptrdiff_t>(cases[i].called);
      parts.run({kCalled.begin(), turn});
      parts.run(cases[i].launched);
      parts.run({turn, kCalled.end()});
      const std::string line = broken([&] { parts.exchange().synchronise(); });
      EXPECT_EQ(line.find(fmt::format("{} ran out of turn", cases[i].told)), 0U) << line;
    });
  }
}

// What it would have sent does not reach the others, who learn who has stopped.
TEST(GpuGraph, OthersAreNotSentWhatALaunchOutOfTurnHas) {
  GpuEmulator device({.seed = 2});
  DispatcherOptions options = small_options();
  options.timeout = std::chrono::milliseconds(300);
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    EmulatedQueue queue(device, 1);
    Parts parts(options, transport, queue);
    ASSERT_EQ(transport.barrier(kNoDeadline), WaitResult::reached);
    if (transport.rank() == 0) {
      parts.run({call_dispatch_send,
                 call_dispatch_recv,
                 launch_all,
                 call_combine_send,
                 call_combine_recv});
      EXPECT_NE(broken([&] { parts.exchange().synchronise(); }).find("out of turn"),
                std::string::npos);
    } else {
      parts.run(kCalled);
      testing::expect_nothing_from(0, "combine_recv", parts.exchange());
    }
    ASSERT_EQ(transport.barrier(kNoDeadline), WaitResult::reached);
  });
}

TEST(GpuGraph, MayGoBeforeItsQueueAndAfterALaunch) {
  GpuEmulator device;
  EmulatedQueue queue(device, 1);
  const auto memory = queue.allocate(sizeof(int));
  int value = 5;
  auto graph = queue.capture([&] { queue.copy(memory->data(), &value, sizeof value); });
  EXPECT_EQ(download(queue, memory->as<const int>(), 1)[0], 0) << "a capture runs nothing";
  graph->launch();
  value = 6;
  graph->launch();
  graph = nullptr;
  EXPECT_EQ(download(queue, memory->as<const int>(), 1)[0], 6);
}

}  // namespace
}  // namespace ferry
