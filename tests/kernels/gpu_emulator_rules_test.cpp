// What the emulator of GPUs takes for ordered, and what it does not; what it refuses.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "ferry/core/threads.h"
#include "support/gpu_emulator.h"
#include "support/long_tests.h"

namespace ferry::testing {
namespace {

using std::chrono::milliseconds;
using Word = std::uint32_t;

constexpr GpuGrid kOneWarp = {.blocks = 1, .threads = 32, .shared_bytes = 128};
constexpr GpuGrid kTwoBlocks = {.blocks = 2, .threads = 32, .shared_bytes = 128};

struct Gpu {
  explicit Gpu(GpuEmulatorOptions options = {.seed = 5, .timeout = milliseconds(20000)})
      : emulator(options) {}

  GpuEmulator emulator;
  Word* words = static_cast<Word*>(emulator.allocate(64 * sizeof(Word), "words"));
  Word* flags = [this] {
    auto* const memory = static_cast<Word*>(emulator.allocate(64 * sizeof(Word), "flags"));
    std::fill_n(memory, 64, 0);
    return memory;
  }();

  /// What the launch's fault says; empty without one.
  template <class Kernel>
  std::string fault(const Kernel& kernel, const GpuGrid& grid) {
    try {
      emulator.launch(kernel, grid);
    } catch (const GpuFault& error) {
      return error.what();
    }
    return "";
  }
};

// Each on a host thread of its own, the second when the first has ended. The emulator knows both
// threads before, so that nothing but what they do orders them.
template <class First, class Second>
void on_two_hosts(GpuEmulator& gpu, const First& first, const Second& second) {
  std::barrier barrier(2);
  std::thread other([&] {
    gpu.synchronize();
    barrier.arrive_and_wait();
    first();
    barrier.arrive_and_wait();
  });
  gpu.synchronize();
  barrier.arrive_and_wait();
  barrier.arrive_and_wait();
  second();
  other.join();
}

bool says(const std::string& text, const std::string& word) {
  return text.find(word) != std::string::npos;
}

void wait_for(EmulatedThread& t, const Word* flag, Word value = 1) {
  while (t.load_acquire(flag) < value) t.pause();
}

TEST(GpuEmulatorOrder, BarrierDoesNotSpeakForThreadsThatHaveReturned) {
  Gpu gpu;
  const auto kernel = [words = gpu.words](EmulatedThread& t) {
    if (t.thread() == 3) {
      t.store(words, 1);
      return;
    }
    for (int i = 0; i < 20; ++i) t.sync();
    if (t.thread() == 4) t.load(words);
  };
  EXPECT_TRUE(says(gpu.fault(kernel, kOneWarp), "race"));
}

TEST(GpuEmulatorOrder, ShufflesOrderNothing) {
  Gpu gpu;
  const auto kernel = [words = gpu.words](EmulatedThread& t) {
    t.store(words + t.lane(), 1);
    t.shuffle(t.lane(), 0);
    t.ballot(true);
    t.load(words + (t.lane() ^ 1));
  };
  EXPECT_TRUE(says(gpu.fault(kernel, kOneWarp), "race"));
}

TEST(GpuEmulatorOrder, WarpBarriersOrderWhatWasBeforeThem) {
  const auto fault = [](bool behind) {
    Gpu gpu;
    const auto kernel = [=, words = gpu.words](EmulatedThread& t) {
      if (!behind) t.store(words + t.lane(), 1);
      t.sync_warp();
      if (behind) t.store(words + t.lane(), 1);
      t.load(words + (t.lane() ^ 1));
    };
    return gpu.fault(kernel, kOneWarp);
  };
  EXPECT_EQ(fault(false), "");
  EXPECT_TRUE(says(fault(true), "race"));
}

// Relaxed additions tell when, and order nothing. What came between, in order behind the store, is
// atomic and does not hide it.
TEST(GpuEmulatorOrder, AStoreIsNotForgottenBehindAtomics) {
  Gpu gpu;
  const auto kernel = [words = gpu.words, flags = gpu.flags](EmulatedThread& t) {
    if (t.thread() != 0) return;
    if (t.block() == 0) {
      t.store(words, 7);
      t.store_release(flags, 1);
    } else if (t.block() == 1) {
      wait_for(t, flags);
      t.add(words, 1);
      t.add(flags + 1, 1);
    } else {
      while (t.add(flags + 1, 0) == 0) t.pause();
      t.add(words, 1);
    }
  };
  EXPECT_TRUE(says(gpu.fault(kernel, {.blocks = 3, .threads = 32}), "store of 4 bytes there"));
}

TEST(GpuEmulatorOrder, ReleasesReachOverThreadsInBetween) {
  Gpu gpu;
  const auto kernel = [words = gpu.words, flags = gpu.flags](EmulatedThread& t) {
    if (t.thread() != 0) return;
    if (t.block() == 0) {
      t.store(words, 7);
      t.store_release(flags, 1);
    } else if (t.block() == 1) {
      wait_for(t, flags);
      t.store_release(flags + 1, 1);
    } else {
      wait_for(t, flags + 1);
      t.store(words, t.load(words) + 1);
    }
  };
  EXPECT_EQ(gpu.fault(kernel, {.blocks = 3, .threads = 32}), "");
  EXPECT_EQ(*gpu.words, 8U);
}

// Who acquires what additions have made of a released value acquires that release.
TEST(GpuEmulatorOrder, AdditionsKeepAReleaseAndStoresReplaceIt) {
  const auto ordered = [](bool addition) {
    Gpu gpu;
    const auto kernel = [=, words = gpu.words, flags = gpu.flags](EmulatedThread& t) {
      if (t.thread() != 0) return;
      if (t.block() == 0) {
        t.store(words, 7);
        t.store_release(flags, 1);
      } else if (t.block() == 1) {
        while (t.add(flags, 0) != 1) t.pause();
        if (addition) {
          t.add(flags, 1);
        } else {
          t.store_release(flags, 2);  // of what this thread knows, which is not block 0's
        }
      } else {
        while (t.add(flags, 0) != 2) t.pause();  // acquires nothing on the way
        t.load_acquire(flags);
        t.load(words);
      }
    };
    return gpu.fault(kernel, {.blocks = 3, .threads = 32});
  };
  EXPECT_EQ(ordered(true), "");
  EXPECT_TRUE(says(ordered(false), "race"));
}

TEST(GpuEmulatorOrder, AccessesOfDifferentSizesMeet) {
  struct alignas(16) Wide {
    std::uint8_t bytes[16];
  };

  const auto fault = [](int byte, bool write) {
    Gpu gpu;
    auto* const bytes = reinterpret_cast<std::uint8_t*>(gpu.words);
    const auto kernel = [=](EmulatedThread& t) {
      if (t.thread() == 0) t.load(reinterpret_cast<const Wide*>(bytes + 16));
      if (t.thread() != 1) return;
      if (write) {
        t.store(bytes + byte, 1);
      } else {
        t.load(bytes + byte);
      }
    };
    return gpu.fault(kernel, kOneWarp);
  };
  EXPECT_TRUE(says(fault(16, true), "race"));
  EXPECT_TRUE(says(fault(31, true), "race"));
  EXPECT_EQ(fault(15, true), "");
  EXPECT_EQ(fault(32, true), "");
  EXPECT_EQ(fault(20, false), "");
}

TEST(GpuEmulatorOrder, NeighboursInALineDoNotRace) {
  Gpu gpu;
  const auto kernel = [words = gpu.words](EmulatedThread& t) {
    t.store(reinterpret_cast<std::uint8_t*>(words) + t.thread(), std::uint8_t(t.thread()));
    t.store(reinterpret_cast<std::uint16_t*>(words) + 32 + t.thread(), std::uint16_t(t.thread()));
  };
  EXPECT_EQ(gpu.fault(kernel, kOneWarp), "");
  for (unsigned i = 0; i < 32; ++i) {
    EXPECT_EQ(reinterpret_cast<std::uint8_t*>(gpu.words)[i], i);
  }
}

TEST(GpuEmulatorOrder, AtomicsOfDifferentSizesAreNotAtomicTogether) {
  Gpu gpu;
  auto* const wide = reinterpret_cast<std::uint64_t*>(gpu.flags);
  const auto kernel = [=, flags = gpu.flags](EmulatedThread& t) {
    if (t.thread() == 0) t.add(flags, 1);
    if (t.thread() == 1) t.add(wide, std::uint64_t{1});
  };
  EXPECT_TRUE(says(gpu.fault(kernel, kOneWarp), "race"));
}

TEST(GpuEmulatorOrder, AdditionsAreAtomicOnOneDeviceOnly) {
  Gpu gpu;
  const auto add = [flags = gpu.flags](EmulatedThread& t) { t.add(flags, 1); };
  EXPECT_EQ(gpu.fault(add, kTwoBlocks), "");
  EXPECT_EQ(*gpu.flags, 64U);
  std::string fault;
  on_two_hosts(
      gpu.emulator,
      [&] { gpu.emulator.launch(add, kOneWarp); },
      [&] { fault = gpu.fault(add, kOneWarp); });
  EXPECT_TRUE(says(fault, "one device alone")) << fault;
}

TEST(GpuEmulatorOrder, AdditionsWithReleaseAreAtomicForAll) {
  Gpu gpu;
  const auto add = [flags = gpu.flags](EmulatedThread& t) { t.add_release(flags, 1); };
  on_two_hosts(
      gpu.emulator,
      [&] { gpu.emulator.launch(add, kOneWarp); },
      [&] { EXPECT_EQ(gpu.fault(add, kOneWarp), ""); });
  EXPECT_EQ(*gpu.flags, 64U);
}

TEST(GpuEmulatorOrder, LaunchesOfDifferentHostThreadsAreOrderedByWhatTheseTell) {
  enum class Tells { nothing, release, both, waited };
  const auto fault = [](Tells tells, bool in_order = false) {
    Gpu gpu({.seed = 1, .launches_in_order = in_order});
    const auto write = [words = gpu.words](EmulatedThread& t) { t.store(words + t.thread(), 1); };
    const auto read = [words = gpu.words](EmulatedThread& t) { t.load(words + t.thread()); };
    const int token = 0;
    std::string text;
    on_two_hosts(
        gpu.emulator,
        [&] {
          gpu.emulator.launch(write, kOneWarp);
          if (tells == Tells::release || tells == Tells::both) gpu.emulator.host_released(&token);
        },
        [&] {
          if (tells == Tells::both) gpu.emulator.host_acquired(&token);
          if (tells == Tells::waited) gpu.emulator.synchronize();
          text = gpu.fault(read, kOneWarp);
        });
    return text;
  };
  EXPECT_TRUE(says(fault(Tells::nothing), "race"));
  EXPECT_TRUE(says(fault(Tells::release), "race"));
  EXPECT_EQ(fault(Tells::both), "");
  EXPECT_EQ(fault(Tells::waited), "");
  EXPECT_EQ(fault(Tells::nothing, true), "");
}

TEST(GpuEmulatorOrder, AReleaseSpeaksForEarlierLaunchesToo) {
  Gpu gpu;
  const auto write = [words = gpu.words](EmulatedThread& t) { t.store(words + t.thread(), 1); };
  const auto release = [flags = gpu.flags](EmulatedThread& t) { t.add_release(flags, 1); };
  const auto read = [words = gpu.words, flags = gpu.flags](EmulatedThread& t) {
    if (t.thread() == 0) wait_for(t, flags, 32);
    t.sync();
    t.load(words + t.thread());
  };
  on_two_hosts(
      gpu.emulator,
      [&] {
        gpu.emulator.launch(write, kOneWarp);
        gpu.emulator.launch(release, kOneWarp);
      },
      [&] {
        gpu.emulator.launch([](EmulatedThread&) {},
                            kOneWarp);  // so that each knows what none else does
        EXPECT_EQ(gpu.fault(read, kOneWarp), "");
      });
}

TEST(GpuEmulatorOrder, HostAccessesAreInOrderWithTheirThreadsLaunches) {
  Gpu gpu;
  const auto add = [words = gpu.words](EmulatedThread& t) {
    t.store(words + t.thread(), t.load(words + t.thread()) + 1);
  };
  gpu.emulator.host_writes(gpu.words, 128);
  EXPECT_EQ(gpu.fault(add, kOneWarp), "");
  gpu.emulator.host_reads(gpu.words, 128);
  EXPECT_THROW(gpu.emulator.host_reads(gpu.words, 65 * sizeof(Word)), GpuFault);
  on_two_hosts(
      gpu.emulator,
      [&] { gpu.emulator.launch(add, kOneWarp); },
      [&] { EXPECT_THROW(gpu.emulator.host_reads(gpu.words + 3, 1), GpuFault); });
}

TEST(GpuEmulatorOrder, CopiesAreInOrderWithTheirThreadsLaunches) {
  Gpu gpu;
  std::vector<Word> here(64, 3);
  gpu.emulator.copy(gpu.words, here.data(), 64 * sizeof(Word));
  const auto add = [words = gpu.words](EmulatedThread& t) {
    t.store(words + t.thread(), t.load(words + t.thread()) + 1);
  };
  EXPECT_EQ(gpu.fault(add, kOneWarp), "");
  gpu.emulator.copy(here.data(), gpu.words, 64 * sizeof(Word));
  EXPECT_EQ(here[31], 4U);
  EXPECT_EQ(here[32], 3U);
  gpu.emulator.copy(here.data() + 1, here.data(), 4);
  EXPECT_EQ(here[1], 4U);
  EXPECT_THROW(gpu.emulator.copy(gpu.words + 1, here.data(), 64 * sizeof(Word)), GpuFault);
  on_two_hosts(
      gpu.emulator,
      [&] { gpu.emulator.copy(gpu.words, here.data(), 4); },
      [&] { EXPECT_TRUE(says(gpu.fault(add, kOneWarp), "host thread 1")); });
}

// The host polls a flag that a kernel sets while it runs, and answers it.
TEST(GpuEmulatorOrder, AKernelAndTheHostMeetInWatchedMemory) {
  GpuEmulator gpu({.seed = 3});
  std::vector<Word> pinned(4);
  gpu.watch(pinned.data(), pinned.size() * sizeof(Word), "pinned");
  std::thread host([&] {
    const std::atomic_ref<Word> question(pinned[0]);
    while (question.load(std::memory_order_acquire) == 0) std::this_thread::yield();
    gpu.host_acquired(&pinned[0]);
    gpu.host_writes(&pinned[2], sizeof(Word));
    pinned[2] = pinned[1] + 1;
    gpu.host_released(&pinned[3]);
    std::atomic_ref<Word>(pinned[3]).store(1, std::memory_order_release);
  });
  Word* const p = pinned.data();
  const auto ask = [p](EmulatedThread& t) {
    if (t.thread() != 0) return;
    t.store(p + 1, 41);
    t.store_release(p, 1);
    wait_for(t, p + 3);
    t.store(p + 1, t.load(p + 2));
  };
  EXPECT_NO_THROW(gpu.launch(ask, kOneWarp));
  host.join();
  EXPECT_EQ(pinned[1], 42U);
}

TEST(GpuEmulatorMemory, IsReachableWhileItIsKnown) {
  const auto fault = [](int uses, int unwatched) {
    Gpu gpu;
    std::vector<Word> peer(8);
    for (int i = 0; i < uses; ++i) gpu.emulator.watch(peer.data(), 32, "peer");
    for (int i = 0; i < unwatched; ++i) gpu.emulator.unwatch(peer.data());
    return gpu.fault([p = peer.data()](EmulatedThread& t) { t.load(p + t.thread() % 8); },
                     kOneWarp);
  };
  EXPECT_TRUE(says(fault(0, 0), "not in memory"));
  EXPECT_EQ(fault(1, 0), "");
  EXPECT_TRUE(says(fault(1, 1), "not in memory"));
  EXPECT_EQ(fault(2, 1), "");
  Gpu gpu;
  EXPECT_THROW(gpu.emulator.watch(gpu.words + 32, 512, "half"), std::invalid_argument);
  EXPECT_THROW(gpu.emulator.unwatch(&gpu), std::invalid_argument);
}

TEST(GpuEmulatorMemory, FaultsSayAllocationAndPlace) {
  Gpu gpu;
  const std::string behind = gpu.fault(
      [words = gpu.words](EmulatedThread& t) { t.load(words + 64 + t.thread()); }, kOneWarp);
  EXPECT_TRUE(says(behind, "words (256 bytes) + ")) << behind;
  EXPECT_TRUE(says(behind, "gpu_emulator_rules_test.cpp:")) << behind;
  Gpu other;
  other.emulator.free(other.words);
  const auto load = [words = other.words](EmulatedThread& t) { t.load(words); };
  EXPECT_TRUE(says(other.fault(load, kOneWarp), "not in memory"));
}

TEST(GpuEmulatorMemory, SharedMemoryIsTheBlocksOwn) {
  Gpu gpu;
  auto** const places = static_cast<std::byte**>(gpu.emulator.allocate(2 * sizeof(std::byte*)));
  const auto peek = [=, flags = gpu.flags](EmulatedThread& t) {
    if (t.thread() != 0) return;
    t.store(t.shared(), std::byte{1});
    t.store(places + t.block(), t.shared());
    t.store_release(flags + t.block(), 1);
    wait_for(t, flags + (t.block() ^ 1));
    t.load(t.load(places + (t.block() ^ 1)));
  };
  EXPECT_TRUE(says(gpu.fault(peek, kTwoBlocks), "not in memory"));
  Gpu other;
  const auto acquire = [](EmulatedThread& t) {
    t.store(t.shared(), std::byte{1});
    t.load_acquire(reinterpret_cast<Word*>(t.shared()));
  };
  EXPECT_FALSE(other.fault(acquire, {.threads = 32, .shared_bytes = 4}).empty());
}

TEST(GpuEmulatorLaunch, HasTheFloatingPointModeOfItsCaller) {
  Gpu gpu;
  auto* const values = reinterpret_cast<float*>(gpu.words);
  const auto halve = [values](EmulatedThread& t) {
    t.sync();
    const float least = t.load(values + t.thread());
    t.sync();
    t.store(values + t.thread(), least * 0.5F);
  };
  const auto half_of_least = [&] {
    std::fill_n(values, 32, std::numeric_limits<float>::min());
    EXPECT_EQ(gpu.fault(halve, kOneWarp), "");
    return values[31];
  };
  EXPECT_GT(half_of_least(), 0.0F);
  {
    const FlushDenormals flush;
    EXPECT_EQ(std::bit_cast<Word>(half_of_least()), 0U);
  }
  EXPECT_GT(half_of_least(), 0.0F);
}

TEST(GpuEmulatorLaunch, TheSameSeedGivesTheSameOrder) {
  const auto order = [](std::uint64_t seed) {
    Gpu gpu({.seed = seed});
    const auto kernel = [words = gpu.words, flags = gpu.flags](EmulatedThread& t) {
      t.sync();
      const Word place = t.add(flags, 1);
      t.store(words + place, static_cast<Word>(t.block() * 32 + t.thread()));
    };
    EXPECT_EQ(gpu.fault(kernel, kTwoBlocks), "");
    return std::vector<Word>(gpu.words, gpu.words + 64);
  };
  EXPECT_EQ(order(1), order(1));
  EXPECT_NE(order(1), order(2));
}

TEST(GpuEmulatorLaunch, OnlyResidentBlocksRun) {
  const auto fault = [](int resident) {
    Gpu gpu({.timeout = milliseconds(resident == 2 ? 20000 : 30), .resident_blocks = resident});
    const auto meet = [flags = gpu.flags](EmulatedThread& t) {
      t.add_release(flags, 1);
      wait_for(t, flags, 64);
    };
    return gpu.fault(meet, kTwoBlocks);
  };
  EXPECT_EQ(fault(2), "");
  const std::string one = fault(1);
  EXPECT_TRUE(says(one, "1 blocks have not begun")) << one;
  EXPECT_TRUE(says(one, "waiting for flags (256 bytes) + 0")) << one;
}

TEST(GpuEmulatorLaunch, OneFaultEndsAllLaunches) {
  Gpu gpu;
  std::string waiting, failing;
  on_two_hosts(
      gpu.emulator, [] {}, [] {});
  std::thread other([&] {
    const auto wait = [flags = gpu.flags](EmulatedThread& t) {
      if (t.thread() == 0) t.store_release(flags + 1, 1);
      wait_for(t, flags, 1);
    };
    waiting = gpu.fault(wait, kOneWarp);
  });
  const auto fail = [flags = gpu.flags](EmulatedThread& t) {
    wait_for(t, flags + 1);
    t.load(flags + 64);
  };
  failing = gpu.fault(fail, kOneWarp);
  other.join();
  EXPECT_TRUE(says(failing, "not in memory")) << failing;
  EXPECT_TRUE(says(waiting, "ended by another one's fault")) << waiting;
  const std::string later = gpu.fault([](EmulatedThread&) {}, kOneWarp);
  EXPECT_TRUE(says(later, "nothing runs after a fault")) << later;
}

TEST(GpuEmulatorLaunch, WithoutWatchingBarriersStillCount) {
  const GpuEmulatorOptions blind = {.watch = false};
  Gpu gpu(blind);
  const auto racing = [words = gpu.words](EmulatedThread& t) { t.store(words, t.load(words) + 1); };
  EXPECT_EQ(gpu.fault(racing, kOneWarp), "");
  const auto apart = [](EmulatedThread& t) {
    if (t.lane() == 0) {
      t.sync();
    } else {
      t.sync_warp();
    }
  };
  const std::string fault = gpu.fault(apart, kOneWarp);
  EXPECT_TRUE(says(fault, "sync()") && says(fault, "sync_warp()")) << fault;
}

TEST(GpuEmulatorLaunch, LanesAndGridsThatThereAreNotAreRefused) {
  Gpu gpu;
  EXPECT_TRUE(says(gpu.fault([](EmulatedThread& t) { t.shuffle(1, 32); }, kOneWarp), "lane 32"));
  Gpu other;
  const auto nothing = [](EmulatedThread&) {};
  for (const GpuGrid& grid : {GpuGrid{.blocks = 0},
                              GpuGrid{.threads = 33},
                              GpuGrid{.threads = 2048},
                              GpuGrid{.shared_bytes = 1 << 20}}) {
    EXPECT_THROW(other.emulator.launch(nothing, grid), std::invalid_argument);
  }
  EXPECT_EQ(other.fault(nothing, {.blocks = 40, .threads = slow_run() ? 128 : 1024}), "");
}

}  // namespace
}  // namespace ferry::testing
