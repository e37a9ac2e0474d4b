// The measurement of exchanges on GPUs, over the emulator: that it verifies, ends and counts. Times
// of an emulator mean nothing.
#include "apps/ferry/gpu_bench.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "support/emulated_queue.h"

namespace ferry {
namespace {

A2aCase small_case(int ranks, int tokens) {
  A2aCase a2a{
      .ranks = ranks, .tokens = tokens, .hidden = 64, .experts = 4, .topk = 2, .seconds = 0.01};
  a2a.exchange.format = DispatchFormat::ragged;
  return a2a;
}

GpuTimes measured(const A2aCase& a2a) {
  testing::GpuEmulator device({.seed = 3});
  return measure_gpu_exchange(
      a2a, [&](const Transport&) { return std::make_unique<testing::EmulatedQueue>(device, 1); });
}

TEST(GpuBench, MeasuresRanksThatShareADevice) {
  for (const int tokens : {1, 5}) {
    const A2aCase a2a = small_case(2, tokens);
    const GpuTimes times = measured(a2a);
    EXPECT_GE(times.iterations, 5);
    EXPECT_GT(times.dispatch, 0);
    EXPECT_GT(times.combine, 0);
    EXPECT_GT(times.exchange, 0);
    EXPECT_GT(times.graph, 0);
    const auto rows = nlohmann::json::parse(gpu_json({{a2a, times}}, "a device"));
    EXPECT_EQ(rows.at(0).at("tokens"), tokens);
    EXPECT_EQ(rows.at(0).at("device"), "a device");
    EXPECT_EQ(rows.at(0).at("graph_us"), times.graph);
    EXPECT_NE(gpu_heading(a2a, "a device").find("exchange     graph"), std::string::npos);
  }
}

TEST(GpuBench, MeasuresProcessesOverANetwork) {
  A2aCase a2a = small_case(2, 3);
  a2a.transport = "fabric";
  a2a.launch.fabric_provider = "tcp";
  const auto transports = list_transports();
  if (std::ranges::none_of(transports, [](const TransportInfo& one) {
        return one.name == "fabric" && one.available;
      }))
    GTEST_SKIP() << "no libfabric";
  const GpuTimes times = measured(a2a);  // each process has a copy of the emulator
  EXPECT_GE(times.iterations, 5);
  EXPECT_GT(times.dispatch, 0);
  EXPECT_GT(times.graph, 0);
  EXPECT_NE(gpu_heading(a2a, "a device").find("each rank on its own a device"), std::string::npos);
}

TEST(GpuBench, MeasuresRowsThatStayWhereTheyAre) {
  A2aCase a2a = small_case(2, 3);
  a2a.exchange.format = DispatchFormat::row_pointers;
  a2a.exchange.fixed_format = true;
  EXPECT_GT(measured(a2a).dispatch, 0);
}

TEST(GpuBench, MeasuresSumsByRank) {
  A2aCase a2a = small_case(2, 3);
  a2a.backend = "deepep";
  a2a.mode = "normal";
  a2a.exchange = exchange_options(MoeA2ABackend::deepep, DeepepMode::normal);
  const GpuTimes times = measured(a2a);
  EXPECT_GT(times.combine, 0);
  EXPECT_NE(gpu_line(a2a, times).find("  deepep/normal\n"), std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(gpu_json({{a2a, times}}, "a device")).at(0).at("mode"), "normal");
}

TEST(GpuBench, MeasuresExpertsBetweenThem) {
  A2aCase a2a = small_case(2, 3);
  a2a.inter = 32;
  a2a.weights = WeightType::fp8;
  const GpuTimes times = measured(a2a);
  EXPECT_GT(times.experts, 0);
  EXPECT_GT(times.rows, 0);
  EXPECT_LE(times.rows, 2 * 3 * a2a.topk);
  EXPECT_NEAR(
      tflops(a2a, times), 6e-6 * 64 * 32 * static_cast<double>(times.rows) / times.experts, 1e-12);
  EXPECT_GT(times.floor_weights, 0);
  EXPECT_GT(times.floor_operations, 0);
  EXPECT_NE(gpu_heading(a2a, "a device").find("(fp8)"), std::string::npos);
  const auto rows = nlohmann::json::parse(gpu_json({{a2a, times}}, "a device"));
  EXPECT_EQ(rows.at(0).at("weights"), "fp8");
  EXPECT_EQ(tflops(small_case(2, 3), {}), 0);
}

TEST(GpuBench, MeasuresQuantisedWires) {
  A2aCase a2a = small_case(1, 3);
  a2a.dispatch_wire = WireType::fp8;
  a2a.expert_type = WireType::fp8;
  a2a.combine_wire = WireType::int8;
  EXPECT_GT(measured(a2a).dispatch, 0);
}

}  // namespace
}  // namespace ferry
