#include "ferry/checkpoint/formats/row_format.h"

namespace ferry {

bool RowFormat::stores(const TensorSource& source, const MatrixPlace& place) const {
  const SourceTensor* tensor = source.find(place.name);
  return !place.stack && tensor != nullptr && tensor->type == options_.code_type;
}

std::vector<StoredPart> RowFormat::parts(const TensorSource& /*source*/,
                                         const MatrixPlace& place) const {
  const QuantSpec& spec = options_.spec;
  return {{place.name, {place.rows, spec.row_bytes(place.columns)}, options_.code_type},
          {place.name + std::string(options_.scale_suffix),
           {spec.scale_rows(place.rows), spec.groups(place.columns)}}};
}

StoredMatrix RowFormat::assemble(const MatrixPlace& place,
                                 std::span<const TensorView> parts) const {
  return {.quant = options_.spec,
          .rows = place.rows,
          .columns = place.columns,
          .data = parts[0].span(),
          .scales = parts[1]};
}

}  // namespace ferry
