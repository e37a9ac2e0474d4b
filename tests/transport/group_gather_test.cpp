#include "ferry/transport/group_gather.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "ferry/core/error.h"
#include "support/allocation_count.h"
#include "support/long_tests.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Kind = TransportError::Kind;

/// One gather as all members of a group know it.
struct Case {
  int group = 0;
  int number = 0;
  std::int64_t rows = 0;
  std::int64_t stride = 0;
  std::vector<std::int64_t> bounds;

  /// Differs for every group, gather, row and byte.
  std::byte value(std::int64_t row, std::int64_t at) const {
    std::uint64_t x = static_cast<std::uint64_t>(group) << 48 ^
                      static_cast<std::uint64_t>(number) << 32 ^
                      static_cast<std::uint64_t>(row * stride + at);
    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15U;
    return static_cast<std::byte>(x >> 56);
  }
};

constexpr std::byte kUntouched{0x5a};

/// The rows as this member hands them over: its own columns alone are filled in.
std::vector<std::byte> rows_of_member(const Case& c, int member) {
  std::vector<std::byte> rows(static_cast<std::size_t>(c.rows * c.stride), kUntouched);
  const auto m = static_cast<std::size_t>(member);
  for (std::int64_t row = 0; row < c.rows; ++row)
    for (std::int64_t at = c.bounds[m]; at < c.bounds[m + 1]; ++at)
      rows[static_cast<std::size_t>(row * c.stride + at)] = c.value(row, at);
  return rows;
}

/// Bytes that are not as they should be: all members' columns filled in, nothing else touched.
std::int64_t wrong_bytes(const Case& c, const std::vector<std::byte>& rows) {
  std::int64_t wrong = 0;
  for (std::int64_t row = 0; row < c.rows; ++row) {
    for (std::int64_t at = 0; at < c.stride; ++at) {
      const bool gathered = at >= c.bounds.front() && at < c.bounds.back();
      wrong += rows[static_cast<std::size_t>(row * c.stride + at)] !=
               (gathered ? c.value(row, at) : kUntouched);
    }
  }
  return wrong;
}

/// Uneven slices, some of them empty; now and then no rows.
Case random_case(std::mt19937_64& random, int group, int number, int tp) {
  const auto up_to = [&](std::int64_t n) {
    return std::uniform_int_distribution<std::int64_t>(0, n)(random);
  };
  Case c{.group = group, .number = number, .bounds = {}};
  c.rows = up_to(9) == 0 ? 0 : up_to(12);
  const std::int64_t width = up_to(2) == 0 ? 3000 : 90;
  for (int m = 0; m <= tp; ++m) c.bounds.push_back(up_to(width));
  std::ranges::sort(c.bounds);
  c.stride = c.bounds.back() + up_to(40);
  return c;
}

/// `allocates_nothing`: the transport under it does not.
void gather_case(GroupGather& gather, const Case& c, bool allocates_nothing = false) {
  std::vector<std::byte> rows = rows_of_member(c, gather.member());
  const testing::AllocationCount allocations;
  gather.gather({rows.data(), c.stride}, c.rows, c.bounds, {.name = "test rows", .layer = 7});
  if (allocates_nothing) {
    ASSERT_EQ(allocations.so_far(), 0);
  }
  ASSERT_EQ(wrong_bytes(c, rows), 0) << "gather " << c.number << " of " << c.rows << " rows";
}

struct Groups {
  int ranks;
  int tp;
};

class Gather : public ::testing::TestWithParam<std::tuple<RankKind, Groups>> {
 protected:
  RankKind kind() const { return std::get<0>(GetParam()); }

