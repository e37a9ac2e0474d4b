// Ranks that meet by TCP, and everything that may be wrong with them or with strangers.
#include "ferry/transport/bootstrap.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/transport/sockets.h"

namespace ferry {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

/// How one rank's meeting ended.
struct Ending {
  std::string error;  // empty: it met the others
  std::vector<std::string> nodes;
  std::vector<Bytes> gathered;
  Clock::duration took{};
};

/// A group whose ranks are threads; rank 0's door is open from the beginning.
class Meetings {
 public:
  explicit Meetings(int size) : door_(listen_at(resolve("127.0.0.1", 0))) {
    const int port = own_address(door_).port();
    for (Rank r = 0; r < size; ++r) {
      options_.push_back({.rank = r,
                          .size = size,
                          .host = "127.0.0.1",
                          .port = port,
                          .secret = "s3cret",
                          .node = r % 2 == 0 ? "even" : "odd",
                          .agreement = {{"version", "1"}, {"model", "m"}},
                          .deadline = deadline_in(seconds(10))});
    }
    options_[0].listener = std::move(door_);
  }

  MeetingOptions& of(std::size_t index) { return options_[index]; }

  int port() const { return options_[0].port; }

  void forget_last() { options_.pop_back(); }

  std::vector<Ending> run() {
    std::vector<Ending> endings(options_.size());
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < options_.size(); ++i) {
      threads.emplace_back([&, i] {
        const auto begin = Clock::now();
        try {
          Meeting meeting = meet(std::move(options_[i]));
          endings[i].nodes = meeting.nodes;
          const auto own = ByteWriter().number(meeting.mesh.rank()).bytes();
          endings[i].gathered = meeting.mesh.all_gather(own, deadline_in(seconds(10)));
        } catch (const Error& e) {
          endings[i].error = e.what();
        }
        endings[i].took = Clock::now() - begin;
      });
    }
    threads.clear();
    return endings;
  }

 private:
  UniqueFd door_;
  std::vector<MeetingOptions> options_;
};

void expect_all_met(const std::vector<Ending>& endings) {
  for (std::size_t r = 0; r < endings.size(); ++r) {
    EXPECT_EQ(endings[r].error, "") << "rank " << r;
    ASSERT_EQ(endings[r].gathered.size(), endings.size()) << "rank " << r;
    for (std::size_t q = 0; q < endings.size(); ++q) {
      EXPECT_EQ(ByteReader(endings[r].gathered[q]).number<Rank>(), static_cast<Rank>(q));
      EXPECT_EQ(endings[r].nodes[q], q % 2 == 0 ? "even" : "odd");
    }
  }
}

/// Every error is one line and holds `text`.
void expect_all_failed(const std::vector<Ending>& endings, const std::string& text) {
  for (std::size_t r = 0; r < endings.size(); ++r) {
    EXPECT_NE(endings[r].error.find(text), std::string::npos)
        << "rank " << r << ": " << endings[r].error;
    EXPECT_EQ(endings[r].error.find('\n'), std::string::npos) << endings[r].error;
    EXPECT_LT(endings[r].took, seconds(9)) << "rank " << r;
  }
}

TEST(Bootstrap, RanksMeetAndAreConnected) {
  for (const int size : {1, 2, 3, 7}) expect_all_met(Meetings(size).run());
}

TEST(Bootstrap, WhoDiffersIsNamedOnEveryRank) {
  Meetings meetings(4);
  meetings.of(2).agreement[1].second = "another";
  expect_all_failed(meetings.run(), "ranks differ in model: ranks 0, 1 and 3 m, rank 2 another");
}

TEST(Bootstrap, AMissingRankIsNamedOnEveryRankByTheDeadline) {
  Meetings meetings(4);
  meetings.forget_last();
  for (std::size_t r = 0; r < 3; ++r) meetings.of(r).deadline = deadline_in(seconds(3));
  expect_all_failed(meetings.run(), "rank 3 did not come within 3.0 s");
}

TEST(Bootstrap, TwoRanksWithOneNumberAreRefusedEverywhere) {
  Meetings meetings(3);
  meetings.of(2).rank = 1;
  expect_all_failed(meetings.run(), "two processes say that they are rank 1");
}

TEST(Bootstrap, AnotherNumberOfRanksIsRefusedEverywhere) {
  Meetings meetings(3);
  meetings.of(2).size = 4;
  const auto endings = meetings.run();
  expect_all_failed(endings, "rank 2 was started as one of 4 ranks, rank 0 as one of 3");
}

