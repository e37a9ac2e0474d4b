#include "ferry/moe/gpu_experts.h"

#include <algorithm>
#include <vector>

#include "ferry/core/error.h"

namespace ferry {

namespace {

using gpu::GroupedProduct;

constexpr int kTogether = 8;  // rows of W1, then as many of W3

std::size_t values(int a, int b, int c) {
  return static_cast<std::size_t>(a) * static_cast<std::size_t>(b) * static_cast<std::size_t>(c);
}

std::vector<std::uint16_t> interleaved(const GpuExpertsOptions& o,
                                       std::span<const std::uint16_t> w13) {
  std::vector<std::uint16_t> out(w13.size());
  const std::size_t some = values(kTogether, 1, o.hidden);
  const std::size_t half = values(1, o.inter, o.hidden);
  for (std::size_t i = 0; i * 2 * some < out.size(); ++i) {
    const std::size_t expert = i * some / half;
    const auto from = w13.begin() + static_cast<std::ptrdiff_t>(i * some + expert * half);
    const auto to = out.begin() + static_cast<std::ptrdiff_t>(i * 2 * some);
    std::copy_n(from, some, to);
    std::copy_n(
        from + static_cast<std::ptrdiff_t>(half), some, to + static_cast<std::ptrdiff_t>(some));
  }
  return out;
}

}  // namespace

GpuExperts::GpuExperts(const GpuExpertsOptions& options,
                       std::span<const std::uint16_t> w13,
                       std::span<const std::uint16_t> w2,
                       GpuQueue& queue)
    : options_(options), queue_(queue) {
  const auto& [slots, hidden, inter, max_rows] = options_;
  if (slots < 1 || hidden < 1 || inter < 1 || max_rows < 0 || hidden % (2 * kTogether) != 0 ||
      inter % (2 * kTogether) != 0) {
    fail<ConfigError>(
        "{} experts on a GPU with hidden {} and inter {}, for {} rows: at least 1, multiples of {}",
        slots,
        hidden,
        inter,
        max_rows,
        2 * kTogether);
  }
  FERRY_CHECK(
      w13.size() == values(slots, 2 * inter, hidden) && w2.size() == values(slots, hidden, inter),
      "{} and {} weights of {} experts, hidden {}, inter {}",
      w13.size(),
      w2.size(),
      slots,
      hidden,
      inter);
  const std::size_t shared = GroupedProduct::shared_bytes(slots);
  if (shared > queue.shared_bytes()) {
    fail<ConfigError>("{} experts need {} bytes of a block's shared memory; {} has {}",
                      slots,
                      shared,
                      queue.name(),
                      queue.shared_bytes());
  }
  w13_ = upload<std::uint16_t>(queue, interleaved(options_, w13));
  w2_ = upload(queue, w2);
  inner_ = queue.allocate(static_cast<std::size_t>(max_rows) * values(1, 1, inter) *
                          sizeof(std::uint16_t));
}

void GpuExperts::run(const ExpertRows& rows) {
  const auto& [slots, hidden, inter, max_rows] = options_;
  if (rows.in_type != WireType::bf16 || !rows.weights.empty()) {
    fail<ConfigError>(
        "experts on a GPU take bf16 rows that lie one behind the other, without weights of their "
        "own, not {}",
        wire_type_name(rows.in_type));
  }
  FERRY_CHECK(rows.hidden == hidden && static_cast<int>(rows.counts.size()) == slots,
              "rows of {} for {} experts, which are {} of {}",
              rows.hidden,
              rows.counts.size(),
              slots,
              hidden);
  const GpuGrid grid{.blocks = queue_.resident_blocks(GroupedProduct::kThreads),
                     .threads = GroupedProduct::kThreads,
                     .shared_bytes = GroupedProduct::shared_bytes(slots)};
  const auto inner_stride = static_cast<std::int64_t>(sizeof(std::uint16_t)) * inter;
  GroupedProduct product{.in = rows.in.base,
                         .in_stride = rows.in.stride,
                         .in_pointers = rows.in.pointers,
                         .matrices = w13_->as<const std::uint16_t>(),
                         .out = inner_->data(),
                         .out_stride = inner_stride,
                         .out_type = DType::bf16,
                         .counts = rows.counts.data(),
                         .offsets = rows.offsets.data(),
                         .groups = slots,
                         .columns = 2 * inter,
                         .depth = hidden,
                         .gated = true};
  queue_.launch(product, grid);
  product = {.in = inner_->data(),
             .in_stride = inner_stride,
             .matrices = w2_->as<const std::uint16_t>(),
             .out = rows.out.base,
             .out_stride = rows.out.stride,
             .out_type = rows.out_type,
             .counts = rows.counts.data(),
             .offsets = rows.offsets.data(),
             .groups = slots,
             .columns = hidden,
             .depth = inter};
  queue_.launch(product, grid);
}

}  // namespace ferry
