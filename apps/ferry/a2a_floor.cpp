#include "apps/ferry/a2a_floor.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "ferry/core/types.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr std::int64_t kGrain = 8;  // tokens
constexpr std::int64_t kRaggedAlignment = 16;

std::size_t entries_of(const A2aCase& a2a) {
  return static_cast<std::size_t>(a2a.ranks) * static_cast<std::size_t>(a2a.tokens) *
         static_cast<std::size_t>(a2a.topk);
}

/// Writes `to_bytes` by reading `from_bytes` once, whichever are more.
void copy_row(std::byte* to, std::size_t to_bytes, const std::byte* from, std::size_t from_bytes) {
  for (std::size_t done = 0; done < to_bytes; done += from_bytes)
    std::memcpy(to + done, from, std::min(from_bytes, to_bytes - done));
}

}  // namespace

FloorPlan::FloorPlan(const A2aCase& a2a)
    : format_(a2a.exchange.format),
      ranks_(a2a.ranks),
      slots_(a2a.slots_per_rank()),
      topk_(a2a.topk),
      tokens_(a2a.tokens),
      slot_(entries_of(a2a)),
      row_(slot_.size()),
      first_(static_cast<std::size_t>(ranks_ * slots_)),
      used_(first_.size()) {}

void FloorPlan::build(std::span<const SlotId> slots) {
  std::copy(slots.begin(), slots.end(), slot_.begin());
  std::fill(used_.begin(), used_.end(), 0);
  for (const SlotId slot : slots) ++used_[static_cast<std::size_t>(slot)];
  std::int64_t next = 0;
  for (std::size_t p = 0; p < first_.size(); ++p) {
    const auto local = static_cast<std::int64_t>(p) % slots_;
    if (local == 0) next = 0;
    first_[p] = format_ == DispatchFormat::padded ? local * ranks_ * tokens_ : next;
    next = round_up(next + used_[p], format_ == DispatchFormat::ragged ? kRaggedAlignment : 1);
  }
  std::fill(used_.begin(), used_.end(), 0);
  for (std::size_t entry = 0; entry < slot_.size(); ++entry) {
    const auto p = static_cast<std::size_t>(slot_[entry]);
    row_[entry] = first_[p] + used_[p]++;
  }
}

std::int64_t FloorPlan::most_rows() const {
  if (format_ == DispatchFormat::padded) return slots_ * ranks_ * tokens_;
  return ranks_ * tokens_ * std::min(topk_, slots_) + slots_ * kRaggedAlignment;
}

FloorMemory::FloorMemory(const A2aCase& a2a)
    : ranks_(a2a.ranks),
      tokens_(a2a.tokens),
      rows_(FloorPlan(a2a).most_rows()),
      input_bytes_(wire_row_bytes(a2a.dispatch_wire, a2a.hidden)),
      result_bytes_(wire_row_bytes(a2a.combine_wire, a2a.hidden)),
      entries_(entries_of(a2a)),
      inputs_(static_cast<std::size_t>(ranks_ * tokens_) * input_bytes_),
      results_(static_cast<std::size_t>(ranks_ * rows_) * result_bytes_),
      sums_(static_cast<std::size_t>(ranks_ * ranks_ * tokens_) * result_bytes_),
      slots_(entries_) {}

A2aFloor::A2aFloor(const A2aCase& a2a, Rank rank, const FloorMemory& memory, ThreadPool& pool)
    : a2a_(a2a),
      rank_(rank),
      memory_(memory),
      pool_(pool),
      plan_(a2a),
      source_bytes_(wire_row_bytes(a2a.dispatch_wire, a2a.hidden)),
      delivered_bytes_(wire_row_bytes(a2a.expert_type, a2a.hidden)),
      result_bytes_(wire_row_bytes(a2a.combine_wire, a2a.hidden)),
      terms_(static_cast<std::size_t>(a2a.threads)),
      ones_(static_cast<std::size_t>(a2a.topk), 1.0F) {
  for (auto& terms : terms_) terms.reserve(ones_.size());
  const auto rows = static_cast<std::size_t>(plan_.most_rows());
  if (a2a.exchange.format == DispatchFormat::row_pointers)
    pointers_.resize(rows);
  else
    delivered_ = Buffer(rows * delivered_bytes_, Buffer::Use::sparse);
  for (Rank r = 0; r < a2a.ranks; ++r) {
    if (r != rank && !is_alone()) continue;
    std::mt19937 engine(static_cast<unsigned>(r) + 1);
    for (std::int64_t t = 0; t < a2a.tokens; ++t) {
      auto* elements = reinterpret_cast<std::uint16_t*>(memory.input(r, t));
      for (std::size_t i = 0; i < source_bytes_ / 2; ++i)
        elements[i] = static_cast<std::uint16_t>(0x3F00 + engine() % 0x100);
    }
  }
}

void A2aFloor::prepare() {
  plan_.build(memory_.slots());
  sources_.clear();
  places_.clear();
  std::size_t entry = 0;
  for (Rank home = 0; home < a2a_.ranks; ++home) {
    for (std::int64_t t = 0; t < a2a_.tokens; ++t) {
      const std::size_t first = places_.size();
      for (int k = 0; k < a2a_.topk; ++k, ++entry)
        if (plan_.rank_of(entry) == rank_) places_.push_back(plan_.row(entry));
      if (places_.size() > first)
        sources_.push_back({memory_.input(home, t), first, places_.size()});
    }
  }
}

