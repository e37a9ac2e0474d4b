#include "ferry/moe/dispatch_plan.h"

#include <algorithm>

#include "ferry/core/error.h"

namespace ferry {

SendPlan::SendPlan(int ranks, int slots_per_rank, int topk, int max_tokens)
    : ranks_(ranks), slots_per_rank_(slots_per_rank), topk_(topk), max_tokens_(max_tokens) {
  const auto num_slots = static_cast<std::size_t>(ranks * slots_per_rank);
  const auto entries = static_cast<std::size_t>(max_tokens) * static_cast<std::size_t>(topk);
  slots_.resize(entries);
  counts_.resize(num_slots);
  first_record_.resize(num_slots + 1);
  position_.resize(entries);
  record_token_.resize(entries);
  runs_.resize(static_cast<std::size_t>(ranks) * static_cast<std::size_t>(max_tokens));
  num_runs_.resize(static_cast<std::size_t>(ranks));
}

void SendPlan::build(std::span<const SlotId> slots, int tokens) {
  FERRY_CHECK(tokens >= 0 && tokens <= max_tokens_, "{} tokens, room for {}", tokens, max_tokens_);
  const auto topk = static_cast<std::size_t>(topk_);
  const std::size_t entries = static_cast<std::size_t>(tokens) * topk;
  FERRY_CHECK(slots.size() == entries, "{} slot ids for {} tokens", slots.size(), tokens);
  tokens_ = tokens;
  std::copy(slots.begin(), slots.end(), slots_.begin());
  std::fill(counts_.begin(), counts_.end(), 0U);
  std::fill(num_runs_.begin(), num_runs_.end(), 0U);

  const auto num_slots = static_cast<SlotId>(counts_.size());
  const auto repeated = [&](std::size_t token, std::size_t k) {
    const SlotId* of_token = slots_.data() + token * topk;
    return std::find(of_token, of_token + k, of_token[k]) != of_token + k;
  };
  for (std::size_t t = 0; t < static_cast<std::size_t>(tokens); ++t) {
    for (std::size_t k = 0; k < topk; ++k) {
      const SlotId slot = slots_[t * topk + k];
      FERRY_CHECK(slot >= -1 && slot < num_slots, "slot {} of {} slots", slot, num_slots);
      if (slot < 0 || repeated(t, k)) continue;
      ++counts_[static_cast<std::size_t>(slot)];
      const auto rank = static_cast<std::size_t>(slot / slots_per_rank_);
      TokenRun* runs = runs_.data() + rank * static_cast<std::size_t>(max_tokens_);
      std::uint32_t& num_runs = num_runs_[rank];
      const std::uint32_t end = num_runs ? runs[num_runs - 1].first + runs[num_runs - 1].count : 0;
      if (num_runs && end == t) {
        ++runs[num_runs - 1].count;
      } else if (!num_runs || end < t) {
        runs[num_runs++] = {static_cast<std::uint32_t>(t), 1};
      }  // else the token is the run's last already
    }
  }

  first_record_[0] = 0;
  for (std::size_t p = 0; p < counts_.size(); ++p)
    first_record_[p + 1] = first_record_[p] + counts_[p];
  // Second pass of the counting sort; counts_ serves as the cursor and ends as it began.
  std::fill(counts_.begin(), counts_.end(), 0U);
  for (std::size_t t = 0; t < static_cast<std::size_t>(tokens); ++t) {
    for (std::size_t k = 0; k < topk; ++k) {
      const SlotId slot = slots_[t * topk + k];
      if (slot < 0) continue;
      const auto p = static_cast<std::size_t>(slot);
      // A repeated slot shares the record just made for this token.
      if (!repeated(t, k))
        record_token_[first_record_[p] + counts_[p]++] = static_cast<std::uint32_t>(t);
      position_[t * topk + k] = first_record_[p] + counts_[p] - 1;
    }
  }
}

std::uint32_t SendPlan::first_of(Rank rank) const {
  return first_record_[static_cast<std::size_t>(rank) * static_cast<std::size_t>(slots_per_rank_)];
}

std::span<const std::uint32_t> SendPlan::counts(Rank rank) const {
  const auto per_rank = static_cast<std::size_t>(slots_per_rank_);
  return std::span(counts_).subspan(static_cast<std::size_t>(rank) * per_rank, per_rank);
}

std::span<const std::uint32_t> SendPlan::record_tokens(Rank rank) const {
  return std::span(record_token_).subspan(first_of(rank), records(rank));
}

std::span<const TokenRun> SendPlan::runs(Rank rank) const {
  const auto r = static_cast<std::size_t>(rank);
  return std::span(runs_).subspan(r * static_cast<std::size_t>(max_tokens_), num_runs_[r]);
}

RecordPlace SendPlan::place(int token, int k) const {
  const std::size_t entry = static_cast<std::size_t>(token) * static_cast<std::size_t>(topk_) +
                            static_cast<std::size_t>(k);
  const SlotId slot = slots_[entry];
  if (slot < 0) return {};
  const Rank rank = slot / slots_per_rank_;
  return {.rank = rank,
          .slot = slot % slots_per_rank_,
          .in_slot = position_[entry] - first_record_[static_cast<std::size_t>(slot)],
          .record = position_[entry] - first_of(rank)};
}

ReceivePlan::ReceivePlan(int ranks,
                         int slots_per_rank,
                         DispatchFormat format,
                         std::int64_t slot_capacity,
                         std::int64_t alignment)
    : ranks_(ranks),
      slots_per_rank_(slots_per_rank),
      format_(format),
      slot_capacity_(slot_capacity),
      alignment_(alignment) {
  counts_.resize(static_cast<std::size_t>(slots_per_rank));
  offsets_.resize(static_cast<std::size_t>(slots_per_rank));
  first_rows_.resize(static_cast<std::size_t>(ranks) * static_cast<std::size_t>(slots_per_rank));
}

void ReceivePlan::set_counts(Rank home, std::span<const std::uint32_t> counts) {
  std::copy(counts.begin(),
            counts.end(),
            first_rows_.begin() + static_cast<std::ptrdiff_t>(home) * slots_per_rank_);
}

void ReceivePlan::finish() {
  const auto per_rank = static_cast<std::size_t>(slots_per_rank_);
  std::int64_t next_row = 0;
  for (std::size_t slot = 0; slot < per_rank; ++slot) {
    std::int64_t row = format_ == DispatchFormat::padded
                           ? static_cast<std::int64_t>(slot) * slot_capacity_
                           : round_up(next_row, alignment_);
    offsets_[slot] = row;
    for (std::size_t home = 0; home < static_cast<std::size_t>(ranks_); ++home) {
      const std::int64_t count = first_rows_[home * per_rank + slot];
      first_rows_[home * per_rank + slot] = row;
      row += count;
    }
    counts_[slot] = static_cast<std::int32_t>(row - offsets_[slot]);
    next_row = row;
  }
  rows_ = format_ == DispatchFormat::padded ? slot_capacity_ * slots_per_rank_ : next_row;
}

}  // namespace ferry
