// What forms share whose matrices lie row after row beside a tensor of their scales.
#pragma once

#include "ferry/checkpoint/stored_format.h"

namespace ferry {

/// "x.weight" holds codes, and a tensor of the same name with a suffix their scales.
class RowFormat final : public StoredFormat {
 public:
  struct Options {
    std::string_view name;
    std::string_view code_type;     ///< of the tensor of codes: "F8_E4M3"
    std::string_view scale_suffix;  ///< "_scale"
    QuantSpec spec;                 ///< REQUIRES: scales are numbers, no zero points are stored
  };

  explicit RowFormat(const Options& options) : options_(options) {}

  std::string_view name() const override { return options_.name; }

  QuantSpec spec() const override { return options_.spec; }

  bool stores(const TensorSource& source, const MatrixPlace& place) const override;
  std::vector<StoredPart> parts(const TensorSource& source,
                                const MatrixPlace& place) const override;
  StoredMatrix assemble(const MatrixPlace& place, std::span<const TensorView> parts) const override;

 private:
  Options options_;
};

}  // namespace ferry
