// Stores of every kind, and what strangers and members who misbehave can do to one.
#include "ferry/store.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <filesystem>
#include <thread>

#include "ferry/core/error.h"
#include "ferry/tcp_store.h"
#include "ferry/transport/proof.h"
#include "ferry/transport/shared_store.h"
#include "ferry/transport/sockets.h"
#include "ferry/transport/store_server.h"
#include "ferry/transport/store_values.h"

namespace ferry {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Deadline soon() { return deadline_in(seconds(30)); }

std::string text_at(Store& store, const std::string& key) {
  const auto value = store.get(key);
  return value ? text_of(*value) : "(nothing)";
}

/// A store and what it needs to live.
struct Made {
  std::unique_ptr<Store> inner;
  std::unique_ptr<Store> store;
};

Made make(const std::string& kind) {
  Made made;
  if (kind == "local") made.store = std::make_unique<LocalStore>();
  if (kind == "shared") made.store = std::make_unique<SharedStore>();
  if (kind == "tcp") made.store = std::make_unique<TcpStore>(TcpStoreOptions{.serve = true});
  if (made.store) return made;
  made.inner = std::make_unique<LocalStore>();
  Store& inner = *made.inner;
  if (kind == "prefix") {
    made.store = std::make_unique<PrefixStore>(inner, "mine/");
    return made;
  }
  made.store = std::make_unique<CallbackStore>(StoreCallbacks{
      .set = [&](const std::string& key, std::span<const std::byte> v) { inner.set(key, v); },
      .wait = [&](const std::string& key, Deadline deadline) { return inner.wait(key, deadline); },
      .add = [&](const std::string& key, std::int64_t amount) { return inner.add(key, amount); },
      .remove = [&](const std::string& key) { inner.remove(key); }});
  return made;
}

class StoreTest : public testing::TestWithParam<const char*> {
 protected:
  StoreTest() : made_(make(GetParam())), store_(*made_.store) {}

  Made made_;
  Store& store_;
};

INSTANTIATE_TEST_SUITE_P(Kinds,
                         StoreTest,
                         testing::Values("local", "shared", "tcp", "prefix", "callback"),
                         [](const auto& p) { return std::string(p.param); });

TEST_P(StoreTest, KeysHoldWhatWasSetLast) {
  EXPECT_FALSE(store_.get("a"));
  store_.set_text("a", "one");
  store_.set_text("b", "");
  store_.set_text("", "an empty key is one");
  EXPECT_EQ(text_at(store_, "a"), "one");
  EXPECT_EQ(text_at(store_, "b"), "");
  EXPECT_EQ(text_at(store_, ""), "an empty key is one");
  store_.set_text("a", std::string(100'000, 'x'));
  EXPECT_EQ(text_at(store_, "a"), std::string(100'000, 'x'));
  store_.remove("a");
  store_.remove("a");
  EXPECT_EQ(text_at(store_, "a"), "(nothing)");
  store_.set_text("a", "two");
  EXPECT_EQ(text_at(store_, "a"), "two");
}

TEST_P(StoreTest, WaitsEndWhenTheKeyIsSetOrTheDeadlineIsOver) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(store_.wait("never", start + milliseconds(50)));
  EXPECT_GE(std::chrono::steady_clock::now() - start, milliseconds(50));
  std::jthread setter([&] {
    std::this_thread::sleep_for(milliseconds(30));
    store_.set_text("other", "no");
    store_.set_text("key", "value");
  });
  // From this thread and another, over the same object, without an end.
  std::jthread second([&] { EXPECT_TRUE(store_.wait("key", kNoDeadline)); });
  const auto value = store_.wait("key", soon());
  ASSERT_TRUE(value);
  EXPECT_EQ(text_of(*value), "value");
}

TEST_P(StoreTest, SumsLoseNothing) {
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 50; ++i) store_.add("sum", 3);
      });
    }
  }
  EXPECT_EQ(store_.add("sum", -1), 4 * 50 * 3 - 1);
  EXPECT_EQ(text_at(store_, "sum"), "599");
  store_.set_text("text", "no number");
  EXPECT_THROW(store_.add("text", 1), Error);
  EXPECT_EQ(text_at(store_, "text"), "no number");
  store_.set_text("large", "9223372036854775807");
  EXPECT_THROW(store_.add("large", 1), Error);
}

