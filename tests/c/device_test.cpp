// ferry_all_to_all in device memory. The emulator stands in for CUDA: this file defines what
// ferry/exchange/gpu/cuda.h declares, so that the linker leaves CUDA's own out.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "ferry/c/all_to_all.h"
#include "ferry/c/comm.h"
#include "ferry/exchange/gpu/cuda.h"
#include "ferry/launch.h"
#include "support/emulated_queue.h"

namespace ferry {

CudaDevices find_cuda_devices() { return {.names = {"an emulated device"}}; }

std::unique_ptr<GpuQueue> make_cuda_queue(int, int) { return nullptr; }

namespace {

std::atomic<int> ranks_of_host = 2;  // who share the emulator

}  // namespace

std::unique_ptr<GpuQueue> use_cuda_stream(int, int ranks_there, void* stream) {
  EXPECT_EQ(ranks_there, ranks_of_host);
  return std::make_unique<testing::EmulatedQueue>(*static_cast<testing::EmulatedStream*>(stream),
                                                  2);
}

namespace {

using testing::EmulatedStream;
using testing::GpuEmulator;

constexpr int kHidden = 32, kTopk = 2, kTokens = 3, kSlots = 2;
constexpr float kUnwritten = 77;

#define OK(call) ASSERT_EQ(call, FERRY_OK) << ferry_last_error()

void expect_invalid(ferry_status status, const std::string& text) {
  EXPECT_EQ(status, FERRY_INVALID);
  EXPECT_NE(std::string(ferry_last_error()).find(text), std::string::npos) << ferry_last_error();
}

/// Memory of the device for one rank.
template <class T>
class OnDevice {
 public:
  OnDevice(GpuEmulator& gpu, std::vector<T> values)
      : gpu_(gpu), size_(values.size()), data_(static_cast<T*>(gpu.allocate(size_ * sizeof(T)))) {
    gpu.copy(data_, values.data(), size_ * sizeof(T));
  }

  ~OnDevice() { gpu_.free(data_); }

  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  T* data() const { return data_; }

  void set(const std::vector<T>& values) const {
    gpu_.copy(data_, values.data(), size_ * sizeof(T));
  }

  std::vector<T> values() const { return downloaded(gpu_, data_, size_); }

  static std::vector<T> downloaded(GpuEmulator& gpu, const T* from, std::size_t n) {
    std::vector<T> to(n);
    gpu.copy(to.data(), from, n * sizeof(T));
    return to;
  }

 private:
  GpuEmulator& gpu_;
  std::size_t size_;
  T* data_;
};

/// A rank: its comm, its exchange, and its tokens, token t being full of rank + t.
class Lane {
 public:
  Lane(GpuEmulator& gpu, ferry_store store, int rank)
      : rank_(rank),
        stream_(gpu),
        place_{FERRY_DEVICE, 0, &stream_},
        gpu_(gpu),
        rows_(gpu, tokens_of(rank)),
        slots_(gpu, first_slots()),
        weights_(gpu, {0.5F, 0.25F, 1, 2, 7, 0.5F}),
        number_(gpu, {kTokens}),
        out_(gpu, std::vector<float>(kTokens * kHidden)) {
    ferry_comm_options options = FERRY_COMM_OPTIONS_INIT;
    options.transport = ranks_of_host == 1 ? "fabric" : "inproc";
    options.ranks_per_host = ranks_of_host == 1 ? 1 : 0;
    options.rank = rank;
    options.num_ranks = 2;
    made_ = ferry_comm_create_from_store(&options, &store, &comm_);
  }

  ~Lane() {
    EXPECT_EQ(ferry_all_to_all_destroy(a2a_), FERRY_OK) << ferry_last_error();
    EXPECT_EQ(ferry_comm_destroy(comm_), FERRY_OK) << ferry_last_error();
  }

  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  ferry_status made() const { return made_; }

  ferry_comm* comm() const { return comm_; }

  ferry_all_to_all*& a2a() { return a2a_; }