TEST(Bootstrap, AWrongTokenIsTurnedAwayAndTheOthersMissThatRank) {
  Meetings meetings(3);
  for (std::size_t r = 0; r < 3; ++r) meetings.of(r).deadline = deadline_in(seconds(3));
  meetings.of(1).secret = "s3cref";
  const auto endings = meetings.run();
  EXPECT_NE(endings[1].error.find("its FERRY_TOKEN is not that of rank 0"), std::string::npos)
      << endings[1].error;
  for (const std::size_t r : {0U, 2U}) {
    EXPECT_NE(endings[r].error.find("rank 1 did not come"), std::string::npos) << endings[r].error;
    EXPECT_NE(endings[r].error.find("1 with a wrong FERRY_TOKEN turned away"), std::string::npos)
        << endings[r].error;
  }
}

TEST(Bootstrap, AMasterThatCannotBeReachedIsSaid) {
  const UniqueFd closed = listen_at(resolve("127.0.0.1", 0));
  const int port = own_address(closed).port();
  shutdown(closed.get(), SHUT_RDWR);
  const auto begin = Clock::now();
  try {
    meet({.rank = 1,
          .size = 2,
          .host = "127.0.0.1",
          .port = port,
          .deadline = deadline_in(milliseconds(300))});
    ADD_FAILURE() << "nothing was thrown";
  } catch (const TransportError& e) {
    EXPECT_NE(std::string(e.what()).find("rank 1 cannot join: cannot reach 127.0.0.1:"),
              std::string::npos)
        << e.what();
    EXPECT_NE(std::string(e.what()).find("refused"), std::string::npos) << e.what();
  }
  EXPECT_LT(Clock::now() - begin, seconds(9));
}

TEST(Bootstrap, BeyondLoopbackATokenIsRequired) {
  for (const Rank rank : {0, 1}) {
    try {
      meet({.rank = rank, .size = 2, .host = "192.0.2.77", .port = 1, .deadline = Clock::now()});
      ADD_FAILURE() << "nothing was thrown";
    } catch (const ConfigError& e) {
      EXPECT_NE(std::string(e.what()).find("FERRY_TOKEN is not set"), std::string::npos);
    }
  }
}

/// Connects to rank 0 and says `words`; stays connected until it is destroyed.
UniqueFd stranger(int port, const std::string& words) {
  UniqueFd socket = connect_to(resolve("127.0.0.1", port), deadline_in(seconds(5)));
  if (!words.empty()) {
    EXPECT_EQ(send(socket.get(), words.data(), words.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(words.size()));
  }
  return socket;
}

TEST(Bootstrap, StrangersNeitherCrashNorBlockIt) {
  Meetings meetings(3);
  std::vector<UniqueFd> strangers;
  const std::vector<std::string> words{
      "",                                                            // never says anything
      "GET / HTTP/1.1\r\n\r\n",                                      // a length beyond all sense
      std::string(4, '\0'),                                          // an empty message
      std::string("\x08\0\0\0\xff\xff\xff\xff????", 12),             // parts longer than the whole
      std::string("\x10\0\0\0", 4),                                  // stops in the middle
      std::string("\x24\0\0\0\x20\0\0\0", 8) + std::string(32, 'x')  // a proof without words
  };
  for (int round = 0; round < 20; ++round) {
    for (const std::string& w : words) strangers.push_back(stranger(meetings.port(), w));
  }
  const auto endings = meetings.run();
  expect_all_met(endings);
  for (const Ending& ending : endings) EXPECT_LT(ending.took, seconds(9));
}

TEST(Bootstrap, RandomBytesAreNoLanguage) {
  std::uint64_t state = 1;
  const auto next = [&] { return state = state * 6364136223846793005u + 1442695040888963407u; };
  Meetings meetings(2);
  std::vector<UniqueFd> strangers;
  for (int i = 0; i < 200; ++i) {
    // A length that fits, so that what follows is read.
    std::string words(4 + next() % 200, '\0');
    for (char& c : words) c = static_cast<char>(next() >> 56);
    const auto length = static_cast<std::uint32_t>(words.size() - 4);
    std::memcpy(words.data(), &length, sizeof length);
    strangers.push_back(stranger(meetings.port(), words));
  }
  expect_all_met(meetings.run());
}

TEST(Mesh, AConnectionThatEndsIsNoticedBehindItsLastMessage) {
  std::array<int, 2> ends{};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends.data()), 0);
  std::vector<UniqueFd> sockets(2);
  sockets[1] = UniqueFd(ends[0]);
  Mesh mesh(0, std::move(sockets));
  {
    std::vector<UniqueFd> theirs(2);
    theirs[0] = UniqueFd(ends[1]);
    Mesh other(1, std::move(theirs));
    for (int i = 0; i < 3; ++i) other.send(0, ByteWriter().number(i).bytes());
  }
  mesh.poll(milliseconds(1000));
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(mesh.ended(1));
    const auto message = mesh.take(1);
    ASSERT_TRUE(message);
    EXPECT_EQ(ByteReader(*message).number<int>(), i);
  }
  mesh.poll(milliseconds(0));
  EXPECT_TRUE(mesh.ended(1));
  EXPECT_FALSE(mesh.take(1));
}

}  // namespace
}  // namespace ferry