TEST(PrefixStore, GroupsDoNotSeeEachOther) {
  LocalStore shared;
  PrefixStore first(shared, "first/");
  PrefixStore second(shared, "second/");
  first.set_text("key", "1");
  EXPECT_FALSE(second.get("key"));
  EXPECT_EQ(text_at(shared, "first/key"), "1");
}

TEST(CallbackStore, NeedsWhatJoiningNeeds) {
  EXPECT_THROW(CallbackStore({}), ConfigError);
  LocalStore inner;
  CallbackStore store(
      {.set = [&](const std::string& key, std::span<const std::byte> v) { inner.set(key, v); },
       .wait = [&](const std::string& key, Deadline d) { return inner.wait(key, d); }});
  store.set_text("key", "1");
  store.remove("key");  // it cannot, which is no error
  EXPECT_EQ(text_at(store, "key"), "1");
  EXPECT_THROW(store.add("sum", 1), ConfigError);
}

TEST(LocalStore, ClosingEndsAllWaits) {
  LocalStore store;
  std::jthread closer([&] {
    std::this_thread::sleep_for(milliseconds(20));
    store.close(3, "the thread of rank 3 did not start");
  });
  try {
    (void)store.wait("key", kNoDeadline);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const TransportError& e) {
    EXPECT_EQ(e.peer(), 3);
    EXPECT_STREQ(e.what(), "the thread of rank 3 did not start");
  }
  EXPECT_THROW(store.set_text("key", ""), TransportError);
}

// --- Strangers and others ----------------------------------------------------------------------

class TcpStoreTest : public testing::Test {
 protected:
  UniqueFd connect() const { return connect_to(resolve("127.0.0.1", store_.port()), soon()); }

  /// As a stranger, who is greeted as everybody.
  UniqueFd come_in() const {
    UniqueFd socket = connect();
    Bytes greeting(Doorman::kGreetingBytes);
    receive_exactly(socket, greeting, soon());
    return socket;
  }

  /// As a member is let in, before its first request.
  UniqueFd let_in() const {
    UniqueFd socket = connect();
    say(socket, "secret", {}, store_greeting(), soon());
    EXPECT_EQ(StoreAnswer::read(receive_message(socket, soon())).kind, StoreAnswer::Kind::done);
    return socket;
  }

