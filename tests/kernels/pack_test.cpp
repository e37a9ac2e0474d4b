// Packing: every element at its place, zeros everywhere else.
#include "kernels/kernel_testing.h"

namespace ferry::testing {

namespace {

/// Element (k, column) of a packed matrix, by the layout that packed_matrix.h states.
float packed_at(const PackedMatrix& m, std::int64_t k, std::int64_t column) {
  const std::byte* panel =
      m.data + column / kPanelColumns * static_cast<std::int64_t>(m.panel_bytes());
  const std::int64_t c = column % kPanelColumns;
  const std::int64_t at =
      m.type == WeightType::f32 ? k * kPanelColumns + c : (k / 2 * kPanelColumns + c) * 2 + k % 2;
  const DType dtype = activation_type(m.type);
  const auto size = static_cast<std::int64_t>(dtype_bytes(dtype));
  return to_floats(panel + at * size, dtype, 1)[0];
}

TEST(PackMatrix, PutsEveryElementAtItsPlaceAndZerosElsewhere) {
  RandomValues random(11);
  for (const DType source_type : {DType::f32, DType::bf16, DType::f16}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const std::int64_t k : {1, 31, 32, 33, 300}) {
        for (const std::int64_t n : {1, 16, 40}) {
          const auto source = to_type(random.row(n * k), source_type);
          const auto values = to_floats(source.data(), source_type, n * k);
          PackedMatrix packed{weight_type(dtype), k, n, nullptr};
          std::vector<std::byte> memory(
              static_cast<std::size_t>(packed.panels()) * packed.panel_bytes(), std::byte{0x77});
          packed.data = memory.data();
          pack_matrix({.type = weight_type(dtype),
                       .source = source.data(),
                       .source_type = source_type,
                       .k = k,
                       .n = n,
                       .out = memory.data()});
          const std::int64_t k_padded = dtype == DType::bf16 ? round_up(k, kBf16KBlock) : k;
          for (std::int64_t i = 0; i < k_padded; ++i) {
            for (std::int64_t column = 0; column < round_up(n, kPanelColumns); ++column) {
              float want = 0;
              if (i < k && column < n)
                want = to_floats(
                    to_type({values[static_cast<std::size_t>(column * k + i)]}, dtype).data(),
                    dtype,
                    1)[0];
              ASSERT_EQ(packed_at(packed, i, column), want) << "k " << i << " column " << column;
            }
          }
        }
      }
    }
  }
}

TEST(PackMatrix, PanelsGiveTheirRowsAndScalesBack) {
  RandomValues random(13);
  for (const WeightType type : {WeightType::bf16, WeightType::fp8}) {
    for (const std::int64_t k : {1, 31, 32, 33, 160}) {
      for (const std::int64_t n : {1, 16, 40, 150}) {
        for (const std::int64_t step : {1, 2}) {
          const auto plain = to_type(random.row(n * k), DType::bf16);
          QuantizedMatrix quantized;
          if (type == WeightType::fp8)
            quantized = quantize_matrix(type, plain.data(), DType::bf16, n, k);
          const std::vector<std::byte> source =
              type == WeightType::fp8 ? quantized.codes : std::vector(plain.begin(), plain.end());
          PackedMatrix packed{type, k, n, nullptr};
          std::vector<std::byte> memory(static_cast<std::size_t>(packed.panels() * step) *
                                        packed.panel_bytes());
          packed.data = memory.data();
          PackArgs args{.type = type,
                        .source = source.data(),
                        .source_type = DType::bf16,
                        .scales = quantized.scales.data(),
                        .scale_rows = rows_per_scale(type),
                        .k = k,
                        .n = n,
                        .out = memory.data(),
                        .panel_step = step};
          pack_matrix(args);
          std::vector<std::byte> rows(source.size());
          unpack_rows(packed, step, rows.data());
          EXPECT_EQ(rows, source) << "k " << k << " n " << n << " step " << step;
          if (type == WeightType::bf16) continue;
          std::vector<float> scales(quantized.scales.size());
          EXPECT_TRUE(unpack_block_scales(packed, step, scales.data()));
          EXPECT_EQ(scales, quantized.scales);
          std::vector<float> own(static_cast<std::size_t>(n * weight_groups(type, k)), 1.0F);
          own.back() = 2;
          args.scales = own.data();
          args.scale_rows = 1;
          pack_matrix(args);
          EXPECT_EQ(unpack_block_scales(packed, step, scales.data()), n % kFp8Block == 1);
        }
      }
    }
  }
}

