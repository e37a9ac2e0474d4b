#include "ferry/moe/device_experts.h"

#include <algorithm>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr std::int64_t kRowGrain = 8;  // rows a thread takes at a time

std::size_t count_of(std::int64_t a, std::int64_t b) {
  return static_cast<std::size_t>(a) * static_cast<std::size_t>(b);
}

/// A layer's weights as GpuExperts takes them, out of panels.
class Unpacked {
 public:
  /// REQUIRES: slots of bf16 or fp8, all alike.
  Unpacked(const GpuExpertsOptions& o, std::span<const GatedFfnWeights> slots)
      : type_(slots.front().gate_up.type),
        inter_(o.inter),
        up_bytes_(count_of(o.inter, code_or_element_bytes(o.hidden))),
        down_bytes_(count_of(o.hidden, code_or_element_bytes(o.inter))),
        up_scales_(scales_of(o.inter, o.hidden)),
        down_scales_(scales_of(o.hidden, o.inter)),
        w13_(slots.size() * 2 * up_bytes_),
        w2_(slots.size() * down_bytes_),
        w13_scales_(slots.size() * 2 * up_scales_),
        w2_scales_(slots.size() * down_scales_) {
    if (!slots.front().biased) return;
    b13_.resize(slots.size() * count_of(2, o.inter));
    b2_.resize(slots.size() * count_of(1, o.hidden));
  }

  /// Threads: any, for different slots.
  void take(std::size_t i, const GatedFfnWeights& slot) {
    if (slot.gate_up.data == nullptr) return;
    PackedMatrix half = slot.gate_up;
    half.n = inter_;
    for (std::size_t part = 2 * i; part < 2 * i + 2; ++part, half.data += half.panel_bytes())
      take(half, 2, w13_.data() + part * up_bytes_, w13_scales_.data() + part * up_scales_);
    take(slot.down, 1, w2_.data() + i * down_bytes_, w2_scales_.data() + i * down_scales_);
    if (slot.gate_up_bias != nullptr) take_biases(i, slot);
  }

  GpuExpertWeights view() const {
    return {.type = type_,
            .w13 = w13_,
            .w2 = w2_,
            .w13_scales = w13_scales_,
            .w2_scales = w2_scales_,
            .b13 = b13_,
            .b2 = b2_};
  }

 private:
  std::int64_t code_or_element_bytes(std::int64_t k) const {
    return type_ == WeightType::fp8 ? k : 2 * k;
  }

  std::size_t scales_of(std::int64_t n, std::int64_t k) const {
    return type_ == WeightType::fp8 ? count_of(ceil_div(n, kFp8Block), weight_groups(type_, k)) : 0;
  }

  void take(const PackedMatrix& matrix, std::int64_t step, std::byte* rows, float* scales) const {
    unpack_rows(matrix, step, rows);
    if (type_ == WeightType::fp8 && !unpack_block_scales(matrix, step, scales))
      fail<ConfigError>("fp8 experts on a device have scales for 128 x 128, and no codes of NaN");
  }

  /// Of panels, gate's 16 before up's.
  void take_biases(std::size_t i, const GatedFfnWeights& slot) {
    const auto inter = static_cast<std::size_t>(inter_);
    const std::size_t hidden = b2_.size() / (b13_.size() / (2 * inter));
    for (std::size_t c = 0; c < inter; ++c) {
      const float* from =
          slot.gate_up_bias + c / kPanelColumns * 2 * kPanelColumns + c % kPanelColumns;
      b13_[2 * i * inter + c] = from[0];
      b13_[(2 * i + 1) * inter + c] = from[kPanelColumns];
    }
    std::copy_n(slot.down_bias, hidden, b2_.begin() + static_cast<std::ptrdiff_t>(i * hidden));
  }

  WeightType type_;
  int inter_;
  std::size_t up_bytes_, down_bytes_;    // of a slot's W1 and W2
  std::size_t up_scales_, down_scales_;  // likewise; fp8
  std::vector<std::byte> w13_, w2_;
  std::vector<float> w13_scales_, w2_scales_;
  std::vector<float> b13_, b2_;
};

}  // namespace

DeviceExperts::DeviceExperts(const GpuExpertsOptions& options, GpuQueue& queue, ThreadPool& pool)
    : options_(options), queue_(queue), pool_(pool) {
  const auto slots = static_cast<std::size_t>(options.slots);
  const std::size_t elements = count_of(options.max_rows, options.hidden);
  in_ = queue.allocate(elements * sizeof(std::uint16_t));
  out_ = queue.allocate(elements * sizeof(float));
  counts_ = queue.allocate(slots * sizeof(std::int32_t));
  offsets_ = queue.allocate(slots * sizeof(std::int64_t));
  weights_ = queue.allocate(static_cast<std::size_t>(options.max_rows) * sizeof(float));
  host_weights_.resize(static_cast<std::size_t>(options.max_rows));
  host_in_ = Buffer(in_->size());
  host_out_ = Buffer(out_->size());
  segments_.resize(slots);
  host_counts_.resize(slots);
  host_offsets_.resize(slots);
}

