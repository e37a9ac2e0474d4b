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

}  // namespace

}  // namespace ferry::testing
