// The emulator of GPUs (support/gpu_emulator.h): right kernels pass whatever the order, and each
// kind of fault is found and told.
#include "support/gpu_emulator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <numeric>
#include <optional>
#include <ostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/gpu_test_kernels.h"
#include "support/long_tests.h"

namespace ferry::testing {
namespace {

using std::chrono::milliseconds;

// Of every case, in the main run and in slow ones.
int right_seeds() { return slow_run() ? 30 : 300; }

int planted_seeds() { return slow_run() ? 6 : 40; }

GpuEmulatorOptions with_seed(int seed) {
  return {.seed = static_cast<std::uint64_t>(seed), .timeout = milliseconds(20000)};
}

template <class V>
V* allocate(GpuEmulator& gpu, std::size_t count, std::optional<V> value = {}) {
  auto* const memory = static_cast<V*>(gpu.allocate(count * sizeof(V)));
  if (value) std::fill_n(memory, count, *value);
  return memory;
}

// Where no thread did wrong, and still the result is.
class WrongResult : public std::runtime_error {
 public:
  WrongResult() : std::runtime_error("wrong result") {}
};

template <class V>
void check_equal(V got, V expected) {
  if (got != expected) throw WrongResult();
}

template <Plant plant>
void sum_blocks(int seed) {
  GpuEmulator gpu(with_seed(seed));
  const GpuGrid grid = {.blocks = 3, .threads = 96, .shared_bytes = 3 * sizeof(float)};
  constexpr int kWidth = 168;
  auto* const values = allocate<float>(gpu, 3 * kWidth);
  auto* const sums = allocate<float>(gpu, 3);
  std::iota(values, values + 3 * kWidth, 0.0F);
  gpu.launch(BlockSum<plant>{values, sums, kWidth}, grid);
  for (int block = 0; block < 3; ++block) {
    check_equal(sums[block],
                std::accumulate(values + block * kWidth, values + (block + 1) * kWidth, 0.0F));
  }
}

template <Plant plant>
void add_neighbours(int seed) {
  GpuEmulator gpu(with_seed(seed));
  auto* const in = allocate<std::uint32_t>(gpu, 128);
  auto* const out = allocate<std::uint32_t>(gpu, 128);
  std::iota(in, in + 128, 1000U);
  gpu.launch(WarpNeighbours<plant>{in, out}, {.blocks = 2, .threads = 64, .shared_bytes = 256});
  for (int i = 0; i < 128; ++i) check_equal(out[i], in[i] + in[i ^ 1]);
}

template <Plant plant>
void prefix_sums(int seed) {
  GpuEmulatorOptions options = with_seed(seed);
  options.resident_blocks = 3;
  if (plant == Plant::endless) options.timeout = milliseconds(30);
  GpuEmulator gpu(options);
  constexpr int kCount = 5 * 64;
  auto* const values = allocate<std::uint32_t>(gpu, kCount);
  auto* const ends = allocate<std::uint32_t>(gpu, kCount);
  auto* const totals = allocate<std::uint32_t>(gpu, 5);
  auto* const ready = allocate<std::uint32_t>(gpu, 5, 0U);
  auto* const ticket = allocate<std::uint32_t>(gpu, 1, 0U);
  std::iota(values, values + kCount, 7U);
  gpu.launch(PrefixSum<plant>{values, ends, totals, ready, ticket},
             {.blocks = 5, .threads = 64, .shared_bytes = 16});
  std::uint32_t end = 0;
  for (int i = 0; i < kCount; ++i) check_equal(ends[i], end += values[i]);
}

template <Plant plant>
void sum_copies(int seed) {
  GpuEmulator gpu(with_seed(seed));
  constexpr int kRounds = 3, kThreads = 64;
  auto* const values = allocate<std::uint32_t>(gpu, kRounds * kThreads * 4);
  auto* const sums = allocate<std::uint32_t>(gpu, kThreads);
  std::iota(values, values + kRounds * kThreads * 4, 7U);
  gpu.launch(CopiedSum<plant>{values, sums, kRounds},
             {.blocks = 1, .threads = kThreads, .shared_bytes = std::size_t{2} * kThreads * 16});
  for (int thread = 0; thread < kThreads; ++thread) {
    std::uint32_t sum = 0;
    for (int i = 0; i < kRounds * 4; ++i)
      sum += values[(i / 4 * kThreads + (thread + 1) % kThreads) * 4 + i % 4];
    check_equal(sums[thread], sum);
  }
}

template <Plant plant>
void sum_in_last_block(int seed) {
  GpuEmulator gpu(with_seed(seed));
  auto* const values = allocate<std::uint32_t>(gpu, 4 * 32);
  auto* const sums = allocate<std::uint32_t>(gpu, 4);
  auto* const ended = allocate<std::uint32_t>(gpu, 1, 0U);
  auto* const sum = allocate<std::uint32_t>(gpu, 1);
  std::iota(values, values + 4 * 32, 7U);
  gpu.launch(LastBlockSum<plant>{values, sums, ended, sum}, {.blocks = 4, .threads = 32});
  check_equal(*sum, std::accumulate(values, values + 4 * 32, 0U));
}

constexpr int kBlocks = 2, kMessages = 4, kPieces = 40;

// What a sender and a taker share.
struct Messages {
  explicit Messages(GpuEmulator& device) : gpu(device), taken(kBlocks) {
    gpu.watch(taken.data(), kBlocks * sizeof taken[0], "taken");
  }