  ferry_place place() const { return place_; }

  int rank() const { return rank_; }

  EmulatedStream& stream() { return stream_; }

  /// Other tokens and ids, where the first ones lay: those of the rank `as`.
  void become(int as) {
    rows_.set(tokens_of(as));
    slots_.set(as < 2 ? first_slots() : std::vector<std::int32_t>{3, 0, -1, 2, 1, -1});
  }

  /// The device's number of tokens, and sums that nobody has written.
  void hold(int tokens) {
    number_.set({tokens});
    out_.set(std::vector<float>(kTokens * kHidden, kUnwritten));
  }

  ferry_all_to_all_options options() const {
    ferry_all_to_all_options o = FERRY_ALL_TO_ALL_OPTIONS_INIT;
    o.place = place_;
    o.slots_per_rank = kSlots;
    o.topk = kTopk;
    o.hidden = kHidden;
    o.max_tokens = kTokens;
    return o;
  }

  ferry_dispatch_input input() const {
    ferry_dispatch_input in = FERRY_DISPATCH_INPUT_INIT;
    in.place = place_;
    in.rows = rows_.data();
    in.stride = kHidden * sizeof(float);
    in.tokens = kTokens;
    in.slots = slots_.data();
    in.weights = weights_.data();
    return in;
  }

  /// As many tokens as hold() has said last.
  ferry_dispatch_input counted_input() const {
    ferry_dispatch_input in = input();
    in.num_tokens = number_.data();
    return in;
  }

  ferry_combine_output output() const {
    ferry_combine_output out = FERRY_COMBINE_OUTPUT_INIT;
    out.place = place_;
    out.rows = out_.data();
    out.stride = kHidden * sizeof(float);
    out.weights = weights_.data();
    return out;
  }

  /// Each slot adds its number to its rows.
  void compute(const ferry_expert_rows& rows, int rank) const {
    EXPECT_EQ(rows.place.memory, FERRY_DEVICE);
    EXPECT_EQ(rows.place.queue, place_.queue);
    const auto counts = OnDevice<std::int32_t>::downloaded(gpu_, rows.counts, kSlots);
    const auto offsets = OnDevice<std::int64_t>::downloaded(gpu_, rows.offsets, kSlots);
    for (int slot = 0; slot < kSlots; ++slot) {
      const auto s = static_cast<std::size_t>(slot);
      for (std::int64_t row = offsets[s]; row < offsets[s] + counts[s]; ++row) {
        auto values = OnDevice<float>::downloaded(
            gpu_, static_cast<const float*>(ferry_expert_rows_in(&rows, row)), kHidden);
        for (float& x : values) x += static_cast<float>(rank * kSlots + slot);
        gpu_.copy(ferry_expert_rows_out(&rows, row), values.data(), kHidden * sizeof(float));
      }
    }
  }

  std::vector<float> sums() const { return out_.values(); }

 private:
  static std::vector<std::int32_t> first_slots() { return {0, 3, 1, 2, -1, 1}; }

  static std::vector<float> tokens_of(int rank) {
    std::vector<float> rows;
    for (int token = 0; token < kTokens; ++token)
      rows.insert(rows.end(), kHidden, static_cast<float>(rank + token));
    return rows;
  }

