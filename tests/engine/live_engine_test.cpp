// An engine that is open: requests come, and go away, from other threads while it runs.
#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <future>
#include <map>
#include <thread>

#include "ferry/core/error.h"
#include "ferry/engine/engine.h"
#include "ferry/runtime/model.h"
#include "support/golden_model.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;

constexpr const char* kModel = "qwen2_untied";

struct Heard {
  std::vector<std::int32_t> tokens;
  std::vector<std::optional<Logprobs>> logprobs;
  bool done = false;

  bool operator==(const Heard&) const = default;
};

/// What callers heard, and a way to wait for it.
class Listener {
 public:
  void operator()(const TokenEvent& event) {
    std::unique_lock lock(mutex_);
    Heard& heard = heard_[event.request];
    EXPECT_FALSE(heard.done) << "a token behind the last one";
    heard.tokens.push_back(event.token);
    heard.logprobs.push_back(event.logprobs);
    heard.done = event.last;
    changed_.notify_all();
    EXPECT_TRUE(changed_.wait_for(lock, 60s, [&] { return !held_; }));
  }

  /// While it holds the engine stands still behind its next token.
  void hold(bool held) {
    const std::lock_guard lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }

  Heard wait_until_done(std::uint64_t id) {
    return wait(id, [](const Heard& heard) { return heard.done; });
  }

  Heard wait_for_tokens(std::uint64_t id, std::size_t tokens) {
    return wait(id, [=](const Heard& heard) { return heard.tokens.size() >= tokens; });
  }

  Heard heard(std::uint64_t id) {
    const std::lock_guard lock(mutex_);
    return heard_[id];
  }

 private:
  template <class Ready>
  Heard wait(std::uint64_t id, Ready ready) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, 60s, [&] { return ready(heard_[id]); })) << id;
    return heard_[id];
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, Heard> heard_;
  bool held_ = false;
};

Model model_on(int ranks, const EngineOptions& options) {
  return Model::open({.model = test::data_dir(kModel),
                      .launch = {.transport = "inproc", .ranks = ranks},
                      .decoder = {.max_tokens = options.max_tokens_per_step},
                      .engine = options});
}

/// Runs an open engine on thread ranks; `talk` runs on a thread of its own beside rank 0 and the
/// engine is closed behind it.
void with_open_engine(const EngineOptions& options,
                      int ranks,
                      const std::function<void(Engine&, Listener&)>& talk) {
  model_on(ranks, options).run_engine([&](Engine& engine) {
    engine.open();
    Listener listener;
    std::thread talker([&] {
      talk(engine, listener);
      engine.close();
    });
    engine.run(std::ref(listener));
    talker.join();
    return 0;
  });
}

EngineOptions small() { return {.max_sequences_per_rank = 4, .max_tokens_per_step = 32}; }

Request request_of(const std::vector<std::int32_t>& prompt, int tokens, std::uint64_t seed) {
  return {.prompt = prompt,
          .max_new_tokens = tokens,
          .sampling = {.temperature = 0.9, .seed = seed},
          .stop_ids = {}};
}

/// Different prompts, lengths and seeds; some with logprobs, some with logits processors, of which
/// penalties have a state.
std::vector<Request> many_requests(int count) {
  const std::vector<test::GoldenPrompt> golden = test::golden_prompts(kModel);
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    const auto& prompt = golden[static_cast<std::size_t>(i) % golden.size()].prompt;
    requests.push_back(request_of(prompt, 4 + i % 13, static_cast<std::uint64_t>(i)));
    if (i % 3 == 0) requests.back().top_logprobs = i % 5;
    requests.back().client = static_cast<std::uint64_t>(i % 7);
    if (i % 2 == 0) {
      requests.back().processors = {
          {.name = "penalties", .integers = {}, .numbers = {0.5F, 0.25F * (i % 4), 1.3F}},
          {.name = "suppressed_tokens", .integers = {i, i + 1}, .numbers = {}}};
    }
  }
  return requests;
}

std::vector<Heard> one_after_another(const std::vector<Request>& requests) {
  std::vector<Heard> heard;
  with_open_engine(small(), 1, [&](Engine& engine, Listener& listener) {
    for (const Request& request : requests)
      heard.push_back(listener.wait_until_done(engine.submit(request).value()));
  });
  return heard;
}

TEST(LiveEngine, ARequestIsTheSameAloneAndAmongAHundredOthers) {
  const std::vector<Request> requests = many_requests(101);
  const std::vector<Heard> alone = one_after_another(requests);
  for (const int ranks : {1, 3}) {
    with_open_engine(small(), ranks, [&](Engine& engine, Listener& listener) {
      std::vector<std::uint64_t> ids(requests.size());
      std::vector<std::thread> clients;
      for (std::size_t c = 0; c < 4; ++c) {
        clients.emplace_back([&, c] {
          for (std::size_t i = c; i < requests.size(); i += 4)
            ids[i] = engine.submit(requests[i]).value();
        });
      }
      for (std::thread& client : clients) client.join();
      for (std::size_t i = 0; i < requests.size(); ++i)
        EXPECT_EQ(listener.wait_until_done(ids[i]), alone[i]) << "request " << i;
    });
  }
}

