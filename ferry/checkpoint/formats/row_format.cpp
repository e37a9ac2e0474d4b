#include "ferry/checkpoint/formats/row_format.h"

#include <utility>

namespace ferry {

namespace {

/// What newer files call the bytes of powers of two, and others.
constexpr std::string_view kExponents = "F8_E8M0";
constexpr std::string_view kByteType = "U8";

bool has_exponents(std::string_view type) { return type == kExponents || type == kByteType; }

}  // namespace

bool RowFormat::stores(const TensorSource& source, const MatrixPlace& place) const {
  const SourceTensor* tensor = source.find(codes_of(place));
  return !place.stack && tensor != nullptr && tensor->type == options_.code_type;
}

std::vector<StoredPart> RowFormat::parts(const TensorSource& source,
                                         const MatrixPlace& place) const {
  const QuantSpec& spec = options_.spec;
  StoredPart scales{place.name + std::string(options_.scale_suffix),
                    {spec.scale_rows(place.rows), spec.groups(place.columns)}};
  const SourceTensor* tensor = source.find(scales.name);
  const std::string_view type = tensor == nullptr ? std::string_view() : tensor->type;
  if (spec.scale == ScaleKind::power_of_two)
    scales.type = type == kExponents ? kExponents : kByteType;
  else if (options_.powers && has_exponents(type))
    scales.type = type;
  return {{codes_of(place), {place.rows, spec.row_bytes(place.columns)}, options_.code_type},
          std::move(scales)};
}

StoredMatrix RowFormat::assemble(const MatrixPlace& place,
                                 std::span<const TensorView> parts) const {
  QuantSpec spec = options_.spec;
  if (has_exponents(parts[1].type)) spec.scale = ScaleKind::power_of_two;
  return {.quant = spec,
          .rows = place.rows,
          .columns = place.columns,
          .data = parts[0].span(),
          .scales = parts[1]};
}

}  // namespace ferry
