#include "ferry/engine/fair_queue.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

void push(FairQueue& queue, std::uint64_t id, std::uint64_t client) {
  Admission admission{.id = id, .request = {.prompt = {1}, .sampling = {}, .stop_ids = {}}};
  admission.request.client = client;
  queue.push(std::move(admission));
}

std::vector<std::uint64_t> drain(FairQueue& queue) {
  std::vector<std::uint64_t> ids;
  for (; !queue.empty(); queue.pop()) ids.push_back(queue.front().id);
  return ids;
}

TEST(FairQueue, OneClientsRequestsKeepTheirOrder) {
  FairQueue queue;
  for (std::uint64_t id = 0; id < 5; ++id) push(queue, id, 7);
  EXPECT_EQ(queue.size(), 5U);
  EXPECT_EQ(drain(queue), (std::vector<std::uint64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(queue.size(), 0U);
}

TEST(FairQueue, ClientsTakeTurns) {
  FairQueue queue;
  for (std::uint64_t id = 0; id < 4; ++id) push(queue, id, 1);
  push(queue, 10, 2);
  push(queue, 20, 3);
  push(queue, 21, 3);
  EXPECT_EQ(drain(queue), (std::vector<std::uint64_t>{0, 10, 20, 1, 21, 2, 3}));
}

TEST(FairQueue, WhoComesBackStandsBehindTheOthers) {
  FairQueue queue;
  push(queue, 0, 1);
  push(queue, 10, 2);
  queue.pop();
  push(queue, 1, 1);
  EXPECT_EQ(drain(queue), (std::vector<std::uint64_t>{10, 1}));
}

TEST(FairQueue, RemovedRequestsLeaveNoHole) {
  FairQueue queue;
  push(queue, 0, 1);
  push(queue, 10, 2);
  push(queue, 11, 2);
  EXPECT_TRUE(queue.remove(0));
  EXPECT_FALSE(queue.remove(0));
  EXPECT_TRUE(queue.remove(10));
  EXPECT_EQ(queue.size(), 1U);
  EXPECT_EQ(drain(queue), (std::vector<std::uint64_t>{11}));
}

}  // namespace
}  // namespace ferry
