#include "ferry/exchange/dispatch_plan.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "ferry/core/error.h"

namespace ferry {
namespace {

std::vector<std::pair<std::uint32_t, std::uint32_t>> pairs(std::span<const Record> records) {
  std::vector<std::pair<std::uint32_t, std::uint32_t>> all;
  for (const Record& r : records) all.emplace_back(r.token, r.slot);
  return all;
}

TEST(SendPlan, KeepsRecordsInOrderOfTokenAndResultsInOrderOfSlot) {
  SendPlan plan(/*ranks=*/2, /*slots_per_rank=*/2, /*topk=*/2, /*max_tokens=*/4);
  plan.build(std::vector<SlotId>{3, 0, 0, 1, 3, 2}, 3);
  using Pairs = std::vector<std::pair<std::uint32_t, std::uint32_t>>;
  EXPECT_EQ(pairs(plan.records(0)), (Pairs{{0, 0}, {1, 0}, {1, 1}}));
  EXPECT_EQ(pairs(plan.records(1)), (Pairs{{0, 1}, {2, 1}, {2, 0}}));
  EXPECT_EQ(plan.place(2, 1).result, 0U);  // slot 2 of the group, the first of rank 1
  EXPECT_EQ(plan.place(0, 0).result, 1U);
  EXPECT_EQ(plan.place(2, 0).result, 2U);
}

TEST(SendPlan, GivesARepeatedSlotOneRecord) {
  SendPlan plan(1, 4, 3, 2);
  plan.build(std::vector<SlotId>{2, 2, 2, 1, 2, 1}, 2);
  EXPECT_EQ(plan.records(0).size(), 3U);
  EXPECT_EQ(plan.place(0, 0).result, plan.place(0, 2).result);
  EXPECT_EQ(plan.place(1, 0).result, plan.place(1, 2).result);
  EXPECT_NE(plan.place(0, 0).result, plan.place(1, 1).result);
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
        EXPECT_LT(place.in_slot, plan.counts(place.rank)[static_cast<std::size_t>(place.slot)]);
        distinct.emplace(t, slot);
        used.emplace(place.rank, place.result);
      }
    }
    std::size_t records = 0;
    for (Rank r = 0; r < ranks; ++r) {
      records += plan.records(r).size();
      std::set<std::uint32_t> in_runs;
      std::set<std::uint32_t> in_records;
      for (const TokenRun& run : plan.runs(r))
        for (std::uint32_t i = 0; i < run.count; ++i) in_runs.insert(run.first + i);
      for (const Record& record : plan.records(r)) {
        in_records.insert(record.token);
        const auto slot = static_cast<SlotId>(r * per_rank + static_cast<int>(record.slot));
        EXPECT_TRUE(distinct.contains({static_cast<int>(record.token), slot}));
      }
      EXPECT_EQ(in_runs, in_records);
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
  ReceivePlan::Options options{.ranks = 2,
                               .slots_per_rank = 3,
                               .format = DispatchFormat::ragged,
                               .slot_capacity = 8,
                               .alignment = 4,
                               .max_records = 8};
  ReceivePlan ragged(options);
  ragged.build(counts_of);
  EXPECT_EQ(std::vector<std::int64_t>(ragged.offsets().begin(), ragged.offsets().end()),
            (std::vector<std::int64_t>{0, 4, 8}));
  EXPECT_EQ(std::vector<std::int32_t>(ragged.counts().begin(), ragged.counts().end()),
            (std::vector<std::int32_t>{3, 3, 1}));
  EXPECT_EQ(ragged.first_rows(0)[0], 0);
  EXPECT_EQ(ragged.first_rows(1)[0], 2);
  EXPECT_EQ(ragged.first_rows(1)[1], 4);

  options.format = DispatchFormat::padded;
  ReceivePlan padded(options);
  padded.build(counts_of);
  EXPECT_EQ(padded.offsets()[2], 16);
  EXPECT_EQ(padded.first_rows(1)[0], 2);
}

TEST(ReceivePlan, PlacesRecordsOnlyWhereTheirCountsAnnouncedThem) {
  const std::vector<std::vector<std::uint32_t>> counts{{2, 1}, {0, 2}};
  ReceivePlan plan(
      {.ranks = 2, .slots_per_rank = 2, .format = DispatchFormat::ragged, .max_records = 4});
  plan.build([&](Rank home) {
    return std::span<const std::uint32_t>(counts[static_cast<std::size_t>(home)]);
  });
  ASSERT_TRUE(plan.place(0, std::vector<Record>{{0, 1}, {0, 0}, {1, 0}}));
  EXPECT_EQ(plan.places(0)[0], 2);
  EXPECT_EQ(plan.places(0)[1], 0);
  EXPECT_EQ(plan.places(0)[2], 1);
  ASSERT_TRUE(plan.place(1, std::vector<Record>{{0, 1}, {1, 1}}));
  EXPECT_EQ(plan.places(1)[1], 4);
  EXPECT_FALSE(plan.place(1, std::vector<Record>{{0, 1}, {1, 0}}));
  EXPECT_FALSE(plan.place(0, std::vector<Record>{{0, 0}, {1, 0}, {2, 0}}));
  EXPECT_FALSE(plan.place(0, std::vector<Record>{{0, 7}}));
}

TEST(ReceivePlan, PlacesItsFirstHomeAloneWherePlacesAreFixed) {
  ReceivePlan plan({.ranks = 3,
                    .slots_per_rank = 2,
                    .format = DispatchFormat::padded,
                    .slot_capacity = 12,
                    .max_records = 4,
                    .first_home = 1});
  ASSERT_TRUE(plan.places_first_home_alone());
  const std::vector<Record> records{{0, 1}, {1, 0}, {1, 1}};
  const std::vector<std::vector<std::uint32_t>> counts{{1, 0}, {1, 2}, {3, 1}};
  ASSERT_TRUE(plan.place_first_home(records, counts[1]));
  const std::vector<std::int64_t> alone(plan.places(1).begin(), plan.places(1).begin() + 3);
  EXPECT_EQ(alone, (std::vector<std::int64_t>{12, 0, 13}));
  EXPECT_FALSE(plan.place_first_home(std::vector<Record>{{0, 0}, {1, 0}}, counts[1]));
  // The others' counts change nothing; they follow in ring order.
  plan.build([&](Rank home) {
    return std::span<const std::uint32_t>(counts[static_cast<std::size_t>(home)]);
  });
  ASSERT_TRUE(plan.place(1, records));
  EXPECT_TRUE(std::equal(alone.begin(), alone.end(), plan.places(1).begin()));
  EXPECT_EQ(plan.first_rows(2)[0], 1);
  EXPECT_EQ(plan.first_rows(0)[0], 4);
  EXPECT_EQ(plan.first_rows(0)[1], 15);
  EXPECT_FALSE(ReceivePlan({.ranks = 1, .slots_per_rank = 1, .format = DispatchFormat::ragged})
                   .places_first_home_alone());
}

}  // namespace
}  // namespace ferry