void DeviceExperts::load(int layer, std::span<const GatedFfnWeights> slots) {
  FERRY_CHECK(slots.size() == segments_.size(), "{} experts of {}", slots.size(), segments_.size());
  for (const GatedFfnWeights& slot : slots) {
    const WeightType type = slot.gate_up.type;
    if ((type != WeightType::bf16 && type != WeightType::fp8) || slot.down.type != type)
      fail<ConfigError>("experts on a device are bf16 or fp8; these are {} and {}",
                        weight_type_name(type),
                        weight_type_name(slot.down.type));
  }
  Unpacked weights(options_, slots);
  pool_.parallel_for(std::ssize(slots), 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i)
      weights.take(static_cast<std::size_t>(i), slots[static_cast<std::size_t>(i)]);
  });
  const auto at = static_cast<std::size_t>(layer);
  if (layers_.size() <= at) layers_.resize(at + 1);
  layers_[at] = std::make_unique<GpuExperts>(options_, weights.view(), queue_);
}

void DeviceExperts::run(int layer, const ExpertRows& rows) {
  FERRY_CHECK(rows.counts.size() == segments_.size() && rows.hidden == options_.hidden &&
                  rows.in_type == WireType::bf16,
              "{} rows of {} for {} slots came to experts on a device of {} slots, hidden {}",
              wire_type_name(rows.in_type),
              rows.hidden,
              rows.counts.size(),
              segments_.size(),
              options_.hidden);
  GpuExperts& experts = *layers_[static_cast<std::size_t>(layer)];
  std::int64_t used = 0;
  for (std::size_t slot = 0; slot < segments_.size(); ++slot)
    segments_[slot] = {.first = rows.offsets[slot]};
  for (std::size_t slot = 0; slot < segments_.size(); ++slot) {
    for (std::int64_t left = rows.counts[slot]; left > 0;) {
      Segment& segment = segments_[slot];
      segment.count = std::min(left, options_.max_rows - used);
      segment.place = used;
      used += segment.count;
      left -= segment.count;
      if (used < options_.max_rows) continue;
      run_turn(experts, rows);
      used = 0;
    }
  }
  if (used > 0) run_turn(experts, rows);
}

/// The segments' rows, behind which the next turn's begin.
void DeviceExperts::run_turn(GpuExperts& experts, const ExpertRows& rows) {
  const std::size_t slots = segments_.size();
  const auto in_bytes = static_cast<std::ptrdiff_t>(count_of(options_.hidden, 2));
  const std::size_t out_bytes = count_of(options_.hidden, dtype_bytes(rows.out_type));
  std::int64_t all = 0;
  for (std::size_t slot = 0; slot < slots; ++slot) {
    host_counts_[slot] = static_cast<std::int32_t>(segments_[slot].count);
    host_offsets_[slot] = segments_[slot].place;
    all += segments_[slot].count;
  }
  // row(i of ExpertRows, place on the device) for each row of the turn.
  const auto for_rows = [&](auto row) {
    for (const Segment& segment : segments_) {
      pool_.parallel_for(segment.count, kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t i = begin; i < end; ++i)
          row(segment.first + i, static_cast<std::size_t>(segment.place + i));
      });
    }
  };
  for_rows([&](std::int64_t i, std::size_t place) {
    const auto bytes = static_cast<std::size_t>(in_bytes);
    std::memcpy(host_in_.data() + place * bytes, rows.in.row(i), bytes);
    if (!rows.weights.empty()) host_weights_[place] = rows.weights[static_cast<std::size_t>(i)];
  });
  const std::size_t weights = rows.weights.empty() ? 0 : static_cast<std::size_t>(all);
  queue_.copy(weights_->data(), host_weights_.data(), weights * sizeof(float));
  queue_.copy(in_->data(), host_in_.data(), count_of(all, in_bytes));
  queue_.copy(counts_->data(), host_counts_.data(), slots * sizeof(std::int32_t));
  queue_.copy(offsets_->data(), host_offsets_.data(), slots * sizeof(std::int64_t));
  experts.run({.format = DispatchFormat::ragged,
               .place = queue_.place(),
               .counts = {counts_->as<const std::int32_t>(), slots},
               .offsets = {offsets_->as<const std::int64_t>(), slots},
               .in = {.base = in_->data(), .stride = in_bytes},
               .in_type = WireType::bf16,
               .weights = {weights_->as<const float>(), weights},
               .out = {out_->data(), static_cast<std::ptrdiff_t>(out_bytes)},
               .out_type = rows.out_type,
               .hidden = options_.hidden});
  queue_.copy(host_out_.data(), out_->data(), count_of(all, static_cast<std::int64_t>(out_bytes)));
  queue_.synchronise();
  for_rows([&](std::int64_t i, std::size_t place) {
    std::memcpy(rows.out.row(i), host_out_.data() + place * out_bytes, out_bytes);
  });
  for (Segment& segment : segments_) segment = {.first = segment.first + segment.count};
}

}  // namespace ferry
