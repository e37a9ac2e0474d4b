#include "ferry/moe/gpu_experts.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr int kTogether = 8;  // rows of W1, then as many of W3

std::size_t values(std::int64_t a, std::int64_t b, std::int64_t c) {
  return static_cast<std::size_t>(a) * static_cast<std::size_t>(b) * static_cast<std::size_t>(c);
}

std::size_t element_bytes(WeightType type) { return type == WeightType::fp8 ? 1 : 2; }

/// Rows of so many bytes, W1's and W3's of each slot, as the product takes its columns.
std::vector<std::byte> interleaved(const GpuExpertsOptions& o,
                                   std::span<const std::byte> from,
                                   std::size_t row_bytes) {
  std::vector<std::byte> out(from.size());
  const std::size_t some = kTogether * row_bytes;
  const std::size_t half = values(1, 1, o.inter) * row_bytes;
  for (std::size_t i = 0; i * 2 * some < out.size(); ++i) {
    const std::size_t slot = i * some / half;
    const auto gates = from.begin() + static_cast<std::ptrdiff_t>(i * some + slot * half);
    const auto ups = gates + static_cast<std::ptrdiff_t>(half);
    const auto to = out.begin() + static_cast<std::ptrdiff_t>(i * 2 * some);
    std::copy_n(gates, some, to);
    std::copy_n(ups, some, to + static_cast<std::ptrdiff_t>(some));
  }
  return out;
}

void check(const GpuExpertsOptions& o, WeightType type, const GpuQueue& queue) {
  if (o.slots < 1 || o.hidden < 1 || o.inter < 1 || o.max_rows < 0 ||
      o.hidden % (2 * kTogether) != 0 || o.inter % (2 * kTogether) != 0) {
    fail<ConfigError>(
        "{} experts on a GPU with hidden {} and inter {}, for {} rows: at least 1, multiples of {}",
        o.slots,
        o.hidden,
        o.inter,
        o.max_rows,
        2 * kTogether);
  }
  if (type != WeightType::bf16 && type != WeightType::fp8) {
    fail<ConfigError>("experts on a GPU hold weights as bf16 or fp8, not {}: convert them",
                      weight_type_name(type));
  }
  const std::size_t shared = gpu::GroupedProductArgs::shared_bytes(o.slots);
  if (shared > queue.shared_bytes()) {
    fail<ConfigError>("{} experts need {} bytes of a block's shared memory; {} has {}",
                      o.slots,
                      shared,
                      queue.name(),
                      queue.shared_bytes());
  }
}

void check_sizes(const GpuExpertsOptions& o, const GpuExpertWeights& w) {
  const std::size_t bytes = element_bytes(w.type);
  const bool fp8 = w.type == WeightType::fp8;
  const std::int64_t hidden_blocks = ceil_div(o.hidden, kFp8Block);
  const std::int64_t inter_blocks = ceil_div(o.inter, kFp8Block);
  const auto is = [](std::size_t size, std::size_t expected, std::string_view what) {
    FERRY_CHECK(size == expected, "{} of {}, which are to be {}", what, size, expected);
  };
  is(w.w13.size(), values(o.slots, 2 * o.inter, o.hidden) * bytes, "bytes of w13");
  is(w.w2.size(), values(o.slots, o.hidden, o.inter) * bytes, "bytes of w2");
  is(w.w13_scales.size(),
     fp8 ? values(o.slots, 2 * inter_blocks, hidden_blocks) : 0,
     "scales of w13");
  is(w.w2_scales.size(), fp8 ? values(o.slots, hidden_blocks, inter_blocks) : 0, "scales of w2");
  if (!w.b13.empty()) is(w.b13.size(), values(o.slots, 2, o.inter), "biases of w13");
  if (!w.b2.empty()) is(w.b2.size(), values(o.slots, 1, o.hidden), "biases of w2");
}

/// The kernel takes codes of NaN for numbers.
void refuse_nan(std::span<const std::byte> codes,
                std::string_view name,
                std::size_t rows,
                std::size_t columns) {
  const auto at = std::ranges::find_if(
      codes, [](std::byte code) { return (code & std::byte{0x7f}) == std::byte{0x7f}; });
  if (at == codes.end()) return;
  const std::size_t row = static_cast<std::size_t>(at - codes.begin()) / columns;
  fail<ConfigError>(
      "{} of expert {}, row {}, holds a NaN: experts on a GPU take fp8 weights that are numbers",
      name,
      row / rows,
      row % rows);
}

