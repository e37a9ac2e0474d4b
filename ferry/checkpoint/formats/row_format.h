// What forms share whose matrices lie row after row beside a tensor of their scales.
#pragma once

#include "ferry/checkpoint/stored_format.h"

namespace ferry {

/// A tensor of the matrix's name, perhaps with a suffix, holds codes, another one their scales.
class RowFormat final : public StoredFormat {
 public:
  struct Options {
    std::string_view name;
    std::string_view code_type;     ///< of the tensor of codes: "F8_E4M3"
    std::string_view scale_suffix;  ///< "_scale"
    QuantSpec spec;                 ///< REQUIRES: no zero points are stored
    std::string_view code_suffix = {};
    bool powers = false;  ///< scales may be powers of two (E8M0), whatever the spec says
  };

  explicit RowFormat(const Options& options) : options_(options) {}

  std::string_view name() const override { return options_.name; }

  QuantSpec spec() const override { return options_.spec; }

  bool stores(const TensorSource& source, const MatrixPlace& place) const override;
  std::vector<StoredPart> parts(const TensorSource& source,
                                const MatrixPlace& place) const override;
  StoredMatrix assemble(const MatrixPlace& place, std::span<const TensorView> parts) const override;

 private:
  std::string codes_of(const MatrixPlace& place) const {
    return place.name + std::string(options_.code_suffix);
  }

  Options options_;
};

}  // namespace ferry
