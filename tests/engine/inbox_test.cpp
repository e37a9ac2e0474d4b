#include "ferry/engine/inbox.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "ferry/core/error.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;

Request some_request() { return {.prompt = {1}, .sampling = {}, .stop_ids = {}}; }

TEST(Inbox, GivesOutWhatCameInOrder) {
  Inbox inbox(0);
  EXPECT_EQ(inbox.submit(some_request()), 0U);
  EXPECT_EQ(inbox.submit(some_request()), 1U);
  inbox.cancel(0);
  bool ran = false;
  inbox.post([&] { ran = true; });
  const Inbox::Mail mail = inbox.take();
  ASSERT_EQ(mail.admissions.size(), 2U);
  EXPECT_EQ(mail.admissions[1].id, 1U);
  EXPECT_EQ(mail.cancelled, std::vector<std::uint64_t>{0});
  ASSERT_EQ(mail.tasks.size(), 1U);
  mail.tasks[0]();
  EXPECT_TRUE(ran);
  EXPECT_FALSE(mail.open);
  EXPECT_TRUE(inbox.take().empty());
}

TEST(Inbox, RefusesMoreThanMayLiveUntilSomeHaveFinished) {
  Inbox inbox(2);
  EXPECT_TRUE(inbox.submit(some_request()));
  EXPECT_TRUE(inbox.submit(some_request()));
  EXPECT_FALSE(inbox.submit(some_request()));
  static_cast<void>(inbox.take());
  EXPECT_FALSE(inbox.submit(some_request())) << "taken out is not finished";
  inbox.finished(1);
  EXPECT_EQ(inbox.submit(some_request()), 2U) << "refused ones take no number";
  EXPECT_THROW(inbox.finished(3), BrokenContract);
}

TEST(Inbox, WaitEndsWithMailAndWhenItIsClosed) {
  Inbox inbox(0);
  EXPECT_TRUE(inbox.wait(0ns)) << "closed from the start";
  inbox.set_open(true);
  EXPECT_FALSE(inbox.wait(1ms));
  for (const bool with_mail : {true, false}) {
    std::thread other([&] {
      std::this_thread::sleep_for(20ms);
      if (with_mail)
        inbox.cancel(3);
      else
        inbox.set_open(false);
    });
    EXPECT_TRUE(inbox.wait(10s));
    other.join();
    EXPECT_EQ(inbox.take().open, with_mail);
  }
}

TEST(Inbox, ManyThreadsGetDifferentNumbers) {
  Inbox inbox(300);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) static_cast<void>(inbox.submit(some_request()));
    });
  }
  std::set<std::uint64_t> ids;
  const auto collect = [&] {
    for (const Admission& a : inbox.take().admissions) ids.insert(a.id);
  };
  for (int i = 0; i < 100; ++i) collect();
  for (std::thread& t : threads) t.join();
  collect();
  EXPECT_EQ(ids.size(), 300U);
  EXPECT_EQ(*ids.rbegin(), 299U);
}

}  // namespace
}  // namespace ferry
