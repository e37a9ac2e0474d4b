// For tests of ranks that join: processes and threads that each do their own, and a store in which
// one of them can be killed.
#pragma once

#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/join.h"
#include "ferry/transport/processes.h"
#include "ferry/transport/shared_store.h"

namespace ferry {

/// What one of them does; returns what came of it. An Error's message comes back as such.
using Doing = std::function<std::string(int index, Store& store)>;

inline std::string outcome_of(const Doing& doing, int index, Store& store) {
  try {
    return doing(index, store);
  } catch (const Error& e) {
    return e.what();
  }
}

/// Runs `count` processes over a store that they all have; what came of each, "killed" where
/// nothing.
inline std::vector<std::string> in_processes(int count, const Doing& doing) {
  SharedStore store;
  SharedStore outcomes;
  run_processes({.ranks = count, .child = [&](int index) {
                   outcomes.set_text(std::to_string(index), outcome_of(doing, index, store));
                   return 0;
                 }});
  std::vector<std::string> texts;
  for (int index = 0; index < count; ++index) {
    const auto said = outcomes.get(std::to_string(index));
    texts.push_back(said ? std::string(reinterpret_cast<const char*>(said->data()), said->size())
                         : "killed");
  }
  return texts;
}

/// The same as threads of this process.
inline std::vector<std::string> in_threads(int count, const Doing& doing) {
  LocalStore store;
  std::vector<std::string> texts(static_cast<std::size_t>(count));
  {
    std::vector<std::jthread> threads;
    for (int index = 0; index < count; ++index) {
      threads.emplace_back(
          [&, index] { texts[static_cast<std::size_t>(index)] = outcome_of(doing, index, store); });
    }
  }
  return texts;
}

/// As what the ranks of a transport are.
inline std::vector<std::string> in_ranks_of(const std::string& transport,
                                            int count,
                                            const Doing& doing) {
  return transport == "inproc" ? in_threads(count, doing) : in_processes(count, doing);
}

/// Kills its process before the call with this number, counted from 0.
class DeadlyStore final : public Store {
 public:
  DeadlyStore(Store& inner, int kills_at) : inner_(inner), left_(kills_at) {}

  void set(const std::string& key, std::span<const std::byte> value) override {
    count();
    inner_.set(key, value);
  }

  std::optional<Value> wait(const std::string& key, Deadline deadline) override {
    count();
    return inner_.wait(key, deadline);
  }

  std::int64_t add(const std::string& key, std::int64_t amount) override {
    count();
    return inner_.add(key, amount);
  }

  void remove(const std::string& key) override {
    count();
    inner_.remove(key);
  }

 private:
  void count() {
    if (left_-- == 0) kill(getpid(), SIGKILL);
  }

  Store& inner_;
  int left_;
};

/// Every rank puts its number to every other one and waits for theirs: "rank 1 of 3: 0 1 2 ", the
/// numbers as they lie in its memory.
inline std::string say_hello(Transport& transport) {
  const int size = transport.size();
  const auto region = transport.allocate_region(sizeof(int) * static_cast<std::size_t>(size), 1);
  const Rank own = transport.rank();
  for (Rank peer = 0; peer < size; ++peer) {
    transport.put({.region = region.get(),
                   .peer = peer,
                   .offset = sizeof(int) * static_cast<std::size_t>(own),
                   .source = std::as_bytes(std::span(&own, 1)),
                   .signal = 0});
  }
  const Deadline deadline = deadline_in(std::chrono::seconds(30));
  if (transport.wait(*region, 0, static_cast<std::uint64_t>(size), deadline) ==
      WaitResult::timed_out)
    return "not all puts came";
  std::string text = fmt::format("rank {} of {}: ", own, size);
  for (Rank r = 0; r < size; ++r) {
    int number = -1;
    std::memcpy(
        &number, region->local().data() + sizeof(int) * static_cast<std::size_t>(r), sizeof number);
    text += fmt::format("{} ", number);
  }
  if (transport.barrier(deadline) == WaitResult::timed_out) return "not all ranks came";
  return text;
}

inline std::string hello_of(Rank rank, int size) {
  std::string text = fmt::format("rank {} of {}: ", rank, size);
  for (Rank r = 0; r < size; ++r) text += fmt::format("{} ", r);
  return text;
}

}  // namespace ferry
