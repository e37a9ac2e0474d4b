// A matrix held as codes and as the bf16 that they stand for: products with both give one result.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "ferry/buffer.h"
#include "kernels/gemm_testing.h"

namespace ferry::testing {

class TwoForms {
 public:
  const PackedMatrix& codes() const { return codes_; }

  /// `elements_by`: what multiplies the bf16 form; in the class `fast` the same table.
  void expect_same_products(const Kernels& kernels,
                            const std::vector<std::byte>& rows,
                            std::int64_t num_rows,
                            const Kernels& elements_by = kernels_for(Isa::scalar)) const {
    const auto as_elements = product_of(elements_by, elements_, rows, num_rows);
    const auto as_codes = product_of(kernels, codes_, rows, num_rows);
    ASSERT_TRUE(same_bytes(as_codes, as_elements, DType::f32))
        << weight_type_name(codes_.type) << " k " << codes_.k << " n " << codes_.n << " rows "
        << num_rows;
  }

 protected:
  TwoForms(WeightType type, std::int64_t n, std::int64_t k)
      : codes_{.type = type, .k = k, .n = n}, elements_{.type = WeightType::bf16, .k = k, .n = n} {}

  /// `codes`: the source. `values` [n, k]: what they stand for.
  void pack(const PackArgs& codes, const std::vector<float>& values) {
    pack_into(codes_, codes_memory_, codes);
    const std::vector<std::byte> bf16 = to_type(values, DType::bf16);
    pack_into(elements_,
              elements_memory_,
              {.type = WeightType::bf16, .source = bf16.data(), .source_type = DType::bf16});
  }

 private:
  static void pack_into(PackedMatrix& matrix, Buffer& memory, PackArgs args) {
    memory = Buffer(static_cast<std::size_t>(matrix.panels()) * matrix.panel_bytes());
    std::fill_n(memory.data(), memory.size(), std::byte{0x77});
    args.k = matrix.k;
    args.n = matrix.n;
    args.out = memory.data();
    pack_matrix(args);
    matrix.data = memory.data();
  }

  PackedMatrix codes_, elements_;
  Buffer codes_memory_, elements_memory_;
};

}  // namespace ferry::testing
