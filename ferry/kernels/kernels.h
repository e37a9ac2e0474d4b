// The arithmetic: one table of functions for each instruction set, chosen once at start.
//
// Numerics contract (docs/numerics.md): a row's result depends on that row and the weights alone,
// and for every function here all instruction sets give the same bytes. The scalar table is the
// definition. Orders of summation:
//   gemm, bf16 weights: TDPBF16PS's. For each 32 k: a chain of fused multiply-adds over the even k
//     from 0, one over the odd k from 0, the two added, then added to the accumulator.
//   gemm, f32 weights: one chain of fused multiply-adds over k from 0.
//   gemm, mxfp4 weights: as bf16 ones of the same values, with the same bits.
//   gemm, ggml's blocks: as bf16 ones of what an element is, rounded to f32 and then to bf16.
//   gemm, fp8 weights: as bf16 over each 128 k, then one fused multiply-add with the scale.
//   gemm, int8 and int4 weights: exact integer sums over each group, then the same.
//   gemm, blocks that meet int8 rows: likewise, with a scale of the row for each 32 k.
//   every other reduction over a row (scores, sum of squares, sum of exponentials): "lane16": lane
//   j
//     takes elements j, j+16, j+32, ... by fused multiply-add (or addition) from 0; then lanes are
//     folded 16 -> 8 -> 4 -> 2 -> 1 as lane[j] += lane[j + half].
// All functions are noexcept, allocate nothing, and expect the thread to flush denormals
// (FlushDenormals in core/threads.h; ThreadPool does it).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "ferry/core/types.h"
#include "ferry/kernels/packed_matrix.h"
#include "ferry/threads.h"
#include "ferry/wire.h"

namespace ferry {

enum class Isa : std::uint8_t { scalar, avx2, avx2_vnni, avx512, amx, neon };

/// Of those that one machine has the best is the last.
inline constexpr std::array kAllIsas = {
    Isa::scalar, Isa::avx2, Isa::avx2_vnni, Isa::avx512, Isa::amx, Isa::neon};

/// What the order of sums is promised to be: docs/numerics.md.
enum class Numerics : std::uint8_t {
  exact,  ///< the same bytes for every instruction set
  fast    ///< that of the processor's own products where they are faster; still one for each row
};

enum class Epilogue : std::uint8_t {
  store,  ///< out[:, n] = acc (+ bias)
  gated,  ///< panels alternate gate, up: out[:, n] = the two (+ biases) as Gating says; half as
          ///< many columns
};

/// How gate and up become one.
struct Gating {
  enum class Kind : std::uint8_t {
    silu,     ///< silu(gate) * up
    clamped,  ///< g * sigmoid(alpha * g) * (u + 1), g = gate up to limit, u = up within +-limit
  };

