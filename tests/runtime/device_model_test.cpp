// Whole models whose experts are on a device. The emulator stands in for CUDA, as in
// tests/c/device_test.cpp.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>

#include "ferry/core/error.h"
#include "ferry/exchange/gpu/cuda.h"
#include "ferry/generator.h"
#include "ferry/runtime/model_options.h"
#include "support/emulated_queue.h"
#include "support/paths.h"

namespace ferry {

namespace {

testing::GpuEmulator& device() {
  static testing::GpuEmulator one({.seed = 3, .watch = false});  // watched in tests/moe
  return one;
}

std::atomic<int> queues = 0;  // that ranks have asked for

}  // namespace

CudaDevices find_cuda_devices() { return {.names = {"one", "two"}}; }

std::unique_ptr<GpuQueue> make_cuda_queue(int number, int) {
  EXPECT_GE(number, 0);
  EXPECT_LT(number, 2);
  ++queues;
  return std::make_unique<testing::EmulatedQueue>(device(), 2);
}

std::unique_ptr<GpuQueue> use_cuda_stream(int, int, void*) { return nullptr; }

namespace {

/// Of few and small experts: each costs the emulator a tile of 64 rows, be they ever so few.
std::string small_model() {
  return (test::source_dir() / "tests" / "data" / "qwen3_int4_zeros").string();
}

Choice run(int ranks, const std::string& where) {
  const GeneratorOptions options{.model = small_model(),
                                 .ranks = ranks,
                                 .experts_device = where,
                                 .threads = 1,
                                 .numerics = "fast"};
  return Generator(options)
      .generate({{40, 5, 20}},
                {.sampling = {.temperature = 0},
                 .max_new_tokens = 2,
                 .ignore_eos = true,
                 .top_logprobs = 4})
      .at(0);
}

TEST(ExpertsOnADevice, GiveTheTokensOfTheHostAndTheSameBitsOnAnyRanks) {
  const Choice host = run(1, "cpu");
  EXPECT_EQ(queues, 0);
  const Choice one = run(1, "cuda:1");
  EXPECT_EQ(queues, 1);
  EXPECT_EQ(one.ids, host.ids);
  EXPECT_NEAR(one.logprobs.at(0).chosen, host.logprobs.at(0).chosen, 0.05F);
  const Choice two = run(2, "cuda");
  EXPECT_EQ(queues, 3);
  EXPECT_EQ(two.ids, host.ids);
  EXPECT_EQ(two.logprobs, one.logprobs);
}

TEST(ExpertsOnADevice, AreRefusedByNameWhereTheyCannotBe) {
  const auto refusal = [](auto change) {
    GeneratorOptions options{.model = small_model(),
                             .ranks = 2,
                             .tp = 2,
                             .experts_device = "cuda:0",
                             .threads = 1,
                             .weights = "bf16",
                             .numerics = "fast"};
    change(options);
    try {
      const Generator generator(options);
    } catch (const ConfigError& e) {
      return std::string(e.what());
    }
    return std::string("taken");
  };
  const auto expect = [&](auto change, const std::string& text) {
    EXPECT_NE(refusal(change).find(text), std::string::npos) << refusal(change);
  };
  expect([](GeneratorOptions& o) { o.numerics = "exact"; }, "say --numerics fast");
  expect([](GeneratorOptions& o) { o.weights = "int8"; }, "these are int8; choose --weights bf16");
  expect([](GeneratorOptions& o) { o.expert_slices = 2; }, "leave out --expert-slices");
  expect([](GeneratorOptions& o) { o.experts_device = "cuda:x"; }, "known: cpu, cuda, cuda:N");
  expect([](GeneratorOptions& o) { o.experts_device = "cuda:-1"; }, "known: cpu, cuda, cuda:N");
  expect(
      [](GeneratorOptions& o) {
        o.model = (test::source_dir() / "tests" / "data" / "qwen3_bf16").string();
        o.tp = 1;
      },
      "multiples of 16, these are 136 and 24");
}

}  // namespace
}  // namespace ferry