std::unique_ptr<GpuMemory> upload_some(GpuQueue& queue, std::span<const float> from) {
  return from.empty() ? nullptr : upload(queue, from);
}

const float* floats(const std::unique_ptr<GpuMemory>& memory) {
  return memory ? memory->as<const float>() : nullptr;
}

}  // namespace

GpuExperts::GpuExperts(const GpuExpertsOptions& options,
                       const GpuExpertWeights& weights,
                       GpuQueue& queue)
    : options_(options), fp8_(weights.type == WeightType::fp8), queue_(queue) {
  check(options, weights.type, queue);
  check_sizes(options, weights);
  if (fp8_) {
    refuse_nan(weights.w13, "w13", values(2, 1, options.inter), values(1, 1, options.hidden));
    refuse_nan(weights.w2, "w2", values(1, 1, options.hidden), values(1, 1, options.inter));
  }
  const std::size_t bytes = element_bytes(weights.type);
  w13_ = upload<std::byte>(queue,
                           interleaved(options, weights.w13, values(1, 1, options.hidden) * bytes));
  w2_ = upload(queue, weights.w2);
  w13_scales_ = upload_some(queue, weights.w13_scales);
  w2_scales_ = upload_some(queue, weights.w2_scales);
  if (!weights.b13.empty()) {
    b13_ =
        upload<std::byte>(queue, interleaved(options, std::as_bytes(weights.b13), sizeof(float)));
  }
  b2_ = upload_some(queue, weights.b2);
  inner_ = queue.allocate(values(options.max_rows, 1, options.inter) * sizeof(std::uint16_t));
}

void GpuExperts::launch(const gpu::GroupedProductArgs& product, bool fp8_rows) {
  const GpuGrid grid{.blocks = queue_.resident_blocks(product.kThreads),
                     .threads = product.kThreads,
                     .shared_bytes = product.shared_bytes(product.groups)};
  if (fp8_ && fp8_rows)
    queue_.launch(gpu::ProductFp8{product}, grid);
  else if (fp8_)
    queue_.launch(gpu::ProductFp8Bf16{product}, grid);
  else if (fp8_rows)
    queue_.launch(gpu::ProductBf16Fp8{product}, grid);
  else
    queue_.launch(gpu::ProductBf16{product}, grid);
}

void GpuExperts::run(const ExpertRows& rows) {
  const int slots = options_.slots;
  if (rows.in_type != WireType::bf16 && rows.in_type != WireType::fp8) {
    fail<ConfigError>("experts on a GPU take rows of bf16 or fp8, not {}: choose another type",
                      wire_type_name(rows.in_type));
  }
  FERRY_CHECK(rows.hidden == options_.hidden && static_cast<int>(rows.counts.size()) == slots,
              "rows of {} for {} experts, which are {} of {}",
              rows.hidden,
              rows.counts.size(),
              slots,
              options_.hidden);
  const auto inner_stride = static_cast<std::int64_t>(sizeof(std::uint16_t)) * options_.inter;
  launch({.in = rows.in.base,
          .in_stride = rows.in.stride,
          .in_pointers = rows.in.pointers,
          .row_weights = rows.weights.empty() ? nullptr : rows.weights.data(),
          .matrices = w13_->data(),
          .scales = floats(w13_scales_),
          .bias = floats(b13_),
          .out = inner_->data(),
          .out_stride = inner_stride,
          .out_type = DType::bf16,
          .counts = rows.counts.data(),
          .offsets = rows.offsets.data(),
          .groups = slots,
          .columns = 2 * options_.inter,
          .depth = options_.hidden,
          .gated = true,
          .gating = options_.gating},
         rows.in_type == WireType::fp8);
  launch({.in = inner_->data(),
          .in_stride = inner_stride,
          .matrices = w2_->data(),
          .scales = floats(w2_scales_),
          .bias = floats(b2_),
          .out = rows.out.base,
          .out_stride = rows.out.stride,
          .out_type = rows.out_type,
          .counts = rows.counts.data(),
          .offsets = rows.offsets.data(),
          .groups = slots,
          .columns = options_.hidden,
          .depth = options_.inter},
         false);
}

}  // namespace ferry
