#include "ferry/exchange/dispatch_plan.h"

#include <algorithm>

#include "ferry/core/error.h"

namespace ferry {

SendPlan::SendPlan(
    int ranks, int slots_per_rank, int topk, int max_tokens, std::span<const Rank> takers)
    : ranks_(ranks), slots_per_rank_(slots_per_rank), topk_(topk), max_tokens_(max_tokens) {
  const std::size_t num_ranks = static_cast<std::size_t>(ranks);
  const std::size_t num_slots = num_ranks * static_cast<std::size_t>(slots_per_rank);
  const std::size_t tokens = static_cast<std::size_t>(max_tokens);
  const std::size_t entries = tokens * static_cast<std::size_t>(topk);
  takers_.resize(num_ranks);
  set_takers(takers);
  slots_.resize(entries);
  in_slot_.resize(entries);
  counts_.resize(num_slots);
  first_result_.resize(num_slots + 1);
  records_.resize(entries);
  next_record_.resize(num_ranks);
  runs_.resize(num_ranks * tokens);
  num_runs_.resize(num_ranks);
}

void SendPlan::set_takers(std::span<const Rank> takers) {
  for (std::size_t r = 0; r < takers_.size(); ++r)
    takers_[r] = takers.empty() ? r : static_cast<std::size_t>(takers[r]);
}

void SendPlan::build(std::span<const SlotId> slots, int tokens, Share share) {
  FERRY_CHECK(tokens >= 0 && tokens <= max_tokens_, "{} tokens, room for {}", tokens, max_tokens_);
  const std::size_t topk = static_cast<std::size_t>(topk_);
  const std::size_t entries = static_cast<std::size_t>(tokens) * topk;
  FERRY_CHECK(slots.size() == entries, "{} slot ids for {} tokens", slots.size(), tokens);
  tokens_ = tokens;
  for (std::size_t t = 0; t < static_cast<std::size_t>(tokens); ++t) {
    const bool mine = share.tp == 1 || static_cast<int>(t) % share.tp == share.member;
    const auto at = static_cast<std::ptrdiff_t>(t * topk);
    if (mine) {
      std::copy_n(slots.begin() + at, topk, slots_.begin() + at);
    } else {
      std::fill_n(slots_.begin() + at, topk, SlotId{-1});
    }
  }
  std::fill(counts_.begin(), counts_.end(), 0U);
  std::fill(num_runs_.begin(), num_runs_.end(), 0U);

  // First pass: count. A token that repeats a slot shares the record it has there.
  constexpr std::uint32_t kRepeats = 1U << 31;
  const auto num_slots = static_cast<SlotId>(counts_.size());
  for (std::size_t i = 0; i < entries; ++i) {
    const SlotId slot = slots_[i];
    FERRY_CHECK(slot >= -1 && slot < num_slots, "slot {} of {} slots", slot, num_slots);
    if (slot < 0) continue;
    const SlotId* of_token = slots_.data() + i / topk * topk;
    std::uint32_t& count = counts_[static_cast<std::size_t>(slot)];
    const SlotId* here = slots_.data() + i;
    if (std::find(of_token, here, slot) != here) {
      in_slot_[i] = (count - 1) | kRepeats;
      continue;
    }
    in_slot_[i] = count++;
    add_to_runs(takers_[static_cast<std::size_t>(slot / slots_per_rank_)],
                static_cast<std::uint32_t>(i / topk));
  }
  first_result_[0] = 0;
  for (std::size_t p = 0; p < counts_.size(); ++p)
    first_result_[p + 1] = first_result_[p] + counts_[p];

  // Second pass: the records of each rank, in order of (token, k).
  for (Rank r = 0; r < ranks_; ++r) next_record_[static_cast<std::size_t>(r)] = first_of(r);
  for (std::size_t i = 0; i < entries; ++i) {
    if (slots_[i] < 0) continue;
    if (in_slot_[i] & kRepeats) {
      in_slot_[i] &= ~kRepeats;
      continue;
    }
    const auto rank = static_cast<std::size_t>(slots_[i] / slots_per_rank_);
    records_[next_record_[rank]++] = {static_cast<std::uint32_t>(i / topk),
                                      static_cast<std::uint32_t>(slots_[i] % slots_per_rank_)};
  }
}

/// Tokens come in rising order, a token possibly several times for the same taker.
void SendPlan::add_to_runs(std::size_t taker, std::uint32_t token) {
  TokenRun* runs = runs_.data() + taker * static_cast<std::size_t>(max_tokens_);
  std::uint32_t& count = num_runs_[taker];
  const std::uint32_t end = count ? runs[count - 1].first + runs[count - 1].count : 0;
  if (count && end == token + 1) return;
  if (count && end == token) {
    ++runs[count - 1].count;
  } else {
    runs[count++] = {token, 1};
  }
}

std::uint32_t SendPlan::first_of(Rank rank) const {
  return first_result_[static_cast<std::size_t>(rank) * static_cast<std::size_t>(slots_per_rank_)];
}

std::span<const Record> SendPlan::records(Rank rank) const {
  return std::span(records_).subspan(first_of(rank), first_of(rank + 1) - first_of(rank));
}

std::span<const std::uint32_t> SendPlan::counts(Rank rank) const {
  const auto per_rank = static_cast<std::size_t>(slots_per_rank_);
  return std::span(counts_).subspan(static_cast<std::size_t>(rank) * per_rank, per_rank);
}

std::span<const TokenRun> SendPlan::runs(Rank taker) const {
  const auto r = static_cast<std::size_t>(taker);
  return std::span(runs_).subspan(r * static_cast<std::size_t>(max_tokens_), num_runs_[r]);
}

RecordPlace SendPlan::place(int token, int k) const {
  const std::size_t entry = static_cast<std::size_t>(token) * static_cast<std::size_t>(topk_) +
                            static_cast<std::size_t>(k);
  const SlotId slot = slots_[entry];
  if (slot < 0) return {};
  const Rank rank = slot / slots_per_rank_;
  return {
      .rank = rank,
      .slot = slot % slots_per_rank_,
      .in_slot = in_slot_[entry],
      .result = first_result_[static_cast<std::size_t>(slot)] - first_of(rank) + in_slot_[entry]};
}

ReceivePlan::ReceivePlan(const Options& options)
    : options_(options),
      counts_(slots()),
      offsets_(slots()),
      first_rows_((static_cast<std::size_t>(options.ranks) + 1) * slots()),
      next_row_(slots()),
      end_row_(slots()),
      places_(static_cast<std::size_t>(options.ranks) * options.max_records) {}

void ReceivePlan::set_counts(Rank home, std::span<const std::uint32_t> counts) {
  std::copy(counts.begin(),
            counts.end(),
            first_rows_.begin() + static_cast<std::ptrdiff_t>(order_of(home) * slots()));
}

void ReceivePlan::finish() {
  const auto ranks = static_cast<std::size_t>(options_.ranks);
  std::int64_t row = 0;
  for (std::size_t slot = 0; slot < slots(); ++slot) {
    row = options_.format == DispatchFormat::padded
              ? static_cast<std::int64_t>(slot) * options_.slot_capacity
              : round_up(row, options_.alignment);
    offsets_[slot] = row;
    for (std::size_t order = 0; order < ranks; ++order) {
      const std::int64_t count = first_rows_[order * slots() + slot];
      first_rows_[order * slots() + slot] = row;
      row += count;
    }
    counts_[slot] = static_cast<std::int32_t>(row - offsets_[slot]);
    first_rows_[ranks * slots() + slot] = row;  // where the last home rank's rows end
  }
}

bool ReceivePlan::place(Rank home, std::span<const Record> records) {
  const std::size_t order = order_of(home);
  std::copy_n(in_order(order).begin(), slots(), next_row_.begin());
  std::copy_n(in_order(order + 1).begin(), slots(), end_row_.begin());
  return place_from(records, home);
}

bool ReceivePlan::place_first_home(std::span<const Record> records,
                                   std::span<const std::uint32_t> counts) {
  for (std::size_t slot = 0; slot < slots(); ++slot) {
    next_row_[slot] = static_cast<std::int64_t>(slot) * options_.slot_capacity;
    end_row_[slot] = next_row_[slot] + counts[slot];
  }
  return place_from(records, options_.first_home);
}

bool ReceivePlan::place_from(std::span<const Record> records, Rank home) {
  std::int64_t* places = places_.data() + static_cast<std::size_t>(home) * options_.max_records;
  for (std::size_t i = 0; i < records.size(); ++i) {
    const std::uint32_t slot = records[i].slot;
    if (slot >= slots() || next_row_[slot] == end_row_[slot]) return false;
    places[i] = next_row_[slot]++;
  }
  return true;
}

}  // namespace ferry