  ~Messages() { gpu.unwatch(taken.data()); }

  Messages(const Messages&) = delete;
  Messages& operator=(const Messages&) = delete;

  void check() const {
    for (int message = 0; message < kBlocks * kMessages; ++message) {
      std::uint32_t sum = 0;
      for (int i = 0; i < kPieces; ++i) {
        sum += static_cast<std::uint32_t>(100 + message * kPieces + i) * 16;
      }
      check_equal(out[message], sum);
    }
  }

  template <Plant plant>
  SendMessages<plant> sender() {
    return {slots, sent, taken.data(), kMessages, kPieces, 100};
  }

  template <Plant plant>
  TakeMessages<plant> taker(int blocks_before = 0) {
    return {slots, sent, taken.data(), out, kMessages, kPieces, blocks_before};
  }

  GpuEmulator& gpu;
  std::vector<std::uint64_t> taken;
  Piece* slots = allocate<Piece>(gpu, kBlocks* SendMessages<>::kSlots* kPieces);
  std::uint64_t* sent = allocate<std::uint64_t>(gpu, kBlocks, std::uint64_t{0});
  std::uint32_t* out = allocate<std::uint32_t>(gpu, kBlocks* kMessages);
};

template <Plant sender, Plant taker>
void pass_messages(int seed) {
  GpuEmulator gpu(with_seed(seed));
  Messages messages(gpu);
  gpu.launch(PassMessages<sender, taker>{messages.sender<sender>(), messages.taker<taker>(kBlocks)},
             {.blocks = 2 * kBlocks, .threads = 64, .shared_bytes = 4});
  messages.check();
}

// A rank sends to another, each by a launch of its own thread of the host.
template <Plant sender, Plant taker>
void exchange_messages(int seed) {
  GpuEmulator gpu(with_seed(seed));
  Messages messages(gpu);
  std::string fault;
  std::mutex mutex;
  std::barrier both_are_there(2);
  const auto on_rank = [&](auto kernel) {
    return std::thread([&, kernel] {
      gpu.synchronize();  // what comes after the barrier is not known
      both_are_there.arrive_and_wait();
      try {
        gpu.launch(kernel, {.blocks = kBlocks, .threads = 64, .shared_bytes = 4});
      } catch (const GpuFault& error) {
        const std::lock_guard lock(mutex);
        if (!std::string_view(error.what()).starts_with("this launch was ended")) {
          fault = error.what();
        }
      }
    });
  };
  std::thread sending = on_rank(messages.sender<sender>());
  std::thread taking = on_rank(messages.taker<taker>());
  sending.join();
  taking.join();
  if (!fault.empty()) throw GpuFault(fault);
  messages.check();
}

struct Case {
  std::string name;
  void (*run)(int seed);
  std::string word;  // that the fault says
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class RightKernels : public ::testing::TestWithParam<Case> {};

TEST_P(RightKernels, PassWhateverTheOrder) {
  for (int seed = 0; seed < right_seeds(); ++seed) {
    ASSERT_NO_THROW(GetParam().run(seed)) << "seed " << seed;
  }
}

constexpr Plant kNothing = Plant::nothing;

INSTANTIATE_TEST_SUITE_P(GpuEmulator,
                         RightKernels,
                         ::testing::ValuesIn(std::vector<Case>{
                             {"BlockSum", sum_blocks<kNothing>, ""},
                             {"WarpNeighbours", add_neighbours<kNothing>, ""},
                             {"PrefixSum", prefix_sums<kNothing>, ""},
                             {"CopiedSum", sum_copies<kNothing>, ""},
                             {"LastBlockSum", sum_in_last_block<kNothing>, ""},
                             {"MessagesInOneLaunch", pass_messages<kNothing, kNothing>, ""},
                             {"Messages", exchange_messages<kNothing, kNothing>, ""},
                         }),
                         [](const auto& p) { return p.param.name; });

class PlantedFaults : public ::testing::TestWithParam<Case> {};

// By every seed, and not by a wrong result: what orders accesses does not depend on when they come.
TEST_P(PlantedFaults, AreFound) {
  for (int seed = 0; seed < planted_seeds(); ++seed) {
    std::string fault;
    try {
      GetParam().run(seed);
    } catch (const std::runtime_error& error) {
      fault = error.what();
    }
    ASSERT_NE(fault.find(GetParam().word), std::string::npos) << "seed " << seed << ": " << fault;
  }
}

INSTANTIATE_TEST_SUITE_P(
    GpuEmulator,
    PlantedFaults,
    ::testing::ValuesIn(std::vector<Case>{
        {"BlockSumWithoutBarrier", sum_blocks<Plant::no_barrier>, "shared memory"},
        {"BlockSumWithoutSecondBarrier", sum_blocks<Plant::no_second_barrier>, "race"},
        {"BlockSumOneOff", sum_blocks<Plant::one_off>, "not in memory"},
        {"BlockSumPastTheEnd", sum_blocks<Plant::past_the_end>, "not in memory"},
        {"BlockSumUnwritten", sum_blocks<Plant::unwritten>, "nobody has written"},
        {"BlockSumBarrierInBranch", sum_blocks<Plant::branch_barrier>, "in another"},
        {"BlockSumShuffleInBranch", sum_blocks<Plant::branch_shuffle>, "shuffle_xor()"},
        {"BlockSumLaneAway", sum_blocks<Plant::early_return>, "shuffle_xor()"},
        {"WarpNeighboursWithoutSync", add_neighbours<Plant::no_sync_warp>, "shared memory"},
        {"PrefixSumPlainStore", prefix_sums<Plant::plain_store>, "race"},
        {"PrefixSumPlainLoad", prefix_sums<Plant::plain_load>, "race"},
        {"PrefixSumEarlyRelease", prefix_sums<Plant::early_release>, "race"},
        {"PrefixSumOneOff", prefix_sums<Plant::one_off>, "race"},
        {"PrefixSumEndless", prefix_sums<Plant::endless>, "has not ended"},
        {"CopiedSumWithoutWait", sum_copies<Plant::no_wait>, "nobody has written"},
        {"CopiedSumWithoutBarrier", sum_copies<Plant::no_barrier>, "shared memory"},
        {"CopiedSumWithoutSecondBarrier", sum_copies<Plant::no_second_barrier>, "shared memory"},
        {"LastBlockSumWithoutFence", sum_in_last_block<Plant::no_fence>, "race"},
        {"LastBlockSumWithoutFenceBehind", sum_in_last_block<Plant::no_fence_behind>, "race"},
        {"LastBlockSumFenceOfAnother", sum_in_last_block<Plant::fence_of_another>, "race"},
        {"SendWithoutBarrier", exchange_messages<Plant::no_barrier, kNothing>, "race"},
        {"SendPlainStore", exchange_messages<Plant::plain_store, kNothing>, "race"},
        {"SendRelaxed", exchange_messages<Plant::no_fence, kNothing>, "race"},
        {"SendOneOff", pass_messages<Plant::one_off, kNothing>, "race"},
        {"SendTooEarly", pass_messages<Plant::overlapping_messages, kNothing>, "race"},
        {"PassEarlyRelease", pass_messages<kNothing, Plant::early_release>, "race"},
        {"TakeWithoutBarrier",
         exchange_messages<kNothing, Plant::no_barrier>,
         "gpu_test_kernels.h"},
        {"TakePlainLoad", exchange_messages<kNothing, Plant::plain_load>, "race"},
        {"TakePlainStore", exchange_messages<kNothing, Plant::plain_store>, "race"},
        {"TakeEarlyRelease", exchange_messages<kNothing, Plant::early_release>, "race"},
        {"TakeUnaligned", exchange_messages<kNothing, Plant::unaligned>, "not aligned"},
    }),
    [](const auto& p) { return p.param.name; });

}  // namespace
}  // namespace ferry::testing
