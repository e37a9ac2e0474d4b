// One core's arithmetic. Matrix products: each instruction set and type of weights, few and many
// rows, weights hot in the caches or cold in memory. Counters: FLOP/s, and GB/s of weights read;
// the floor beside them is ReadMemory below (bytes) and Peak (operations), the unit's own on
// registers alone. Rows as they travel: Encode and Decode of bf16 rows of 7168 values and
// WeightedSum of 8 of them, once in the caches or 256 times through memory. Counter: bytes read and
// written; the floor beside them is Copy, memcpy of the same bf16 rows.
//   FERRY_BENCH_COLD_MB  memory the cold weights and ReadMemory spread over, default 512; 0: no
//                        cold ones. Must exceed the share of the last-level cache to mean anything.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"

namespace {

using ferry::Buffer;
using ferry::DType;
using ferry::Isa;
using ferry::PackedMatrix;
using ferry::WeightType;
using ferry::WireType;

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

std::size_t matrix_bytes(WeightType type) {
  return PackedMatrix::packed_panel_bytes(type, kDepth) * (kColumns / ferry::kPanelColumns);
}

/// Packed matrices one behind the other: one when hot, as many as cold_bytes() when cold. The same
/// bytes for all types: codes and scales of some value.
const Buffer& weights(bool cold) {
  static const std::size_t one = matrix_bytes(WeightType::bf16);
  static const Buffer hot_weights = filled(one);
  if (!cold) return hot_weights;
  static const Buffer cold_weights = filled(std::max(one, cold_bytes()));
  return cold_weights;
}

void gemm(benchmark::State& state, Isa isa, WeightType type, bool cold) {
  const ferry::FlushDenormals flush;
  const auto rows = state.range(0);
  const ferry::Kernels& kernels = ferry::kernels_for(isa);
  const Buffer& memory = weights(cold);
  const Buffer in = filled(static_cast<std::size_t>(rows * kDepth) * 2);
  const Buffer out(static_cast<std::size_t>(rows * kColumns) * 4);
  const Buffer scratch(kernels.gemm_scratch_bytes(type, kDepth));
  PackedMatrix matrix{type, kDepth, kColumns, memory.data()};
  const std::size_t bytes = matrix_bytes(type);
  ferry::GemmArgs args;
  args.in = {in.data(), kDepth * 2, nullptr};
  args.rows = rows;
  args.weights = &matrix;
  args.last_panel = matrix.panels();
  args.out = {out.data(), kColumns * 4};
  args.scratch = {scratch.data(), scratch.size()};
  for (auto _ : state) {
    kernels.gemm(args);
    if (cold) matrix.data += bytes;
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

constexpr std::int64_t kRowValues = 7168;
constexpr std::size_t kRowBytes = kRowValues * 2;

/// Runs move(from, to) over rows that lie `from_bytes` and `to_bytes` apart; counts what it moves.
template <class Move>
void over_rows(benchmark::State& state, std::size_t from_bytes, std::size_t to_bytes, Move move) {
  const ferry::FlushDenormals flush;
  const auto rows = static_cast<std::size_t>(state.range(0));
  const Buffer from = filled(rows * from_bytes);
  const Buffer to = filled(rows * to_bytes);
  for (auto _ : state) {
    for (std::size_t r = 0; r < rows; ++r)
      move(from.data() + r * from_bytes, to.data() + r * to_bytes);
    benchmark::ClobberMemory();
  }
  state.counters["bytes"] = benchmark::Counter(static_cast<double>(rows * (from_bytes + to_bytes)),
                                               benchmark::Counter::kIsIterationInvariantRate);
}

void copy_rows(benchmark::State& state) {
  over_rows(state, kRowBytes, kRowBytes, [](const std::byte* from, std::byte* to) {
    std::memcpy(to, from, kRowBytes);
  });
}

void encode_rows(benchmark::State& state, Isa isa, WireType wire) {
  const auto encode = ferry::kernels_for(isa).encode;
  over_rows(state,
            kRowBytes,
            ferry::wire_row_bytes(wire, kRowValues),
            [&](const std::byte* from, std::byte* to) {
              encode(from, DType::bf16, to, wire, kRowValues);
            });
}

void decode_rows(benchmark::State& state, Isa isa, WireType wire) {
  const auto decode = ferry::kernels_for(isa).decode;
  over_rows(state,
            ferry::wire_row_bytes(wire, kRowValues),
            kRowBytes,
            [&](const std::byte* from, std::byte* to) {
              decode(from, wire, to, DType::bf16, kRowValues);
            });
}

/// Combine's sum of 8 rows into a row of bf16, each from rows of its own.
void sum_rows(benchmark::State& state, Isa isa, WireType wire) {
  const ferry::FlushDenormals flush;
  constexpr std::size_t kTerms = 8;
  const auto sums = static_cast<std::size_t>(state.range(0));
  const std::size_t row_bytes = ferry::wire_row_bytes(wire, kRowValues);
  const ferry::Kernels& kernels = ferry::kernels_for(isa);
  const Buffer values = filled(kRowBytes);
  const Buffer rows(sums * kTerms * row_bytes);
  const Buffer out(sums * kRowBytes);
  for (std::size_t r = 0; r < sums * kTerms; ++r)
    kernels.encode(values.data(), DType::bf16, rows.data() + r * row_bytes, wire, kRowValues);
  const std::vector<float> weights(kTerms, 0.125F);
  for (auto _ : state) {
    for (std::size_t s = 0; s < sums; ++s) {
      const std::byte* terms[kTerms];
      for (std::size_t k = 0; k < kTerms; ++k)
        terms[k] = rows.data() + (s * kTerms + k) * row_bytes;
      kernels.weighted_sum({.rows = terms,
                            .weights = weights.data(),
                            .k = kTerms,
                            .n = kRowValues,
                            .in_type = wire,
                            .out = out.data() + s * kRowBytes,
                            .out_type = DType::bf16});
    }
    benchmark::ClobberMemory();
  }
  state.counters["bytes"] =
      benchmark::Counter(static_cast<double>(sums * (kTerms * row_bytes + kRowBytes)),
                         benchmark::Counter::kIsIterationInvariantRate);
}

void register_wires(Isa isa) {
  for (const WireType wire : ferry::wire_types()) {
    const std::string name = std::string(ferry::isa_name(isa)) + "/" +
                             std::string(ferry::wire_type_name(wire)) + "/rows";
    for (const std::int64_t rows : {1, 256}) {
      benchmark::RegisterBenchmark(("Encode/" + name).c_str(), encode_rows, isa, wire)->Arg(rows);
      benchmark::RegisterBenchmark(("Decode/" + name).c_str(), decode_rows, isa, wire)->Arg(rows);
      benchmark::RegisterBenchmark(("WeightedSum/" + name).c_str(), sum_rows, isa, wire)->Arg(rows);
    }
  }
}

/// The unit that many rows use, with all operands in registers.
void peak(benchmark::State& state, Isa isa, WeightType type) {
  const ferry::FlushDenormals flush;
  constexpr std::int64_t kRounds = 10000;
  std::uint64_t operations = 0;
  for (auto _ : state) operations = ferry::kernels_for(isa).multiply_in_registers(type, kRounds);
  state.counters["flops"] = benchmark::Counter(static_cast<double>(operations),
                                               benchmark::Counter::kIsIterationInvariantRate);
}

void register_gemm(Isa isa, WeightType type, bool cold) {
  const std::string name = "Gemm/" + std::string(ferry::isa_name(isa)) + "/" +
                           std::string(ferry::weight_type_name(type)) +
                           (cold ? "/cold/rows" : "/hot/rows");
  auto* bench = benchmark::RegisterBenchmark(name.c_str(), gemm, isa, type, cold);
  bench->Arg(1)->Unit(benchmark::kMicrosecond);
  if (isa == Isa::scalar) return;
  for (const std::int64_t rows : {2, 3, 4, 8, 16, 32, 64, 128, 512}) bench->Arg(rows);
}

void register_all() {
  benchmark::RegisterBenchmark("Copy/rows", copy_rows)->Arg(1)->Arg(256);
  for (const Isa isa : {Isa::avx2, Isa::avx512, Isa::neon})
    if (ferry::isa_supported(isa)) register_wires(isa);
  const bool with_cold = cold_bytes() > 0;
  if (with_cold) benchmark::RegisterBenchmark("ReadMemory", read_memory);
  for (const Isa isa : ferry::kAllIsas) {
    if (!ferry::isa_supported(isa)) continue;
    for (const WeightType type : {WeightType::bf16,
                                  WeightType::fp8,
                                  WeightType::mxfp4,
                                  WeightType::int8,
                                  WeightType::int4,
                                  WeightType::q8_0,
                                  WeightType::q4_k,
                                  WeightType::q6_k,
                                  WeightType::q8_0_int8,
                                  WeightType::q4_k_int8}) {
      const std::string peak_name = "Peak/" + std::string(ferry::isa_name(isa)) + "/" +
                                    std::string(ferry::weight_type_name(type));
      benchmark::RegisterBenchmark(peak_name.c_str(), peak, isa, type);
      register_gemm(isa, type, false);
      if (with_cold && isa != Isa::scalar) register_gemm(isa, type, true);
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