  Groups groups() const { return std::get<1>(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(
    Transports,
    Gather,
    ::testing::Combine(
        ::testing::ValuesIn(main_rank_kinds()),
        ::testing::Values(Groups{1, 1}, Groups{2, 2}, Groups{3, 3}, Groups{4, 2}, Groups{4, 4})),
    [](const auto& p) {
      const Groups g = std::get<1>(p.param);
      return std::get<0>(p.param).label() + "_" + std::to_string(g.ranks) + "_in_" +
             std::to_string(g.tp);
    });

TEST_P(Gather, GivesEveryMemberAllColumns) {
  const int ranks = groups().ranks;
  const int tp = groups().tp;
  const bool mapped = !kind().faulty && (kind().transport == "inproc" || kind().transport == "shm");
  const int gathers = (mapped ? 3000 : 300) / (slow_run() ? 5 : 1);
  on_ranks({.kind = kind(), .ranks = ranks}, [&](Transport& transport) {
    ThreadPool pool(1 + transport.rank() % 2);
    GroupGather gather({.tp = tp, .max_row_bytes = 3000}, transport, pool);
    ASSERT_EQ(gather.member(), transport.rank() % tp);
    const int group = transport.rank() / tp;
    std::mt19937_64 random(static_cast<std::uint64_t>(group) + 1);  // groups are not in step
    for (int n = 0; n < gathers; ++n) {
      gather_case(gather, random_case(random, group, n, tp), mapped);
      if (::testing::Test::HasFatalFailure()) return;
    }
  });
}

/// More than one slab's worth, so that rounds follow each other inside a gather; and one row that
/// is as wide as allowed.
TEST_P(Gather, CutsWhatIsMoreThanASlab) {
  const int ranks = groups().ranks;
  const int tp = groups().tp;
  const auto most = static_cast<std::int64_t>(GroupGather::kSlabBytes) + 1000;
  on_ranks({.kind = kind(), .ranks = ranks}, [&](Transport& transport) {
    ThreadPool pool(1);
    GroupGather gather(
        {.tp = tp, .max_row_bytes = static_cast<std::size_t>(most)}, transport, pool);
    Case c{.group = transport.rank() / tp, .number = 1, .rows = slow_run() ? 6 : 23, .bounds = {0}};
    for (int m = 0; m < tp; ++m) c.bounds.push_back(c.bounds.back() + 200'000 + 8 * m);
    c.stride = c.bounds.back();
    gather_case(gather, c);
    c = {.group = c.group, .number = 2, .rows = 3, .bounds = {0}};
    for (int m = 0; m < tp; ++m) c.bounds.push_back(c.bounds.back() + (m == 0 ? most : 5));
    c.stride = c.bounds.back();
    gather_case(gather, c);
  });
}

/// Which error a member gets, and whether it names what it should.
void expect_error(Kind kind, Rank peer, const std::string& text, GroupGather& gather) {
  const Case c{.rows = 1, .stride = 4, .bounds = {0, 1, 2, 3, 4}};
  std::vector<std::byte> rows = rows_of_member(c, gather.member());
  try {
    for (int n = 0; n < 100; ++n)
      gather.gather({rows.data(), c.stride}, c.rows, c.bounds, {.name = "heads", .layer = 3});
    ADD_FAILURE() << "nothing was thrown";
  } catch (const TransportError& e) {
    EXPECT_EQ(e.kind(), kind) << e.what();
    EXPECT_EQ(e.peer(), peer) << e.what();
    EXPECT_NE(std::string(e.what()).find("gather of heads (layer 3): "), std::string::npos)
        << e.what();
    EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
  }
}

class GatherFailure : public ::testing::TestWithParam<RankKind> {};

INSTANTIATE_TEST_SUITE_P(Transports,
                         GatherFailure,
                         ::testing::ValuesIn(main_rank_kinds()),
                         [](const auto& p) { return p.param.label(); });

TEST_P(GatherFailure, LateMemberIsNamedWithThePhase) {
  on_ranks({.kind = GetParam(), .ranks = 4}, [](Transport& transport) {
    ThreadPool pool(1);
    GroupGather gather(
        {.tp = 4, .max_row_bytes = 1, .timeout = milliseconds(500)}, transport, pool);
    if (transport.rank() != 2) {
      expect_error(Kind::timeout, 2, "for rank 2: expected 1 messages, saw 0", gather);
    }
    EXPECT_EQ(transport.barrier(deadline_in(seconds(20))), WaitResult::reached);
  });
}

TEST_P(GatherFailure, DeadMemberIsAnErrorNotAHang) {
  if (!GetParam().started_here()) GTEST_SKIP() << "mpirun ends the job when a rank dies";
  const bool processes = GetParam().processes();
  const RanksOptions on{
      .kind = GetParam(), .ranks = 4, .killed_rank = processes ? Rank{1} : Rank{-1}};
  on_ranks(on, [&](Transport& transport) {
    ThreadPool pool(1);
    const auto ready = transport.allocate_region(0, 1);
    GroupGather gather({.tp = 4, .max_row_bytes = 1}, transport, pool);
    others_are_ready(transport, *ready, 1, 0);
    if (transport.rank() != 1)
      return expect_error(processes ? Kind::peer_died : Kind::aborted, 1, "rank 1", gather);
    if (processes) kill(getpid(), SIGKILL);
    transport.abort("its memory is broken");
  });
}

TEST(GroupGather, GroupsMustDivideTheRanks) {
  on_ranks({.ranks = 3}, [](Transport& transport) {
    ThreadPool pool(1);
    EXPECT_THROW(GroupGather({.tp = 2}, transport, pool), ConfigError);
  });
}

}  // namespace
}  // namespace ferry
