#include "ferry/moe/dispatch_plan.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "ferry/core/error.h"

namespace ferry {
namespace {

TEST(SendPlan, SortsRecordsBySlotThenToken) {
  SendPlan plan(/*ranks=*/2, /*slots_per_rank=*/2, /*topk=*/2, /*max_tokens=*/4);
  plan.build(std::vector<SlotId>{3, 0, 0, 1, 3, 2}, 3);
  EXPECT_EQ(plan.records(0), 3U);
  EXPECT_EQ(plan.records(1), 3U);
  const std::vector<std::uint32_t> first(plan.record_tokens(0).begin(),
                                         plan.record_tokens(0).end());
  EXPECT_EQ(first, (std::vector<std::uint32_t>{0, 1, 1}));  // slot 0: tokens 0, 1; slot 1: token 1
  const std::vector<std::uint32_t> second(plan.record_tokens(1).begin(),
                                          plan.record_tokens(1).end());
  EXPECT_EQ(second, (std::vector<std::uint32_t>{2, 0, 2}));  // slot 2: token 2; slot 3: 0, 2
}

TEST(SendPlan, GivesARepeatedSlotOneRecord) {
  SendPlan plan(1, 4, 3, 2);
  plan.build(std::vector<SlotId>{2, 2, 2, 1, 2, 1}, 2);
  EXPECT_EQ(plan.records(0), 3U);
  EXPECT_EQ(plan.place(0, 0).record, plan.place(0, 2).record);
  EXPECT_EQ(plan.place(1, 0).record, plan.place(1, 2).record);
  EXPECT_NE(plan.place(0, 0).record, plan.place(1, 1).record);
}

TEST(SendPlan, PlacesPointAtTheirOwnTokenInRandomRoutings) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const int ranks = 1 + static_cast<int>(random() % 5);
    const int per_rank = 1 + static_cast<int>(random() % 4);
    const int topk = 1 + static_cast<int>(random() % 6);
    const int tokens = static_cast<int>(random() % 12);
    SendPlan plan(ranks, per_rank, topk, 12);
    std::vector<SlotId> slots(static_cast<std::size_t>(tokens * topk));
    for (SlotId& s : slots) {
      s = static_cast<SlotId>(random() % static_cast<unsigned>(ranks * per_rank + 1)) - 1;
    }
    plan.build(slots, tokens);
    std::set<std::pair<int, SlotId>> distinct;
    std::set<std::pair<Rank, std::uint32_t>> used;
    for (int t = 0; t < tokens; ++t) {
      for (int k = 0; k < topk; ++k) {
        const SlotId slot = slots[static_cast<std::size_t>(t * topk + k)];
        const RecordPlace place = plan.place(t, k);
        if (slot < 0) {
          EXPECT_EQ(place.rank, -1);
          continue;
        }
        EXPECT_EQ(place.rank, slot / per_rank);
        EXPECT_EQ(place.slot, slot % per_rank);
        EXPECT_EQ(plan.record_tokens(place.rank)[place.record], static_cast<std::uint32_t>(t));
        EXPECT_LT(place.in_slot, plan.counts(place.rank)[static_cast<std::size_t>(place.slot)]);
        distinct.emplace(t, slot);
        used.emplace(place.rank, place.record);
      }
    }
    std::size_t records = 0;
    for (Rank r = 0; r < ranks; ++r) {
      records += plan.records(r);
      std::set<std::uint32_t> in_runs;
      for (const TokenRun& run : plan.runs(r))
        for (std::uint32_t i = 0; i < run.count; ++i) in_runs.insert(run.first + i);
      const auto tokens_of_rank = plan.record_tokens(r);
      EXPECT_EQ(in_runs, std::set<std::uint32_t>(tokens_of_rank.begin(), tokens_of_rank.end()));
    }
    EXPECT_EQ(records, distinct.size());
    EXPECT_EQ(records, used.size());
  }
}

TEST(SendPlan, RefusesSlotsOutsideTheGroup) {
  SendPlan plan(2, 2, 1, 4);
  EXPECT_THROW(plan.build(std::vector<SlotId>{4}, 1), BrokenContract);
  EXPECT_THROW(plan.build(std::vector<SlotId>{-2}, 1), BrokenContract);
}

TEST(ReceivePlan, RowsOfAllHomesPartitionEachSlot) {
  const std::vector<std::vector<std::uint32_t>> counts{{2, 0, 1}, {1, 3, 0}};
  const auto counts_of = [&](Rank home) {
    return std::span<const std::uint32_t>(counts[static_cast<std::size_t>(home)]);
  };
  ReceivePlan ragged(2, 3, DispatchFormat::ragged, 8, 4);
  ragged.build(counts_of);
  EXPECT_EQ(std::vector<std::int64_t>(ragged.offsets().begin(), ragged.offsets().end()),
            (std::vector<std::int64_t>{0, 4, 8}));
  EXPECT_EQ(std::vector<std::int32_t>(ragged.counts().begin(), ragged.counts().end()),
            (std::vector<std::int32_t>{3, 3, 1}));
  EXPECT_EQ(ragged.first_row(0, 0), 0);
  EXPECT_EQ(ragged.first_row(1, 0), 2);
  EXPECT_EQ(ragged.first_row(1, 1), 4);

  ReceivePlan padded(2, 3, DispatchFormat::padded, 8, 4);
  padded.build(counts_of);
  EXPECT_EQ(padded.offsets()[2], 16);
  EXPECT_EQ(padded.first_row(1, 0), 2);
}

}  // namespace
}  // namespace ferry
