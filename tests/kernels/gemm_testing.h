// Products for the tests of gemm: a case and its inputs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <ostream>
#include <vector>

#include "ferry/kernels/cpu/tables.h"
#include "kernels/amx_emulator.h"
#include "kernels/kernel_testing.h"

namespace ferry::testing {

struct Case {
  WeightType type = WeightType::f32;
  std::int64_t rows = 0;
  std::int64_t k = 0;
  std::int64_t n = 0;
  Epilogue epilogue = Epilogue::store;
  Gating gating = {};
  DType out_type = DType::f32;
  bool bias = false;
  bool pointers = false;
  Values values = Values::plain;

  bool gated() const { return epilogue == Epilogue::gated; }

  std::int64_t columns() const { return gated() ? n / 2 : n; }

  DType in_type() const { return activation_type(type); }
};

inline std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << weight_type_name(c.type) << " rows " << c.rows << " k " << c.k << " n " << c.n
             << (c.gated() ? " gated " : "")
             << (c.gating.kind == Gating::Kind::clamped ? "clamped" : "") << " out "
             << dtype_name(c.out_type) << (c.bias ? " bias" : "")
             << (c.pointers ? " pointers" : "");
}

/// k that share a scale. REQUIRES: is_quantized(type).
inline std::int64_t scale_group(WeightType type, std::int64_t k) {
  if (type == WeightType::int8) return k;
  if (type == WeightType::int4) return kInt4Group;
  return type == WeightType::mxfp4 ? kMxfp4Group : kFp8Block;
}

/// Inputs of one product, with rows off any alignment and apart from each other.
class Problem {
 public:
  explicit Problem(const Case& c, std::uint32_t seed = 1)
      : case_(c),
        random_(seed),
        weights_(random_, c.type, c.k, c.n, c.values, c.gated()),
        bias_(random_.row(bias_places(c, weights_), c.values)),
        in_stride_((c.k + 3) * size_of(c.in_type())),
        out_stride_((c.columns() + 1) * size_of(c.out_type)),
        in_values_(random_.row((c.k + 3) * (c.rows + 1), c.values)),
        in_(to_type(in_values_, c.in_type())) {
    in_values_ = to_floats(in_.data(), c.in_type(), static_cast<std::int64_t>(in_values_.size()));
    for (std::int64_t r = c.rows; r-- > 0;) pointers_.push_back(row(r));
  }

  const Weights& weights() const { return weights_; }

  std::int64_t panels() const {
    return case_.gated() ? weights_.packed.gated_panels() : weights_.packed.panels();
  }

  /// Input element; rows given by pointers run backwards.
  float in(std::int64_t r, std::int64_t i) const {
    const std::int64_t at = case_.pointers ? case_.rows - 1 - r : r;
    return in_values_[static_cast<std::size_t>(at * (case_.k + 3) + 1 + i)];
  }

  float weight(std::int64_t i, std::int64_t column) const {
    return weights_.values[static_cast<std::size_t>(column * case_.k + i)];
  }

  /// With its scale.
  double weight_value(std::int64_t i, std::int64_t column) const {
    const double code = weight(i, column);
    if (!is_quantized(case_.type)) return code;
    return code * weights_.scale(column, i / scale_group(case_.type, case_.k));
  }

  /// Gated: columns of gate come before those of up, as in the checkpoint.
  float bias(std::int64_t column) const {
    if (case_.gated()) {
      const std::int64_t half = column / case_.columns();
      const std::int64_t c = column % case_.columns();
      column = (2 * (c / kPanelColumns) + half) * kPanelColumns + c % kPanelColumns;
    }
    return bias_[static_cast<std::size_t>(column)];
  }

  std::vector<std::byte> blank() const {
    return std::vector<std::byte>(static_cast<std::size_t>(out_stride_ * case_.rows) + 64,
                                  std::byte{0x3f});
  }

  /// Rows [first, first + rows) and panels [first_panel, last_panel) into `out` of blank()'s size.
  void run(const Kernels& kernels,
           std::vector<std::byte>& out,
           std::int64_t first,
           std::int64_t rows,
           std::int64_t first_panel,
           std::int64_t last_panel) const {
    std::vector<std::byte> scratch(kernels.gemm_scratch_bytes(case_.type, case_.k));
    GemmArgs args;
    args.in =
        case_.pointers ? RowsView{nullptr, 0, pointers_.data()} : RowsView{row(0), in_stride_};
    args.in = args.in.from(first);
    args.rows = rows;
    args.weights = &weights_.packed;
    args.first_panel = first_panel;
    args.last_panel = last_panel;
    args.bias = case_.bias ? bias_.data() : nullptr;
    args.epilogue = case_.epilogue;
    args.gating = case_.gating;
    args.out = MutableRowsView{out.data(), out_stride_}.from(first);
    args.out_type = case_.out_type;
    args.scratch = scratch;
    kernels.gemm(args);
  }

  std::vector<std::byte> run(const Kernels& kernels) const {
    auto out = blank();
    run(kernels, out, 0, case_.rows, 0, panels());
    return out;
  }

  std::vector<float> out_row(const std::vector<std::byte>& out, std::int64_t r) const {
    return to_floats(out.data() + r * out_stride_, case_.out_type, case_.columns());
  }

 private:
  static std::int64_t bias_places(const Case& c, const Weights& weights) {
    return c.gated() ? weights.packed.gated_panels() * kPanelColumns : c.n;
  }

  static std::int64_t size_of(DType type) { return static_cast<std::int64_t>(dtype_bytes(type)); }

  const std::byte* row(std::int64_t r) const {
    return in_.data() + r * in_stride_ + size_of(case_.in_type());
  }

  Case case_;
  RandomValues random_;
  Weights weights_;
  std::vector<float> bias_;
  std::int64_t in_stride_;
  std::int64_t out_stride_;
  std::vector<float> in_values_;
  std::vector<std::byte> in_;
  std::vector<const std::byte*> pointers_;
};

#if defined(__x86_64__)

/// On a machine without tiles they are emulated.
class GemmOfIsa : public PerIsa {
 protected:
  void SetUp() override {
    if (GetParam() == Isa::amx && AmxEmulator::useful())
      emulator_.emplace();
    else
      PerIsa::SetUp();
  }

  const Kernels& fast() const { return emulator_ ? cpu::amx_table() : PerIsa::fast(); }

 private:
  std::optional<AmxEmulator> emulator_;
};

#else

class GemmOfIsa : public PerIsa {};

#endif

/// f32 [num_rows, n] of bf16 rows.
inline std::vector<std::byte> product_of(const Kernels& kernels,
                                         const PackedMatrix& weights,
                                         const std::vector<std::byte>& rows,
                                         std::int64_t num_rows) {
  std::vector<std::byte> out(static_cast<std::size_t>(num_rows * weights.n) * 4);
  std::vector<std::byte> scratch(kernels.gemm_scratch_bytes(weights.type, weights.k));
  GemmArgs args;
  args.in = {rows.data(), weights.k * 2, nullptr};
  args.rows = num_rows;
  args.weights = &weights;
  args.last_panel = weights.panels();
  args.out = {out.data(), weights.n * 4};
  args.scratch = scratch;
  kernels.gemm(args);
  return out;
}

}  // namespace ferry::testing
