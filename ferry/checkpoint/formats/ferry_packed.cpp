// What `ferry pack` wrote: panels, which nobody reads as rows. A loader takes whole pieces of the
// file (TensorSource::packed()); this says of each tensor that it is there, and of which shape.
#include "ferry/checkpoint/stored_format.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr std::string_view kPanels = " panels";  // types of a PackedDirectory

[[noreturn]] void refuse_rows() {
  fail<ModelError>(
      "packed weights cannot be taken apart again: give the checkpoint that they were made of");
}

class FerryPacked final : public StoredFormat {
 public:
  std::string_view name() const override { return "ferry_packed"; }

  QuantSpec spec() const override { return {.code = Code::own}; }

  bool stores(const TensorSource& source, const MatrixPlace& place) const override {
    const SourceTensor* tensor = source.find(place.name);
    return tensor != nullptr && tensor->type.ends_with(kPanels);
  }

  std::vector<StoredPart> parts(const TensorSource& source,
                                const MatrixPlace& place) const override {
    return {{place.name, {place.rows, place.columns}, source.find(place.name)->type}};
  }

  StoredMatrix assemble(const MatrixPlace& place,
                        std::span<const TensorView> parts) const override {
    return {
        .quant = spec(),
        .rows = place.rows,
        .columns = place.columns,
        .data = parts[0].span(),
        .reader = [](const StoredMatrix&, std::int64_t, std::int64_t, float*) { refuse_rows(); }};
  }

  std::optional<WeightType> held() const override { return std::nullopt; }
};

std::unique_ptr<StoredFormat> make(const ConfigReader& /*quantization*/) {
  return std::make_unique<FerryPacked>();
}

}  // namespace

FormatEntry ferry_packed_format() { return {.method = "ferry_packed", .make = make}; }

}  // namespace ferry
