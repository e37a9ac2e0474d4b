// Blocks that meet rows of int8: the bytes of the definition in docs/numerics.md, spelt out here
// with what the room that reads files makes of blocks, whatever codes, scales and shapes.
#include <algorithm>
#include <cmath>

#include "ferry/checkpoint/gguf/gguf_types.h"
#include "ferry/kernels/cpu/tables.h"
#include "kernels/gemm_testing.h"
#include "support/long_tests.h"

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace ferry::testing {

namespace {

constexpr std::int64_t kGroup = 32;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

const GgufType& stored_type(WeightType type) {
  const auto types = gguf_types();
  return *std::ranges::find(types, std::optional(code_type(type)), &GgufType::held);
}

bool has_leasts(WeightType type) {
  const WeightType codes = code_type(type);
  return codes == WeightType::q4_1 || codes == WeightType::q4_k || codes == WeightType::q5_k;
}

/// Groups of k that have a scale of their own lie in a group of kGroup.
int parts(WeightType type) { return type == WeightType::q6_k_int8 ? 2 : 1; }

/// Of the size that scales have.
std::uint16_t usual_half(std::mt19937& engine) {
  return static_cast<std::uint16_t>(0x0800 + engine() % 0x1400);
}

enum class Bytes { random, lowest, highest };

/// A matrix [n, k], packed, and what its elements are made of.
class BlockMatrix {
 public:
  BlockMatrix(WeightType type,
              std::int64_t n,
              std::int64_t k,
              std::uint32_t seed,
              Bytes bytes = Bytes::random)
      : packed_{.type = type, .k = k, .n = n},
        memory_(static_cast<std::size_t>(packed_.panels()) * packed_.panel_bytes()),
        engine_(seed),
        bytes_(bytes),
        scaled_(at(n * k)),
        least_(at(n * k)) {
    std::fill_n(memory_.data(), memory_.size(), std::byte{0x77});
    if (type == WeightType::mxfp4_int8)
      fill_mxfp4();
    else
      fill_blocks();
    packed_.data = memory_.data();
  }

  const PackedMatrix& packed() const { return packed_; }

  /// Its code times its scale: exact.
  float scaled(std::int64_t column, std::int64_t i) const {
    return scaled_[at(column * packed_.k + i)];
  }

  /// What is taken off that.
  float least(std::int64_t column, std::int64_t i) const {
    return least_[at(column * packed_.k + i)];
  }

 private:
  std::byte any_byte() {
    if (bytes_ == Bytes::random) return static_cast<std::byte>(engine_());
    return bytes_ == Bytes::highest ? std::byte{0xff} : std::byte{};
  }

  void pack(const std::byte* source, const float* scales) {
    pack_matrix({.type = packed_.type,
                 .source = source,
                 .scales = scales,
                 .k = packed_.k,
                 .n = packed_.n,
                 .out = memory_.data()});
  }

  void fill_mxfp4() {
    constexpr float kNumbers[8] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
    const std::int64_t row_bytes = code_row_bytes(WeightType::mxfp4, packed_.k);
    const std::int64_t groups = weight_groups(WeightType::mxfp4, packed_.k);
    std::vector<std::byte> codes(at(packed_.n * row_bytes));
    std::vector<float> scales(at(packed_.n * groups));
    for (std::byte& byte : codes) byte = any_byte();
    for (float& scale : scales)
      scale = power_scale(static_cast<std::uint8_t>(100 + engine_() % 50));
    for (std::int64_t c = 0; c < packed_.n; ++c) {
      for (std::int64_t i = 0; i < packed_.k; ++i) {
        const auto both = std::to_integer<unsigned>(codes[at(c * row_bytes + i / 2)]);
        const unsigned code = i % 2 == 0 ? both & 15U : both >> 4U;
        const float number = kNumbers[code & 7U] * scales[at(c * groups + i / kGroup)];
        scaled_[at(c * packed_.k + i)] = code >= 8 ? -number : number;
      }
    }
    pack(codes.data(), scales.data());
  }

  /// What a block's numbers are without what is taken off, and that by itself, says the reader of
  /// blocks that have zeros in place of the other.
  void fill_blocks() {
    const WeightType type = code_type(packed_.type);
    const GgufType& stored = stored_type(packed_.type);
    const std::int64_t row_bytes = code_row_bytes(type, packed_.k);
    std::vector<std::byte> blocks(at(packed_.n * row_bytes));
    std::vector<std::byte> without_leasts;
    std::vector<std::byte> without_codes;
    for (std::byte& byte : blocks) byte = any_byte();
    for (std::size_t i = 0; i < blocks.size(); i += at(stored.bytes)) {
      put_half(blocks, type == WeightType::q6_k ? i + at(stored.bytes) - 2 : i);
      if (has_leasts(type)) put_half(blocks, i + 2);
    }
    without_leasts = without_codes = blocks;
    const std::size_t head = type == WeightType::q4_1 ? 4 : 4 + 12;
    for (std::size_t i = 0; has_leasts(type) && i < blocks.size(); i += at(stored.bytes)) {
      std::fill_n(without_leasts.begin() + static_cast<std::ptrdiff_t>(i) + 2, 2, std::byte{});
      std::fill(without_codes.begin() + static_cast<std::ptrdiff_t>(i + head),
                without_codes.begin() + static_cast<std::ptrdiff_t>(i) + stored.bytes,
                std::byte{});
    }
    for (std::int64_t c = 0; c < packed_.n; ++c) {
      const auto read = [&](const std::vector<std::byte>& from, std::vector<float>& to) {
        stored.read_row(from.data() + c * row_bytes, packed_.k, to.data() + c * packed_.k);
      };
      read(without_leasts, scaled_);
      if (!has_leasts(type)) continue;
      read(without_codes, least_);
    }
    for (float& least : least_) least = -least;
    pack(blocks.data(), nullptr);
  }

  void put_half(std::vector<std::byte>& blocks, std::size_t where) {
    const std::uint16_t half = usual_half(engine_);
    std::memcpy(blocks.data() + where, &half, sizeof half);
  }

  PackedMatrix packed_;
  Buffer memory_;
  std::mt19937 engine_;
  Bytes bytes_;
  std::vector<float> scaled_;
  std::vector<float> least_;
};

/// Rows [rows, k] of bf16.
struct Rows {
  std::vector<std::byte> bytes;
  std::vector<float> values;
  std::int64_t k = 0;

  Rows(const std::vector<float>& x, std::int64_t depth)
      : bytes(to_type(x, DType::bf16)),
        values(to_floats(bytes.data(), DType::bf16, static_cast<std::int64_t>(x.size()))),
        k(depth) {}

  std::int64_t count() const { return static_cast<std::int64_t>(values.size()) / k; }
};

/// f32 or bf16 [rows, columns].
std::vector<std::byte> product(const Kernels& kernels,
                               const PackedMatrix& weights,
                               const Rows& in,
                               std::int64_t first,
                               std::int64_t rows) {
  const auto begin = in.bytes.begin() + first * in.k * 2;
  return product_of(kernels, weights, {begin, begin + rows * in.k * 2}, rows);
}

std::vector<std::byte> product(const Kernels& kernels,
                               const PackedMatrix& weights,
                               const Rows& in) {
  return product(kernels, weights, in, 0, in.count());
}

/// A group of a row as docs/numerics.md rounds it.
struct RoundedGroup {
  float scale = 0;
  std::int64_t sum = 0;
  int code[kGroup] = {};

  RoundedGroup(const float* x, std::int64_t count) {
    float most = 0;
    for (std::int64_t i = 0; i < count; ++i) most = std::max(most, std::abs(x[i]));
    scale = std::max(most / 127, 0x1p-126F);
    const float inverse = 1 / scale;
    for (std::int64_t i = 0; i < count; ++i) {
      code[i] = static_cast<int>(std::nearbyint(x[i] * inverse));
      sum += code[i];
    }
  }
};

/// The definition, an element of the product.
float defined_sum(const BlockMatrix& w, const Rows& in, std::int64_t row, std::int64_t column) {
  float total = 0;
  for (std::int64_t first = 0; first < in.k; first += kGroup) {
    const std::int64_t count = std::min(kGroup, in.k - first);
    const RoundedGroup x(in.values.data() + row * in.k + first, count);
    float own = 0;
    const std::int64_t length = kGroup / parts(w.packed().type);
    for (std::int64_t begin = 0; begin < count; begin += length) {
      // The integers' sum times its scale, which is exact in so many bits.
      long double exact = 0;
      for (std::int64_t i = begin; i < std::min(count, begin + length); ++i)
        exact += static_cast<long double>(x.code[i]) * w.scaled(column, first + i);
      own = static_cast<float>(exact + own);
    }
    if (has_leasts(w.packed().type))
      own = std::fma(static_cast<float>(-x.sum), w.least(column, first), own);
    total = std::fma(own, x.scale, total);
  }
  return total;
}

class ByteBlocksOfIsa : public GemmOfIsa {};

TEST(ScalarByteBlocks, SumInTheOrderOfTheDefinition) {
  const FlushDenormals flush;
  RandomValues random(7);
  std::uint32_t seed = 1;
  for (const WeightType type : byte_block_types()) {
    const std::int64_t block = is_ggml(type) ? ggml_block(type).k : 29;  // the latter: a padded end
    for (const std::int64_t k : {block, 2 * block, 3 * block}) {
      for (const std::int64_t n : {3, 17}) {
        const BlockMatrix w(type, n, k, ++seed);
        for (const std::int64_t rows : {1, 2, 5}) {
          const Rows in(random.row(rows * k), k);
          const auto out = product(kernels_for(Isa::scalar), w.packed(), in);
          const auto sums = to_floats(out.data(), DType::f32, rows * n);
          for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t c = 0; c < n; ++c)
              ASSERT_EQ(sums[at(r * n + c)], defined_sum(w, in, r, c))
                  << weight_type_name(type) << " k " << k << " row " << r << " column " << c;
        }
      }
    }
  }
}

TEST_P(ByteBlocksOfIsa, GiveTheBytesOfScalarOnRaggedShapes) {
  RandomValues random(3);
  std::uint32_t seed = 5;
  for (const WeightType type : byte_block_types()) {
    for (const std::int64_t blocks : {1, 2, 3, 9}) {
      const std::int64_t k = is_ggml(type) ? blocks * ggml_block(type).k : blocks * 37;
      if (slow_run() && k > 512) continue;
      for (const std::int64_t n : {1, 15, 17, 40, 72, 144}) {
        const BlockMatrix w(type, n, k, ++seed);
        for (const std::int64_t rows : {0, 1, 2, 3, 4, 5, 7, 8, 10, 11, 33}) {
          const Rows in(random.row(rows * k, Values::mixed), k);
          ASSERT_TRUE(same_bytes(product(fast(), w.packed(), in),
                                 product(kernels_for(Isa::scalar), w.packed(), in),
                                 DType::f32))
              << weight_type_name(type) << " k " << k << " n " << n << " rows " << rows;
        }
      }
    }
  }
}

/// Bytes of the greatest magnitude on both sides: no sum of two products saturates.
TEST_P(ByteBlocksOfIsa, SumTheGreatestCodesExactly) {
  std::uint32_t seed = 50;
  for (const WeightType type : byte_block_types()) {
    const std::int64_t k = 512;
    for (const Bytes bytes : {Bytes::lowest, Bytes::highest}) {
      const BlockMatrix w(type, 20, k, ++seed, bytes);
      for (const std::int64_t rows : {1, 2, 6}) {
        RandomValues random(seed);
        for (const Rows& in : {Rows(std::vector<float>(at(rows * k), 1.0F), k),
                               Rows(std::vector<float>(at(rows * k), -1.0F), k),
                               Rows(random.row(rows * k, Values::extreme), k)}) {
          const auto out = product(fast(), w.packed(), in);
          const auto sums = to_floats(out.data(), DType::f32, rows * 20);
          for (std::int64_t c = 0; c < 20; ++c)
            ASSERT_EQ(sums[at((rows - 1) * 20 + c)], defined_sum(w, in, rows - 1, c))
                << weight_type_name(type);
        }
      }
    }
  }
}

TEST_P(ByteBlocksOfIsa, GiveARowTheSameBytesInAnyBatch) {
  RandomValues random(11);
  for (const WeightType type : byte_block_types()) {
    const std::int64_t k = 512;
    const std::int64_t rows = slow_run() ? 70 : 300;  // more than are made ready at a time
    const std::int64_t n = 40;
    const BlockMatrix w(type, n, k, 9);
    const Rows in(random.row(rows * k, Values::mixed), k);
    const auto all = product(fast(), w.packed(), in);
    for (const std::int64_t some : {1, 2, 3, 5}) {
      for (std::int64_t first = 0; first + some <= rows; first += 29) {
        const auto part = product(fast(), w.packed(), in, first, some);
        const std::vector<std::byte> same(all.begin() + first * n * 4,
                                          all.begin() + (first + some) * n * 4);
        ASSERT_TRUE(same_bytes(part, same, DType::f32)) << weight_type_name(type);
      }
    }
  }
}

/// An infinity or a NaN is a NaN in the row's own results, and in no other's.
TEST_P(ByteBlocksOfIsa, MakeNanOfWhatIsNotFinite) {
  RandomValues random(13);
  for (const WeightType type : byte_block_types()) {
    const std::int64_t k = 256;
    const BlockMatrix w(type, 20, k, 3);
    for (const std::int64_t rows : {2, 5}) {
      std::vector<float> values = random.row(rows * k);
      values[40] = std::numeric_limits<float>::infinity();
      const auto out = product(fast(), w.packed(), Rows(values, k));
      const auto sums = to_floats(out.data(), DType::f32, rows * 20);
      for (std::int64_t i = 0; i < rows * 20; ++i)
        ASSERT_EQ(std::isnan(sums[at(i)]), i < 20) << weight_type_name(type);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, ByteBlocksOfIsa, ::testing::ValuesIn(kAllIsas), isa_test_name);

/// As processors of every age have them.
std::vector<Kernels> tables_of_bytes() {
  std::vector<Kernels> tables;
#if defined(__x86_64__)
  if (isa_supported(Isa::avx512)) tables.push_back(cpu::kAvx512);  // without VNNI
#elif defined(__aarch64__)
  tables.push_back(cpu::kNeon);
  if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) {
    tables.push_back(cpu::kNeon);
    tables.back().gemm = cpu::sdot_gemm;
  }
#endif
  return tables;
}

TEST(ByteBlocks, GiveTheSameBytesWithoutTheNewestInstructions) {
  const FlushDenormals flush;
  RandomValues random(17);
  for (const Kernels& table : tables_of_bytes()) {
    for (const WeightType type : byte_block_types()) {
      const BlockMatrix w(type, 72, 512, 21);
      for (const std::int64_t rows : {1, 2, 3, 40}) {
        const Rows in(random.row(rows * 512, Values::mixed), 512);
        EXPECT_TRUE(same_bytes(product(table, w.packed(), in),
                               product(kernels_for(Isa::scalar), w.packed(), in),
                               DType::f32))
            << weight_type_name(type);
      }
    }
  }
}

/// Rounding a row moves each of its numbers by half a step of its group at most.
TEST(ByteBlocks, AreOffByTheRoundingOfRows) {
  const FlushDenormals flush;
  RandomValues random(19);
  for (const WeightType type : byte_block_types()) {
    const std::int64_t k = 512;
    const BlockMatrix w(type, 16, k, 33);
    const Rows in(random.row(k), k);
    const auto out = product(kernels(), w.packed(), in);
    const auto sums = to_floats(out.data(), DType::f32, 16);
    for (std::int64_t c = 0; c < 16; ++c) {
      double exact = 0;
      double bound = 0;
      for (std::int64_t first = 0; first < k; first += kGroup) {
        float most = 0;
        for (std::int64_t i = first; i < first + kGroup; ++i)
          most = std::max(most, std::abs(in.values[at(i)]));
        for (std::int64_t i = first; i < first + kGroup; ++i) {
          const double weight = double{w.scaled(c, i)} - w.least(c, i);
          exact += weight * in.values[at(i)];
          const double magnitude = double{std::abs(w.scaled(c, i))} + std::abs(w.least(c, i));
          bound += std::abs(weight) * (most / 254.0) + magnitude * most * 0x1p-17;
        }
      }
      EXPECT_NEAR(sums[at(c)], exact, bound) << weight_type_name(type);
    }
  }
}

TEST(ByteBlocks, TakeTheRoomOfTheOtherForm) {
  for (const WeightType type : byte_block_types())
    EXPECT_EQ(PackedMatrix::packed_panel_bytes(type, 2048),
              PackedMatrix::packed_panel_bytes(code_type(type), 2048));
}

}  // namespace

}  // namespace ferry::testing