TEST(LiveEngine, StartingOverForWantOfMemoryChangesNoToken) {
  std::vector<Request> requests = many_requests(30);
  for (Request& request : requests) request.max_new_tokens += 16;  // so that they grow by pages
  const std::vector<Heard> alone = one_after_another(requests);
  EngineOptions options = small();
  options.max_kv_tokens = 80;
  with_open_engine(options, 2, [&](Engine& engine, Listener& listener) {
    std::vector<std::uint64_t> ids;
    for (const Request& request : requests) ids.push_back(engine.submit(request).value());
    for (std::size_t i = 0; i < requests.size(); ++i)
      EXPECT_EQ(listener.wait_until_done(ids[i]), alone[i]) << "request " << i;
    std::promise<EngineStats> stats;
    engine.post([&] { stats.set_value(engine.stats()); });
    EXPECT_GT(stats.get_future().get().evictions, 0U) << "the test needs less memory";
  });
}

TEST(LiveEngine, ProcessorsChooseAndLogprobsStayTheModels) {
  const std::vector<std::int32_t> prompt = test::golden_prompts(kModel).at(0).prompt;
  const Request plain{
      .prompt = prompt, .max_new_tokens = 3, .sampling = {}, .stop_ids = {}, .top_logprobs = 8};
  Request chosen = plain;
  Request stopped = plain;
  stopped.max_new_tokens = 12;
  with_open_engine(small(), 1, [&](Engine& engine, Listener& listener) {
    const auto heard = [&](const Request& request) {
      return listener.wait_until_done(engine.submit(request).value());
    };
    const Heard first = heard(plain);
    const std::vector<TokenLogprob> top = first.logprobs.at(0)->top;
    ASSERT_EQ(top.size(), 8U);
    std::vector<std::int32_t> allowed = {top[6].id, top[3].id};
    std::sort(allowed.begin(), allowed.end());
    chosen.processors = {{.name = "allowed_tokens", .integers = allowed, .numbers = {}}};
    const Heard second = heard(chosen);
    EXPECT_EQ(second.tokens.at(0), top[3].id) << "the more probable of the two";
    EXPECT_EQ(second.logprobs.at(0)->chosen, top[3].logprob);
    EXPECT_EQ(second.logprobs.at(0)->top, top) << "as the model has them, banned or not";

    stopped.stop_ids = {first.tokens.at(0)};
    EXPECT_EQ(heard(stopped).tokens.size(), 1U);
    stopped.processors = {{.name = "min_tokens", .integers = {9}, .numbers = {}}};
    const Heard third = heard(stopped);
    EXPECT_GE(third.tokens.size(), 9U);
    EXPECT_EQ(std::count(third.tokens.begin(), third.tokens.begin() + 9, stopped.stop_ids[0]), 0);
    stopped.processors[0].integers = {13};
    EXPECT_THROW(static_cast<void>(engine.submit(stopped)), ConfigError);
  });
}

TEST(LiveEngine, CancelledRequestsMakeRoomForOthers) {
  EngineOptions options = small();
  options.max_sequences_per_rank = 1;
  options.max_waiting = 1;
  const std::vector<std::int32_t> prompt = test::golden_prompts(kModel).at(0).prompt;
  with_open_engine(options, 1, [&](Engine& engine, Listener& listener) {
    listener.hold(true);
    const std::uint64_t endless = engine.submit(request_of(prompt, 100, 1)).value();
    listener.wait_for_tokens(endless, 1);
    const std::uint64_t waiting = engine.submit(request_of(prompt, 3, 2)).value();
    EXPECT_FALSE(engine.submit(request_of(prompt, 3, 2))) << "the queue is full";
    engine.cancel(endless);
    listener.hold(false);
    EXPECT_TRUE(listener.wait_until_done(waiting).done);
    EXPECT_FALSE(listener.heard(endless).done);
    engine.cancel(endless);
    engine.cancel(12345);
    for (int i = 0; i < 5; ++i) {
      std::optional<std::uint64_t> id;
      while (!(id = engine.submit(request_of(prompt, 2, 3)))) std::this_thread::sleep_for(1ms);
      listener.wait_until_done(*id);
    }
  });
}

TEST(LiveEngine, RefusesWhatNoRankHasTheMemoryFor) {
  EngineOptions options = small();
  options.max_kv_tokens = 32;
  with_open_engine(options, 1, [&](Engine& engine, Listener&) {
    EXPECT_THROW(static_cast<void>(engine.submit(request_of({1, 2, 3}, 31, 0))), ConfigError);
    EXPECT_NO_THROW(engine.check(request_of({1, 2, 3}, 30, 0)));
  });
  options.max_kv_tokens = 1;
  EXPECT_THROW(with_open_engine(options, 1, [](Engine&, Listener&) {}), ConfigError);
}

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

TEST(LiveEngine, WaitingForWorkCostsLittle) {
  with_open_engine(small(), 3, [&](Engine& engine, Listener& listener) {
    listener.wait_until_done(engine.submit(request_of({1, 2}, 2, 0)).value());
    std::this_thread::sleep_for(50ms);
    const double before = cpu_seconds();
    std::this_thread::sleep_for(1s);
    EXPECT_LT(cpu_seconds() - before, 0.1);
    EXPECT_TRUE(listener.wait_until_done(engine.submit(request_of({1, 2}, 2, 0)).value()).done);
  });
}

TEST(LiveEngine, IdleRankZeroNoticesThatAPeerGaveUp) {
  const Model model = model_on(2, small());
  const auto run = [&] {
    model.run([&](Decoder& decoder, Transport& transport) {
      Engine engine = model.engine_on(decoder, transport);
      if (transport.rank() == 1) fail<ModelError>("rank 1 has had enough");
      engine.open();
      engine.run([](const TokenEvent&) {});
      return 0;
    });
  };
  EXPECT_THROW(run(), ModelError);
}

}  // namespace
}  // namespace ferry
