// Matrices that lie the other way round, in words of small codes: what GPTQ and AWQ have in common.
// In the place of x.weight [n, k] lie x.qweight, codes; x.qzeros, a zero point for each group of k
// and each of n, packed; and x.scales [groups, n]. Element = (code - zero point) * scale.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "ferry/checkpoint/stored_format.h"

namespace ferry {

class ColumnWords final : public StoredFormat {
 public:
  struct Options {
    std::string_view name;
    int bits = 4;                ///< of a code and of a zero point
    std::int64_t group = 0;      ///< of k that share a scale; 0: all
    bool words_along_k = false;  ///< a word has codes of one column, not of one row
    bool order = false;          ///< there must be x.g_idx [k], the group that each of k is in
    int zero_offset = 0;         ///< what is added to a stored zero point
    /// Where the code of the i-th of n is in its word, in codes from the lowest bits on.
    std::array<std::uint8_t, 8> place = {0, 1, 2, 3, 4, 5, 6, 7};
  };

  explicit ColumnWords(const Options& options) : options_(options) {}

  std::string_view name() const override { return options_.name; }

  QuantSpec spec() const override { return {.code = Code::own}; }

  bool stores(const TensorSource& source, const MatrixPlace& place) const override;
  std::vector<StoredPart> parts(const TensorSource& source,
                                const MatrixPlace& place) const override;
  StoredMatrix assemble(const MatrixPlace& place, std::span<const TensorView> parts) const override;

 private:
  Options options_;
};

}  // namespace ferry