void A2aFloor::dispatch() {
  pool_.parallel_for(
      static_cast<std::int64_t>(sources_.size()),
      kGrain,
      [&](std::int64_t begin, std::int64_t end, int) {
        for (auto s = static_cast<std::size_t>(begin); s < static_cast<std::size_t>(end); ++s) {
          const Source& source = sources_[s];
          for (std::size_t i = source.first; i < source.end; ++i) {
            const auto place = static_cast<std::size_t>(places_[i]);
            if (!pointers_.empty())
              pointers_[place] = source.row;
            else
              copy_row(delivered_.data() + place * delivered_bytes_,
                       delivered_bytes_,
                       source.row,
                       source_bytes_);
          }
        }
      });
}

void A2aFloor::consume() {
  pool_.parallel_for(
      static_cast<std::int64_t>(places_.size()),
      kGrain,
      [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t place = places_[static_cast<std::size_t>(i)];
          const auto p = static_cast<std::size_t>(place);
          const std::byte* row =
              pointers_.empty() ? delivered_.data() + p * delivered_bytes_ : pointers_[p];
          copy_row(memory_.result(rank_, place), result_bytes_, row, delivered_bytes_);
        }
      });
  if (is_alone()) stand_in_for_others();
}

/// What other ranks would have written for this one's tokens.
void A2aFloor::stand_in_for_others() {
  const auto topk = static_cast<std::size_t>(a2a_.topk);
  for (std::int64_t t = 0; t < a2a_.tokens; ++t) {
    const std::byte* row = memory_.input(rank_, t);
    for (std::size_t k = 0; k < topk; ++k) {
      const auto entry = static_cast<std::size_t>(std::int64_t{rank_} * a2a_.tokens + t) * topk + k;
      const Rank rank = plan_.rank_of(entry);
      std::byte* result =
          sums_per_rank() ? memory_.sum(rank, rank_, t) : memory_.result(rank, plan_.row(entry));
      if (rank != rank_) copy_row(result, result_bytes_, row, source_bytes_);
    }
  }
}

void A2aFloor::combine(std::span<const float> weights, std::byte* out) {
  if (sums_per_rank()) sum_here();
  pool_.parallel_for(a2a_.tokens, kGrain, [&](std::int64_t begin, std::int64_t end, int worker) {
    for (std::int64_t t = begin; t < end; ++t)
      sum_at_home(weights, out, t, terms_[static_cast<std::size_t>(worker)]);
  });
}

/// Reads the rows once and writes a row of so many bytes: a weighted sum. Quantised rows are taken
/// for bf16, so that no decoding counts as a cost that cannot be avoided.
void A2aFloor::sum_rows(std::span<const std::byte* const> rows,
                        const float* weights,
                        std::byte* out,
                        std::size_t out_bytes) const {
  const bool plain = !is_quantized(a2a_.combine_wire);
  const auto hidden = static_cast<std::size_t>(a2a_.hidden);
  const std::size_t elements = plain ? hidden : result_bytes_ / dtype_bytes(DType::bf16);
  const DType out_type = out_bytes == hidden * dtype_bytes(DType::f32) ? DType::f32 : DType::bf16;
  kernels().weighted_sum({.rows = rows.data(),
                          .weights = weights,
                          .k = static_cast<std::int64_t>(rows.size()),
                          .n = static_cast<std::int64_t>(elements),
                          .in_type = plain ? a2a_.combine_wire : WireType::bf16,
                          .out = out,
                          .out_type = out_type});
  const std::size_t written = elements * dtype_bytes(out_type);
  if (written < out_bytes) copy_row(out + written, out_bytes - written, out, written);
}

/// The sums of this rank's results, for all ranks' tokens.
void A2aFloor::sum_here() {
  const auto topk = static_cast<std::size_t>(a2a_.topk);
  const std::int64_t tokens = a2a_.tokens;
  pool_.parallel_for(
      a2a_.ranks * tokens, kGrain, [&](std::int64_t begin, std::int64_t end, int worker) {
        auto& rows = terms_[static_cast<std::size_t>(worker)];
        for (std::int64_t i = begin; i < end; ++i) {
          rows.clear();
          for (std::size_t k = 0; k < topk; ++k) {
            const std::size_t entry = static_cast<std::size_t>(i) * topk + k;
            if (plan_.rank_of(entry) == rank_)
              rows.push_back(memory_.result(rank_, plan_.row(entry)));
          }
          std::byte* sum = memory_.sum(rank_, static_cast<Rank>(i / tokens), i % tokens);
          if (!rows.empty()) sum_rows(rows, ones_.data(), sum, result_bytes_);
        }
      });
}

void A2aFloor::sum_at_home(std::span<const float> weights,
                           std::byte* out,
                           std::int64_t token,
                           std::vector<const std::byte*>& rows) const {
  const auto topk = static_cast<std::size_t>(a2a_.topk);
  const auto first = static_cast<std::size_t>(std::int64_t{rank_} * a2a_.tokens + token) * topk;
  rows.clear();
  for (std::size_t k = 0; k < topk; ++k) {
    const Rank rank = plan_.rank_of(first + k);
    bool again = false;
    for (std::size_t earlier = 0; earlier < k; ++earlier)
      again |= plan_.rank_of(first + earlier) == rank;
    if (!sums_per_rank())
      rows.push_back(memory_.result(rank, plan_.row(first + k)));
    else if (!again)
      rows.push_back(memory_.sum(rank, rank_, token));
  }
  const std::size_t out_bytes = static_cast<std::size_t>(a2a_.hidden) * dtype_bytes(DType::bf16);
  const auto t = static_cast<std::size_t>(token);
  sum_rows(rows, weights.data() + t * topk, out + t * out_bytes, out_bytes);
}

}  // namespace ferry
