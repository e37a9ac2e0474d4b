// gpt-oss's mxfp4: experts that lie together, e2m1, two values in a byte, a power of two for each
// 32 of a row. In the place of a stack lie codes [E, all rows, columns / 32, 16] and scales [E, all
// rows, columns / 32], the matrices the right way round.
#include "ferry/checkpoint/stored_format.h"

namespace ferry {

namespace {

constexpr std::string_view kBytes = "U8";
constexpr const char* kCodes = "_blocks";
constexpr const char* kScales = "_scales";

class Mxfp4 final : public StoredFormat {
 public:
  std::string_view name() const override { return "mxfp4"; }

  QuantSpec spec() const override { return quant_spec(WeightType::mxfp4); }

  bool stores(const TensorSource& source, const MatrixPlace& place) const override {
    return place.stack && source.find(place.name + kCodes) != nullptr;
  }

  std::vector<StoredPart> parts(const TensorSource& /*source*/,
                                const MatrixPlace& place) const override {
    const StackPlace& stack = place.stack.value();
    const std::int64_t groups = place.columns / kMxfp4Group;
    return {{place.name + kCodes, {stack.experts, stack.all_rows, groups, kMxfp4Group / 2}, kBytes},
            {place.name + kScales, {stack.experts, stack.all_rows, groups}, kBytes}};
  }

  StoredMatrix assemble(const MatrixPlace& place,
                        std::span<const TensorView> parts) const override {
    const StackPlace& stack = place.stack.value();
    const std::int64_t begin = (stack.expert * stack.all_rows + stack.first) * place.columns;
    const std::int64_t elements = ((place.rows - 1) * stack.step + 1) * place.columns;
    const auto own = [&](const TensorView& part, std::int64_t elements_a_byte) {
      return part.span().subspan(static_cast<std::size_t>(begin / elements_a_byte),
                                 static_cast<std::size_t>(elements / elements_a_byte));
    };
    const std::span<const std::byte> scales = own(parts[1], kMxfp4Group);
    return {.quant = spec(),
            .rows = place.rows,
            .columns = place.columns,
            .data = own(parts[0], 2),
            .row_step = stack.step * place.columns,
            .scales = {.shape = {}, .data = scales.data(), .bytes = scales.size()}};
  }

  bool stacks_experts() const override { return true; }

  std::int64_t column_unit() const override { return kMxfp4Group; }
};

std::unique_ptr<StoredFormat> make(const ConfigReader& /*quantization*/) {
  return std::make_unique<Mxfp4>();
}

}  // namespace

FormatEntry mxfp4_format() { return {.method = "mxfp4", .make = make}; }

}  // namespace ferry