  Kind kind = Kind::silu;
  float alpha = 1.0F;  ///< clamped only, as limit
  float limit = 0.0F;
};

/// out = in * W for `rows` rows and the panels [first_panel, last_panel).
struct GemmArgs {
  RowsView in;  ///< rows of k elements of activation_type(weights); aligned to 2 or 4 bytes
  std::int64_t rows = 0;
  const PackedMatrix* weights = nullptr;
  std::int64_t first_panel = 0;
  std::int64_t last_panel = 0;  ///< gated: both even
  /// [n]; gated: [weights->gated_panels() * kPanelColumns], as the columns lie in panels. Or null.
  const float* bias = nullptr;
  Epilogue epilogue = Epilogue::store;
  Gating gating = {};
  MutableRowsView out;                ///< rows of n (gated: n / 2) elements; whole rows: column c
                                      ///< of W lands at element c
  DType out_type = DType::f32;        ///< f32 or bf16 (rounded to nearest even)
  std::span<std::byte> scratch = {};  ///< at least gemm_scratch_bytes(k); the calling thread's own
};

/// A score that takes no share of any softmax.
inline constexpr float kNoSink = -std::numeric_limits<float>::infinity();

/// One query head: softmax(q.K * scale) V over the positions [begin, end).
/// Scores in lane16 order over a head's elements; the sum over positions is lane16 over those from
/// `begin` on for the denominators and one fused chain in order of position for the values.
/// A sink is one more score, which takes its share of the softmax and has no value.
struct AttendQuery {
  const float* query = nullptr;  ///< [head_dim]
  std::int64_t begin = 0;
  std::int64_t end = 0;
  float sink = kNoSink;
  float* out = nullptr;  ///< [value_dim]; zeros where it sees no position
};

/// Rows in pages: row i lies in pages[i >> page_shift], where row 0 of it begins at `offset` and
/// each row `stride` bytes behind the one before it. Pages whose rows nobody asks for may be null.
struct PagedRows {
  const std::byte* const* pages = nullptr;
  std::ptrdiff_t offset = 0;
  std::ptrdiff_t stride = 0;
};

/// As a page_shift: one page has all rows.
inline constexpr int kOnePage = 62;

/// Queries that share keys and values, and so each pass over them; those that see about the same
/// positions side by side. A query's result does not depend on the others. Quantised keys and
/// values are what `decode` to f32 gives.
struct AttendArgs {
  const AttendQuery* queries = nullptr;
  std::int64_t num_queries = 0;
  PagedRows keys;             ///< row p: the key at position p, [head_dim] of kv_type
  PagedRows values;           ///< likewise [value_row], of which the first value_dim are meant
  int page_shift = kOnePage;  ///< of both
  WireType kv_type = WireType::f32;  ///< as rows travel (ferry/wire.h): one of kKvTypes
  std::int64_t head_dim = 0;
  std::int64_t value_dim = 0;
  std::int64_t value_row = 0;  ///< value_dim, or head_dim where values are the beginnings of keys
  float scale = 1.0F;
  /// Scratch: a row of scores for each query, `score_stride` apart; from the smallest begin to the
  /// greatest end, and kAttendPadding more.
  float* scores = nullptr;
  std::int64_t score_stride = 0;
};

inline constexpr std::int64_t kAttendPadding = 16;

/// What attend() reads. Quantised rows have a scale for every 128 values.
inline constexpr std::array kKvTypes = {
    WireType::f32, WireType::bf16, WireType::fp8, WireType::int8_block};

/// Queries of a call that suffice to make little of reading keys and values.
inline constexpr std::int64_t kAttendQueries = 16;

/// How much the positions [begin, end) matter to one token, by the heads of an indexer:
///   scores[p] = sum over h in order of weights[h] * max(0, (queries[h] . keys[p]) * scale),
/// each product in lane16 order over a head's elements, the sum a chain of fused multiply-adds from
/// 0. A position's score does not depend on the others.
struct IndexArgs {
  const float* queries = nullptr;  ///< [heads, dim]
  const float* weights = nullptr;  ///< [heads]
  std::int64_t heads = 0;
  std::int64_t dim = 0;
  PagedRows keys;  ///< row p: [dim] of key_type
  int page_shift = kOnePage;
  DType key_type = DType::f32;
  float scale = 1.0F;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  float* scores = nullptr;  ///< [end - begin]
};

/// The weighted sum of combine: out = sum over k in order of weights[k] * rows[k], a chain of fused
/// multiply-adds in f32 from 0; accumulate adds the chain's result to what `out` holds. Quantised
/// values are what `decode` to f32 gives.
struct WeightedSumArgs {
  const std::byte* const* rows = nullptr;  ///< k pointers to rows of n values of `in_type`
  const float* weights = nullptr;          ///< [k]
  std::int64_t k = 0;
  std::int64_t n = 0;
  WireType in_type = WireType::f32;
  std::byte* out = nullptr;
  DType out_type = DType::f32;
  bool accumulate = false;
};

/// One token of one head of a gated delta net, whose state is a matrix S [key_dim, value_dim] of
/// f32:
///   S = decay * S, d = (value - S^T key) * beta, S = S + key d^T, out = S^T query.
/// Each product by S^T is a chain of fused multiply-adds over the elements of the key from 0; S +
/// key d^T is one of them for each element. `to` may be `from`.
struct DeltaArgs {
  const float* from = nullptr;   ///< S before the token
  float* to = nullptr;           ///< and behind it
  const float* key = nullptr;    ///< [key_dim]
  const float* query = nullptr;  ///< [key_dim]
  const float* value = nullptr;  ///< [value_dim]
  float decay = 1.0F;
  float beta = 0.0F;
  float* out = nullptr;  ///< [value_dim]; apart from all others
  std::int64_t key_dim = 0;
  std::int64_t value_dim = 0;
};

/// A weight of a token is 2^kWeightBits for the most probable one.
inline constexpr int kWeightBits = 30;

/// whole * 2^-30 + rest * 2^-50: exact sums of integers, so that their order does not matter.
struct ExpSum {
  std::uint64_t whole = 0;
  std::int64_t rest = 0;
};

struct WeightCount {
  std::uint64_t sum = 0;
  std::uint64_t tokens = 0;
};

struct WeightPick {
  WeightCount rest;  ///< of those from `high` on
  std::int64_t picked = 0;
};

struct Kernels {
  Isa isa;
  std::string_view name;

  /// Scratch that one thread's gemm calls need for inputs of up to k elements.
  std::size_t (*gemm_scratch_bytes)(WeightType weights, std::int64_t k);
  void (*gemm)(const GemmArgs& args);

  void (*attend)(const AttendArgs& args);
  void (*index_scores)(const IndexArgs& args);
  void (*weighted_sum)(const WeightedSumArgs& args);
  void (*delta_rule)(const DeltaArgs& args);