  const int rank_;
  EmulatedStream stream_;
  ferry_place place_;
  GpuEmulator& gpu_;
  ferry_comm* comm_ = nullptr;
  ferry_all_to_all* a2a_ = nullptr;
  ferry_status made_;
  OnDevice<float> rows_;
  OnDevice<std::int32_t> slots_;
  OnDevice<float> weights_;
  OnDevice<std::int32_t> number_;
  OnDevice<float> out_;
};

/// Runs two ranks, each a thread, over a store of the caller's.
template <class Body>
void on_two(Body body) {
  GpuEmulator gpu({.seed = 3});
  std::map<std::string, std::string> values;
  std::mutex mutex;

  struct Store {
    std::map<std::string, std::string>& values;
    std::mutex& mutex;
  } shared{values, mutex};

  ferry_store store = FERRY_STORE_INIT;
  store.context = &shared;
  store.set = [](void* context, const char* key, const void* value, size_t bytes) {
    auto& s = *static_cast<Store*>(context);
    const std::lock_guard lock(s.mutex);
    s.values[key].assign(static_cast<const char*>(value), bytes);
    return FERRY_OK;
  };
  store.wait = [](void* context, const char* key, double timeout_s, ferry_store_value* value) {
    auto& s = *static_cast<Store*>(context);
    const auto begin = std::chrono::steady_clock::now();
    for (;;) {
      {
        const std::lock_guard lock(s.mutex);
        const auto found = s.values.find(key);
        if (found != s.values.end())
          return ferry_store_value_assign(value, found->second.data(), found->second.size());
      }
      if (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() >
          timeout_s)
        return FERRY_TIMED_OUT;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  std::barrier both_are_done(2);  // with memory that the other's kernels reach, also after a fault
  const auto run = [&](int rank) {
    Lane lane(gpu, store, rank);
    EXPECT_EQ(lane.made(), FERRY_OK) << ferry_last_error();
    if (lane.made() == FERRY_OK) body(lane, rank);
    both_are_done.arrive_and_wait();
  };
  std::thread other(run, 1);
  run(0);
  other.join();
}

/// What the sums of a rank's token are, in each column.
float expected(int rank, int token) {
  const float x = static_cast<float>(rank + token);
  if (token == 0) return std::fma(0.25F, x + 3, 0.5F * x);
  if (token == 1) return std::fma(2.0F, x + 2, x + 1);
  return 0.5F * (x + 1);
}

void run_phases(const char* backend) {
  on_two([backend](Lane& lane, int rank) {
    ferry_all_to_all_options options = lane.options();
    options.backend = backend;
    options.deepep_mode = "normal";
    uint64_t bytes = 0;
    OK(ferry_all_to_all_mem_size(lane.comm(), &options, &bytes));
    EXPECT_GT(bytes, 0U);
    OK(ferry_all_to_all_create(lane.comm(), &options, &lane.a2a()));
    for (int n = 0; n < 3; ++n) {
      const ferry_dispatch_input in = lane.input();
      OK(ferry_all_to_all_dispatch_send(lane.a2a(), &in));
      ferry_expert_rows rows = FERRY_EXPERT_ROWS_INIT;
      OK(ferry_all_to_all_dispatch_recv(lane.a2a(), &rows));
      OK(ferry_all_to_all_synchronise(lane.a2a()));
      lane.compute(rows, rank);
      OK(ferry_all_to_all_combine_send(lane.a2a()));
      const ferry_combine_output out = lane.output();
      OK(ferry_all_to_all_combine_recv(lane.a2a(), &out));
      OK(ferry_all_to_all_synchronise(lane.a2a()));
      const std::vector<float> sums = lane.sums();
      for (std::size_t i = 0; i < sums.size(); ++i)
        ASSERT_EQ(sums[i], expected(rank, static_cast<int>(i) / kHidden)) << "column " << i;
    }
    OK(ferry_comm_barrier(lane.comm(), 60));
  });
}

class DeviceBackend : public ::testing::TestWithParam<const char*> {};

// Numbers are so small that no order of sums rounds them.
TEST_P(DeviceBackend, RunsItsPhasesOnTheCallersQueue) { run_phases(GetParam()); }

INSTANTIATE_TEST_SUITE_P(DeviceAllToAll,
                         DeviceBackend,
                         ::testing::Values("pplx", "deepep"),
                         [](const auto& p) { return std::string(p.param); });

TEST(DeviceAllToAll, ReachesRanksOfOtherHosts) {
  const auto all = list_transports();
  if (std::ranges::none_of(
          all, [](const TransportInfo& one) { return one.name == "fabric" && one.available; }))
    GTEST_SKIP() << "no libfabric";
  ranks_of_host = 1;
  run_phases("pplx");
  on_two([](Lane& lane, int) {
    ferry_all_to_all_options options = lane.options();
    options.backend = "none";
    expect_invalid(ferry_all_to_all_create(lane.comm(), &options, &lane.a2a()),
                   "over several hosts has no sums by rank");
  });
  ranks_of_host = 2;
}

/// One whole exchange, whose experts return their rows.
void put_exchange(Lane& lane, const ferry_dispatch_input& in) {
  OK(ferry_all_to_all_dispatch_send(lane.a2a(), &in));
  ferry_expert_rows rows = FERRY_EXPERT_ROWS_INIT;
  OK(ferry_all_to_all_dispatch_recv(lane.a2a(), &rows));
  const auto* from = static_cast<const float*>(ferry_expert_rows_in(&rows, 0));
  auto* to = static_cast<float*>(ferry_expert_rows_out(&rows, 0));
  // All rows that there is room for: slots begin at multiples of 16.
  const std::size_t bytes = (2 * kTokens * kTopk + 16 * kSlots) * kHidden * sizeof(float);
  lane.stream().put(
      [&gpu = lane.stream().device(), to, from, bytes] { gpu.copy(to, from, bytes); });
  OK(ferry_all_to_all_combine_send(lane.a2a()));
  const ferry_combine_output out = lane.output();
  OK(ferry_all_to_all_combine_recv(lane.a2a(), &out));
}

void put_exchange(Lane& lane) { put_exchange(lane, lane.input()); }

TEST(DeviceAllToAll, CallersCaptureTheirStream) {
  on_two([](Lane& lane, int rank) {
    const ferry_all_to_all_options options = lane.options();
    OK(ferry_all_to_all_create(lane.comm(), &options, &lane.a2a()));
    lane.stream().begin_capture();
    put_exchange(lane);
    EXPECT_EQ(ferry_all_to_all_synchronise(lane.a2a()), FERRY_OUT_OF_ORDER);
    EXPECT_NE(std::string(ferry_last_error()).find("synchronise while its stream is captured"),
              std::string::npos)
        << ferry_last_error();
    const std::vector<EmulatedStream::Work> graph = lane.stream().end_capture();
    for (const int as : {rank, rank + 2, rank + 4}) {
      lane.become(as);
      for (const EmulatedStream::Work& work : graph) work();
      OK(ferry_all_to_all_synchronise(lane.a2a()));
      const std::vector<float> replayed = lane.sums();
      put_exchange(lane);
      OK(ferry_all_to_all_synchronise(lane.a2a()));
      EXPECT_EQ(replayed, lane.sums());
      // Of token 1, which names two slots in both lists of ids: 2 x in the one, 3 x in the other.
      const float x = static_cast<float>(as + 1);
      EXPECT_EQ(replayed[kHidden], as < 2 ? 3 * x : 2 * x);
    }
    OK(ferry_comm_barrier(lane.comm(), 60));
  });
}

TEST(DeviceAllToAll, AGraphHasTheNumberOfTokensThatLiesOnTheDevice) {
  on_two([](Lane& lane, int rank) {
    const ferry_all_to_all_options options = lane.options();
    OK(ferry_all_to_all_create(lane.comm(), &options, &lane.a2a()));
    lane.stream().begin_capture();
    put_exchange(lane, lane.counted_input());
    const std::vector<EmulatedStream::Work> graph = lane.stream().end_capture();
    for (const int tokens : {2, 0, 3, 1}) {
      lane.hold(rank == 0 ? tokens : kTokens - tokens);
      for (const EmulatedStream::Work& work : graph) work();
      OK(ferry_all_to_all_synchronise(lane.a2a()));
      const std::vector<float> sums = lane.sums();
      const float factors[] = {0.75F, 3, 0.5F};  // the sums of the tokens' weights
      for (int i = 0; i < kTokens * kHidden; ++i) {
        const int token = i / kHidden;
        const bool is_there = token < (rank == 0 ? tokens : kTokens - tokens);
        ASSERT_EQ(sums[static_cast<std::size_t>(i)],
                  is_there ? factors[token] * static_cast<float>(rank + token) : kUnwritten)
            << "token " << token << " of " << tokens;
      }
    }
    OK(ferry_comm_barrier(lane.comm(), 60));
  });
}

TEST(DeviceAllToAll, SaysThatTheDevicesNumberOfTokensCannotBe) {
  on_two([](Lane& lane, int) {
    const ferry_all_to_all_options options = lane.options();
    OK(ferry_all_to_all_create(lane.comm(), &options, &lane.a2a()));
    lane.hold(kTokens);
    ferry_dispatch_input in = lane.counted_input();
    in.tokens = kTokens - 1;
    OK(ferry_all_to_all_dispatch_send(lane.a2a(), &in));
    expect_invalid(ferry_all_to_all_synchronise(lane.a2a()), "says 3 tokens; 0 to 2 are possible");
  });
}

TEST(DeviceAllToAll, TakesTheInputOfCallersThatKnowNoNumberOnTheDevice) {
  on_two([](Lane& lane, int) {
    const ferry_all_to_all_options options = lane.options();
    OK(ferry_all_to_all_create(lane.comm(), &options, &lane.a2a()));
    lane.hold(0);
    ferry_dispatch_input in = lane.counted_input();
    in.size = offsetof(ferry_dispatch_input, num_tokens);
    put_exchange(lane, in);
    OK(ferry_all_to_all_synchronise(lane.a2a()));
    EXPECT_EQ(lane.sums().back(), 0.5F * static_cast<float>(lane.rank() + 2)) << "all tokens";
    OK(ferry_comm_barrier(lane.comm(), 60));
  });
}

TEST(DeviceAllToAll, ACaptureHasItsOwnOrderOfPhases) {
  on_two([](Lane& lane, int) {
    const ferry_all_to_all_options options = lane.options();
    OK(ferry_all_to_all_create(lane.comm(), &options, &lane.a2a()));
    const ferry_dispatch_input in = lane.input();
    lane.stream().begin_capture();
    EXPECT_EQ(ferry_all_to_all_combine_send(lane.a2a()), FERRY_OUT_OF_ORDER);
    OK(ferry_all_to_all_dispatch_send(lane.a2a(), &in));
    lane.stream().end_capture();  // and given up
    put_exchange(lane);
    OK(ferry_all_to_all_synchronise(lane.a2a()));
    lane.stream().begin_capture();
    put_exchange(lane);
    lane.stream().end_capture();
    OK(ferry_comm_barrier(lane.comm(), 60));
  });
}

TEST(DeviceAllToAll, GoesOnWithoutAMaskedRank) {
  on_two([](Lane& lane, int rank) {
    ferry_all_to_all_options options = lane.options();
    options.on_dead_rank = FERRY_MASK_DEAD_RANK;
    options.timeout_s = 2;  // of rank 1, which lives and leaves alone
    OK(ferry_all_to_all_create(lane.comm(), &options, &lane.a2a()));
    if (rank == 1) return;
    OK(ferry_comm_mask(lane.comm(), 1));
    put_exchange(lane);
    OK(ferry_all_to_all_synchronise(lane.a2a()));
    const int32_t* lost = nullptr;
    int32_t count = 0;
    OK(ferry_all_to_all_lost_tokens(lane.a2a(), &lost, &count));
    ASSERT_EQ(count, 2) << "tokens 0 and 1 name slots of rank 1";
    EXPECT_EQ(lost[0], 0);
    EXPECT_EQ(lost[1], 1);
    const std::vector<float> sums = lane.sums();
    const float expected_sums[] = {0, 1, 1};  // of 0.5 x, x and 0.5 x, x being the token
    for (std::size_t i = 0; i < sums.size(); ++i)
      ASSERT_EQ(sums[i], expected_sums[i / kHidden]) << "column " << i;
  });
}

TEST(DeviceAllToAll, SaysWhatItsKernelsFound) {
  on_two([](Lane& lane, int) {
    const ferry_all_to_all_options options = lane.options();
    OK(ferry_all_to_all_create(lane.comm(), &options, &lane.a2a()));
    ferry_dispatch_input in = lane.input();
    in.slots = reinterpret_cast<const std::int32_t*>(in.rows);  // numbers that are no slots
    in.rows = nullptr;
    expect_invalid(ferry_all_to_all_dispatch_send(lane.a2a(), &in), "rows is NULL");
    in.rows = lane.input().rows;
    in.tokens = 2;
    in.slots = reinterpret_cast<const std::int32_t*>(lane.output().weights);
    OK(ferry_all_to_all_dispatch_send(lane.a2a(), &in));
    expect_invalid(ferry_all_to_all_synchronise(lane.a2a()), "outside -1..3");
    expect_invalid(ferry_all_to_all_synchronise(lane.a2a()),
                   "outside -1..3");  // the comm has failed
  });
}

TEST(DeviceAllToAll, RefusesByNameWhatIsNotThere) {
  on_two([](Lane& lane, int) {
    ferry_all_to_all_options options = lane.options();
    options.place.device = 1;
    expect_invalid(ferry_all_to_all_create(lane.comm(), &options, &lane.a2a()), "0..0");
    options = lane.options();
    options.backend = "ascend_fuseep";
    expect_invalid(ferry_all_to_all_create(lane.comm(), &options, &lane.a2a()), "no tiles");
    uint64_t bytes = 0;
    expect_invalid(ferry_all_to_all_mem_size(lane.comm(), &options, &bytes), "no tiles");
    options = lane.options();
    OK(ferry_all_to_all_create(lane.comm(), &options, &lane.a2a()));
    ferry_dispatch_input in = lane.input();
    in.place = {FERRY_HOST, 0, nullptr};
    expect_invalid(ferry_all_to_all_dispatch_send(lane.a2a(), &in), "host memory");
    in = lane.input();
    in.place.queue = nullptr;
    expect_invalid(ferry_all_to_all_dispatch_send(lane.a2a(), &in), "on the queue");
    in = lane.input();
    in.chunks = 2;
    expect_invalid(ferry_all_to_all_dispatch_send(lane.a2a(), &in), "chunks");
    in = lane.input();
    in.tokens = kTokens + 1;
    expect_invalid(ferry_all_to_all_dispatch_send(lane.a2a(), &in), "0 to 3 are possible");
    in = lane.input();
    OK(ferry_all_to_all_dispatch_send(lane.a2a(), &in));
    int32_t ready = 0;
    expect_invalid(ferry_all_to_all_poll(lane.a2a(), &ready), "poll: not there");
    const ferry_experts_fn experts = [](void*, const ferry_expert_rows*) { return FERRY_OK; };
    expect_invalid(ferry_all_to_all_dispatch_recv_with(lane.a2a(), experts, nullptr),
                   "dispatch_recv_with: not there");
    ferry_exchange_stats stats = FERRY_EXCHANGE_STATS_INIT;
    expect_invalid(ferry_all_to_all_stats(lane.a2a(), &stats), "stats: not there");
    ferry_expert_rows rows = FERRY_EXPERT_ROWS_INIT;
    OK(ferry_all_to_all_dispatch_recv(lane.a2a(), &rows));
    OK(ferry_all_to_all_combine_send(lane.a2a()));
    ferry_combine_output out = lane.output();
    out.place = {FERRY_HOST, 0, nullptr};
    expect_invalid(ferry_all_to_all_combine_recv(lane.a2a(), &out), "host memory");
    out = lane.output();
    OK(ferry_all_to_all_combine_recv(lane.a2a(), &out));
    OK(ferry_all_to_all_synchronise(lane.a2a()));
    OK(ferry_comm_barrier(lane.comm(), 60));
  });
}

}  // namespace
}  // namespace ferry
