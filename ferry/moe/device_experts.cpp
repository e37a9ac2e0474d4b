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

void check_slot(const GatedFfnWeights& slot) {
  if (slot.gate_up.type == WeightType::bf16 && slot.down.type == WeightType::bf16 && !slot.biased)
    return;
  fail<ConfigError>("experts on a device are bf16 without biases; these are {}{}",
                    weight_type_name(slot.gate_up.type),
                    slot.biased ? " with biases" : "");
}

}  // namespace

DeviceExperts::DeviceExperts(const GpuExpertsOptions& options, GpuQueue& queue, ThreadPool& pool)
    : options_(options), queue_(queue), pool_(pool) {
  const auto slots = static_cast<std::size_t>(options.slots);
  const std::size_t elements = count_of(options.max_rows, options.hidden);
  in_ = queue.allocate(elements * sizeof(std::uint16_t));
  out_ = queue.allocate(elements * sizeof(float));
  counts_ = queue.allocate(slots * sizeof(std::int32_t));
  offsets_ = queue.allocate(slots * sizeof(std::int64_t));
  host_in_ = Buffer(in_->size());
  host_out_ = Buffer(out_->size());
  segments_.resize(slots);
}

void DeviceExperts::load(int layer, std::span<const GatedFfnWeights> slots) {
  const std::size_t half = count_of(options_.inter, options_.hidden);
  std::vector<std::uint16_t> w13(slots.size() * 2 * half);
  std::vector<std::uint16_t> w2(slots.size() * half);
  for (const GatedFfnWeights& slot : slots) check_slot(slot);
  pool_.parallel_for(std::ssize(slots), 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      const GatedFfnWeights& slot = slots[static_cast<std::size_t>(i)];
      if (slot.gate_up.data == nullptr) continue;
      std::uint16_t* gate = w13.data() + static_cast<std::size_t>(i) * 2 * half;
      PackedMatrix each = slot.gate_up;
      each.n = options_.inter;
      unpack_bf16(each, 2, gate);
      each.data += each.panel_bytes();
      unpack_bf16(each, 2, gate + half);
      unpack_bf16(slot.down, 1, w2.data() + static_cast<std::size_t>(i) * half);
    }
  });
  const auto at = static_cast<std::size_t>(layer);
  if (layers_.size() <= at) layers_.resize(at + 1);
  layers_[at] = std::make_unique<GpuExperts>(
      options_,
      GpuExpertWeights{.w13 = std::as_bytes(std::span(w13)), .w2 = std::as_bytes(std::span(w2))},
      queue_);
}

void DeviceExperts::run(int layer, const ExpertRows& rows) {
  FERRY_CHECK(rows.counts.size() == segments_.size() && rows.hidden == options_.hidden &&
                  rows.in_type == WireType::bf16 && rows.weights.empty(),
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
  std::vector<std::int32_t> counts(slots);
  std::vector<std::int64_t> offsets(slots);
  std::int64_t all = 0;
  for (std::size_t slot = 0; slot < slots; ++slot) {
    counts[slot] = static_cast<std::int32_t>(segments_[slot].count);
    offsets[slot] = segments_[slot].place;
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
  });
  queue_.copy(in_->data(), host_in_.data(), count_of(all, in_bytes));
  queue_.copy(counts_->data(), counts.data(), slots * sizeof(std::int32_t));
  queue_.copy(offsets_->data(), offsets.data(), slots * sizeof(std::int64_t));
  experts.run({.format = DispatchFormat::ragged,
               .place = queue_.place(),
               .counts = {counts_->as<const std::int32_t>(), slots},
               .offsets = {offsets_->as<const std::int64_t>(), slots},
               .in = {.base = in_->data(), .stride = in_bytes},
               .in_type = WireType::bf16,
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