TEST(PackMatrix, PanelStepLeavesTheOtherPanelsAlone) {
  RandomValues random(12);
  const auto source = to_type(random.row(40 * 8), DType::f32);
  const std::size_t panel_bytes = PackedMatrix::packed_panel_bytes(WeightType::f32, 8);
  std::vector<std::byte> memory(6 * panel_bytes, std::byte{0x77});
  pack_matrix({.type = WeightType::f32,
               .source = source.data(),
               .source_type = DType::f32,
               .k = 8,
               .n = 40,
               .out = memory.data(),
               .panel_step = 2});
  for (const std::size_t panel : {1, 3, 5})
    for (std::size_t i = 0; i < panel_bytes; ++i)
      ASSERT_EQ(memory[panel * panel_bytes + i], std::byte{0x77}) << "panel " << panel;
  std::vector<std::byte> plain(3 * panel_bytes);
  pack_matrix({.type = WeightType::f32,
               .source = source.data(),
               .source_type = DType::f32,
               .k = 8,
               .n = 40,
               .out = plain.data()});
  for (const std::size_t panel : {0, 1, 2})
    EXPECT_EQ(
        std::memcmp(&memory[2 * panel * panel_bytes], &plain[panel * panel_bytes], panel_bytes), 0);
}

/// Where a panel of such codes has number k of a column: the byte, and which half of it (int4).
struct CodePlace {
  std::int64_t at = 0;
  int half = 0;
};

CodePlace code_place(WeightType type, std::int64_t k, std::int64_t c) {
  if (type == WeightType::int8) return {k / 4 * 64 + c * 4 + k % 4, 0};
  if (type == WeightType::int4) return {k / 8 * 64 + c * 4 + k % 4, static_cast<int>(k % 8 / 4)};
  return {k * kPanelColumns + c, 0};
}

int half_of(std::byte both, int half) { return std::to_integer<int>(both) >> (4 * half) & 15; }

TEST(PackMatrix, PutsEveryCodeAtItsPlaceAndCodesOfZeroElsewhere) {
  RandomValues random(13);
  for (const WeightType type : {WeightType::int8, WeightType::int4, WeightType::fp8}) {
    for (const std::int64_t k : {1, 5, 31, 64, 128, 200, 256}) {
      for (const std::int64_t n : {1, 16, 40}) {
        const std::int64_t row_bytes = code_row_bytes(type, k);
        std::vector<std::byte> codes;
        for (const float value : random.row(n * row_bytes))
          codes.push_back(
              std::byte(static_cast<std::uint8_t>(static_cast<int>(value * 997)) % 127));
        if (type == WeightType::int4 && k % 2 == 1)  // as quantize_row leaves it
          for (std::int64_t i = 1; i <= n; ++i)
            codes[static_cast<std::size_t>(i * row_bytes - 1)] =
                (codes[static_cast<std::size_t>(i * row_bytes - 1)] & std::byte{15}) |
                std::byte{0x80};
        const std::vector<float> scales = random.row(n * weight_groups(type, k));
        const PackedMatrix packed{type, k, n, nullptr};
        std::vector<std::byte> memory(
            static_cast<std::size_t>(packed.panels()) * packed.panel_bytes(), std::byte{0x77});
        pack_matrix({.type = type,
                     .source = codes.data(),
                     .scales = scales.data(),
                     .k = k,
                     .n = n,
                     .out = memory.data()});
        const std::int64_t padded = round_up(k, type == WeightType::fp8 ? kBf16KBlock : kIntKBlock);
        for (std::int64_t column = 0; column < round_up(n, kPanelColumns); ++column) {
          const std::byte* panel =
              memory.data() +
              column / kPanelColumns * static_cast<std::int64_t>(packed.panel_bytes());
          for (std::int64_t i = 0; i < padded; ++i) {
            const CodePlace place = code_place(type, i, column % kPanelColumns);
            const bool there = i < k && column < n;
            const std::byte* row = codes.data() + column * row_bytes;
            if (type == WeightType::int4)
              ASSERT_EQ(half_of(panel[place.at], place.half),
                        there ? half_of(row[i / 2], static_cast<int>(i % 2)) : 8)
                  << "k " << i << " column " << column;
            else
              ASSERT_EQ(panel[place.at],
                        (there ? row[i] : std::byte{0}) ^
                            (type == WeightType::int8 ? std::byte{0x80} : std::byte{0}))
                  << "k " << i << " column " << column;
          }
        }
      }
    }
  }
}

}  // namespace

}  // namespace ferry::testing