  static void send_bytes(const UniqueFd& socket, const Bytes& bytes) {
    EXPECT_EQ(send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }

  /// The store closes this connection, and goes on for others.
  void expect_shown_out(const UniqueFd& socket) {
    std::array<std::byte, 1> byte;
    try {
      receive_exactly(socket, byte, soon());
      ADD_FAILURE() << "it answered";
    } catch (const TransportError& e) {
      EXPECT_NE(e.kind(), TransportError::Kind::timeout) << e.what();
    }
    store_.set_text("alive", "yes");
    EXPECT_EQ(text_at(store_, "alive"), "yes");
  }

  TcpStore store_{{.serve = true, .secret = "secret"}};
};

TEST_F(TcpStoreTest, AnotherSecretIsRefusedInOneLine) {
  try {
    TcpStore({.port = store_.port(), .secret = "Secret", .server = 0});
    ADD_FAILURE() << "it was let in";
  } catch (const TransportError& e) {
    EXPECT_EQ(e.peer(), 0);
    EXPECT_EQ(std::string(e.what()),
              fmt::format("the store at 127.0.0.1:{}, which rank 0 serves: its FERRY_TOKEN is not "
                          "that of the store; give all ranks the same",
                          store_.port()));
  }
}

TEST_F(TcpStoreTest, ASecretIsNeededWhereOthersCanReachIt) {
  EXPECT_THROW(TcpStore({.host = "0.0.0.0", .serve = true}), ConfigError);
}

TEST_F(TcpStoreTest, WhoServesNothingIsNotReached) {
  const int port = TcpStore({.serve = true}).port();
  try {
    TcpStore({.port = port, .timeout = milliseconds(200)});
    ADD_FAILURE() << "somebody was there";
  } catch (const TransportError& e) {
    EXPECT_EQ(e.kind(), TransportError::Kind::timeout);
  }
}

TEST_F(TcpStoreTest, ValuesThatAreTooLongAreRefusedByTheirSender) {
  EXPECT_THROW(store_.set("key", Store::Value(TcpStore::kMaxBytes + 1)), Error);
  store_.set("key", Store::Value(TcpStore::kMaxBytes - 3));
  EXPECT_EQ(store_.get("key")->size(), TcpStore::kMaxBytes - 3);
}

TEST_F(TcpStoreTest, StrangersAreShownOut) {
  const UniqueFd silent = come_in();
  const UniqueFd garbage = come_in();
  send_bytes(garbage, Bytes(100, std::byte{0xff}));
  expect_shown_out(garbage);
  const UniqueFd web = come_in();
  const std::string get = "GET / HTTP/1.1\r\n\r\n";
  const auto bytes = std::as_bytes(std::span(get.data(), get.size()));
  send_bytes(web, Bytes(bytes.begin(), bytes.end()));
  expect_shown_out(web);
  const UniqueFd unproved = come_in();
  send_message(unproved, ByteWriter().blob({}).blob(store_greeting()).bytes(), soon());
  EXPECT_EQ(StoreAnswer::read(receive_message(unproved, soon())).kind, StoreAnswer::Kind::refused);
  const UniqueFd cut = come_in();
  send_message(cut, Bytes(3, std::byte{1}), soon());
  expect_shown_out(cut);
}

TEST_F(TcpStoreTest, MembersThatSpeakNonsenseAreShownOut) {
  const Bytes good =
      StoreRequest{.kind = StoreRequest::Kind::set, .key = "key", .value = Bytes(5)}.bytes();
  for (std::size_t cut = 0; cut < good.size(); ++cut) {
    const UniqueFd socket = let_in();
    send_message(socket, std::span<const std::byte>(good).first(cut), soon());
    expect_shown_out(socket);
  }
  Bytes unknown = good;
  unknown[0] = std::byte{9};
  Bytes longer = good;
  longer.push_back(std::byte{0});
  for (const Bytes& bad : {unknown, longer}) {
    const UniqueFd socket = let_in();
    send_message(socket, bad, soon());
    expect_shown_out(socket);
  }
  const UniqueFd huge = let_in();
  send_bytes(huge, ByteWriter().number(std::uint32_t{0xfffffff0}).bytes());
  expect_shown_out(huge);
  EXPECT_EQ(text_at(store_, "key"), "(nothing)");
  // Says that a megabyte comes, and falls silent, or goes: nobody else waits for it.
  const UniqueFd slow = let_in();
  send_bytes(slow, ByteWriter().number(std::uint32_t{1} << 20).number(1).bytes());
  UniqueFd gone = let_in();
  send_message(gone,
               StoreRequest{.kind = StoreRequest::Kind::wait, .key = "x", .number = 9999}.bytes(),
               soon());
  gone = {};
  store_.set_text("x", "y");
  EXPECT_EQ(text_at(store_, "x"), "y");
}

TEST_F(TcpStoreTest, ItsEndIsAnErrorForThoseWhoWait) {
  auto server = std::make_unique<TcpStore>(TcpStoreOptions{.serve = true});
  TcpStore client({.port = server->port()});
  std::jthread ender([&] {
    std::this_thread::sleep_for(milliseconds(50));
    server.reset();
  });
  EXPECT_THROW((void)client.wait("key", kNoDeadline), TransportError);
}

TEST_F(TcpStoreTest, StoresLeaveNothingBehind) {
  const auto held = [] {
    std::ptrdiff_t entries = 0;
    for (const char* directory : {"/proc/self/fd", "/proc/self/task"}) {
      const std::filesystem::directory_iterator all(directory);
      entries += std::distance(begin(all), end(all));
    }
    return entries;
  };
  const auto before = held();
  for (int i = 0; i < 100; ++i) {
    TcpStore server({.serve = true});
    TcpStore client({.port = server.port()});
    client.set_text("key", "value");
    EXPECT_EQ(text_at(server, "key"), "value");
  }
  EXPECT_EQ(held(), before);
}

}  // namespace
}  // namespace ferry