  /// out = x / sqrt(mean(x^2) + eps) * weight, all in f32, rounded to `type` once at the end.
  /// x and out: [n] of `type`; may be the same row.
  void (*rms_norm)(const std::byte* x,
                   DType type,
                   const float* weight,
                   float eps,
                   std::byte* out,
                   std::int64_t n);
  /// Rotates pairs (x[i], x[i + n/2]) by angle i: x0*cos - x1*sin, x1*cos + x0*sin (Hugging Face's
  /// half-split form); each as fma(x0, cos, -(x1 * sin)) and fma(x1, cos, x0 * sin).
  void (*rope)(float* x, const float* cos, const float* sin, std::int64_t n);
  /// p = softmax(x) in place, f32.
  void (*softmax)(float* x, std::int64_t n);
  /// out[i] = 1 / (1 + exp(-x[i])).
  void (*sigmoid)(const float* x, float* out, std::int64_t n);
  /// out[i] = x[i] * factor, out of f32.
  void (*scale)(const float* x, float factor, float* out, std::int64_t n);
  /// x[i] = round(x[i] + y[i]): adds an f32 row to a row of `type` (the residual stream).
  void (*add)(std::byte* x, DType type, const float* y, std::int64_t n);
  /// Converts a row between f32, bf16 and f16; to bf16 and f16 rounds to nearest even.
  void (*convert)(
      const std::byte* in, DType in_type, std::byte* out, DType out_type, std::int64_t n);

  /// memcpy for what will not be found in a cache when it is read: the target's lines are not read
  /// first, which is a third of a plain copy's traffic. Other threads see the bytes in
  /// what stream_fence() and a release store after it publish. No overlap; any alignment.
  void (*stream_copy)(std::byte* to, const std::byte* from, std::size_t bytes);
  void (*stream_fence)();
  /// Writes a row of n values as it travels: wire_row_bytes(type, n) bytes, padding zeroed. For f32
  /// and bf16 as `convert`. A value that is infinite or NaN makes all that share its scale NaN.
  /// in and out do not overlap.
  void (*encode)(const std::byte* in, DType in_type, std::byte* out, WireType type, std::int64_t n);
  /// Reads such a row: byte * scale, rounded to f32, then to `out_type`.
  void (*decode)(
      const std::byte* in, WireType type, std::byte* out, DType out_type, std::int64_t n);

  /// For the floors of benchmarks. `rounds` of what gemm's inner loop for many rows does, on
  /// registers alone; returns the operations done, two for each multiply-add.
  std::uint64_t (*multiply_in_registers)(WeightType weights, std::int64_t rounds);
  /// The greatest of n numbers, n >= 1; NaN where one of them is. Reads memory as fast as one
  /// thread can.
  float (*greatest)(const float* x, std::int64_t n);

  /// out[i] = e^((x[i] - most) * factor) with kWeightBits bits behind the point, nearest even: the
  /// weights that tokens are drawn by. Returns their sum. REQUIRES: x[i] <= most, factor > 0.
  std::uint64_t (*weigh)(
      const float* x, std::int64_t n, float most, float factor, std::uint32_t* out);
  /// The sum of e^(x[i] - most). REQUIRES: x[i] <= most.
  ExpSum (*exp_sum)(const float* x, std::int64_t n, float most);
  /// What lies above a limit.
  WeightCount (*count_weights)(const std::uint32_t* weights, std::int64_t n, std::uint32_t limit);
  /// Copies the weights from `low` to below `high`, in order, and counts those from `high` on.
  /// `out` may be `weights`, and has room for as many and 16 more. REQUIRES: 1 <= low <= high.
  WeightPick (*pick_weights)(const std::uint32_t* weights,
                             std::int64_t n,
                             std::uint32_t low,
                             std::uint32_t high,
                             std::uint32_t* out);
};

/// The table for this machine: the best it has, or what
/// FERRY_ISA=scalar|avx2|avx2_vnni|avx512|amx|neon names. Chosen at the first call. Throws
/// ConfigError when the machine lacks the one named.
const Kernels& kernels();

/// The table in use, for a numeric class. Where the machine has nothing faster, or FERRY_ISA
/// forbids it, both are the same.
const Kernels& kernels(Numerics numerics);

/// What the class comes to here, for people and for ranks that must have it alike: "exact", "fast
/// (bf16 by VDPBF16PS)".
std::string_view numerics_name(Numerics numerics);

/// "avx512", "avx512, fast (bf16 by VDPBF16PS)": for the lines at a start and an end.
std::string arithmetic_name(Numerics numerics);

/// Throws ConfigError that names `option`.
Numerics parse_numerics(std::string_view name, std::string_view option);

/// What a rank's threads compute with: its pool's table, or the process's.
inline const Kernels& kernels_of(const ThreadPool& pool) {
  return pool.kernels() != nullptr ? *pool.kernels() : kernels();
}

/// A table by name; throws ConfigError when this machine cannot run it. For tests and `doctor`.
const Kernels& kernels_for(Isa isa);

/// How the table in use multiplies with weights of a type, for people: "AVX-512 VNNI".
std::string_view gemm_method(WeightType type);

bool isa_supported(Isa isa);
std::string_view isa_name(Isa isa);

}  // namespace ferry
