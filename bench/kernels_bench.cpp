// Matrix products on one core: each instruction set, few and many rows, weights hot in the caches
// or cold in memory. Counters: FLOP/s, and GB/s of weights read; the floor beside them is
// ReadMemory below (bytes) and the unit's own peak (operations).
//   FERRY_BENCH_COLD_MB  memory the cold weights and ReadMemory spread over, default 512; 0: no
//                        cold ones. Must exceed the share of the last-level cache to mean anything.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "ferry/core/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"

namespace {

using ferry::Buffer;
using ferry::DType;
using ferry::Isa;
using ferry::PackedMatrix;

constexpr std::int64_t kDepth = 2048;
constexpr std::int64_t kColumns = 1024;

std::size_t cold_bytes() {
  const char* mb = std::getenv("FERRY_BENCH_COLD_MB");
  return static_cast<std::size_t>(mb != nullptr ? std::atoll(mb) : 512) << 20;
}

/// bf16 values around 1 everywhere: no denormals, no infinities.
Buffer filled(std::size_t bytes) {
  Buffer buffer(bytes);
  auto* p = buffer.as<std::uint16_t>();
  for (std::size_t i = 0; i < bytes / 2; ++i)
    p[i] = static_cast<std::uint16_t>(0x3f00U + (i * 2654435761U >> 25) % 128 + (i % 2) * 0x8000U);
  return buffer;
}

/// Packed matrices one behind the other: one when hot, as many as cold_bytes() when cold.
const Buffer& weights(bool cold) {
  static const std::size_t one =
      PackedMatrix::packed_panel_bytes(DType::bf16, kDepth) * (kColumns / ferry::kPanelColumns);
  static const Buffer hot_weights = filled(one);
  if (!cold) return hot_weights;
  static const Buffer cold_weights = filled(std::max(one, cold_bytes() / one * one));
  return cold_weights;
}

void gemm(benchmark::State& state, Isa isa, bool cold) {
  const ferry::FlushDenormals flush;
  const auto rows = state.range(0);
  const ferry::Kernels& kernels = ferry::kernels_for(isa);
  const Buffer& memory = weights(cold);
  const Buffer in = filled(static_cast<std::size_t>(rows * kDepth) * 2);
  const Buffer out(static_cast<std::size_t>(rows * kColumns) * 4);
  const Buffer scratch(kernels.gemm_scratch_bytes(DType::bf16, kDepth));
  PackedMatrix matrix{DType::bf16, kDepth, kColumns, memory.data()};
  const std::size_t bytes = matrix.panel_bytes() * static_cast<std::size_t>(matrix.panels());
  ferry::GemmArgs args;
  args.in = {in.data(), kDepth * 2, nullptr};
  args.rows = rows;
  args.weights = &matrix;
  args.last_panel = matrix.panels();
  args.out = {out.data(), kColumns * 4};
  args.scratch = {scratch.data(), scratch.size()};
  for (auto _ : state) {
    kernels.gemm(args);
    matrix.data += bytes;
    if (matrix.data + bytes > memory.data() + memory.size()) matrix.data = memory.data();
  }
  const auto each = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["flops"] =
      benchmark::Counter(2.0 * static_cast<double>(rows * kDepth * kColumns), each);
  state.counters["bytes"] = benchmark::Counter(static_cast<double>(bytes), each);
}

/// Reads memory once with four streams: what one core gets at most.
void read_memory(benchmark::State& state) {
  const Buffer& memory = weights(true);
  const std::size_t quarter = memory.size() / 4 / 64 * 64;
  for (auto _ : state) {
    std::uint64_t sums[4][8] = {};
    for (std::size_t i = 0; i < quarter; i += 64) {
      for (std::size_t stream = 0; stream < 4; ++stream) {
        std::uint64_t line[8];
        std::memcpy(line, memory.data() + stream * quarter + i, sizeof line);
        for (std::size_t j = 0; j < 8; ++j) sums[stream][j] ^= line[j];
      }
    }
    benchmark::DoNotOptimize(sums);
  }
  state.counters["bytes"] = benchmark::Counter(static_cast<double>(quarter * 4),
                                               benchmark::Counter::kIsIterationInvariantRate);
}

void register_all() {
  const bool with_cold = cold_bytes() > 0;
  if (with_cold) benchmark::RegisterBenchmark("ReadMemory", read_memory);
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx}) {
    if (!ferry::isa_supported(isa)) continue;
    for (const bool cold : {false, true}) {
      if (cold && (!with_cold || isa == Isa::scalar)) continue;
      const std::string name =
          "Gemm/" + std::string(ferry::isa_name(isa)) + (cold ? "/cold/rows" : "/hot/rows");
      auto* bench = benchmark::RegisterBenchmark(name.c_str(), gemm, isa, cold);
      bench->Arg(1)->Unit(benchmark::kMicrosecond);
      if (isa == Isa::scalar) continue;
      for (const std::int64_t rows : {2, 4, 8, 16, 32, 64, 128, 512}) bench->Arg(rows);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  register_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
