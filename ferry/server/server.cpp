#include "ferry/server/server.h"

#include <atomic>
#include <thread>

#include "ferry/runtime/engine_front.h"
#include "ferry/server/messages_api.h"
#include "ferry/server/metrics.h"
#include "ferry/server/openai_api.h"
#include "ferry/server/operations.h"
#include "ferry/server/responses_api.h"
#include "ferry/server/scaling_api.h"
#include "ferry/server/sglang_api.h"

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLook{50};
/// For clients to be told that the engine has failed, or that time is up.
constexpr std::chrono::seconds kLastWords{2};

void wait_until_idle(const HttpServer& http, Clock::time_point deadline) {
  while (http.busy() > 0 && Clock::now() < deadline) std::this_thread::sleep_for(kLook / 5);
}

/// Ends the server when it is told to, or when the engine has.
class Watcher {
 public:
  Watcher(const ServerOptions& options,
          HttpServer& http,
          EngineFront& front,
          Engine& engine,
          const std::function<bool()>& stop_wanted)
      : thread_([&] { watch(options, http, front, engine, stop_wanted); }) {}

  ~Watcher() { thread_.join(); }

  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;

  void engine_has_ended() { ended_ = true; }

 private:
  void watch(const ServerOptions& options,
             HttpServer& http,
             EngineFront& front,
             Engine& engine,
             const std::function<bool()>& stop_wanted) {
    while (!ended_ && !stop_wanted()) std::this_thread::sleep_for(kLook);
    front.refuse_new();
    const Clock::time_point deadline = Clock::now() + options.shutdown_timeout;
    while (!ended_ && http.busy() > 0 && Clock::now() < deadline)
      std::this_thread::sleep_for(kLook / 5);
    front.end_all("the server is shutting down");
    wait_until_idle(http, Clock::now() + kLastWords);
    http.stop();
    engine.close();
  }

  std::atomic<bool> ended_{false};
  std::thread thread_;
};

}  // namespace

void check_port(const HttpOptions& options) { const HttpServer probe(options); }

void serve(const ServerOptions& options,
           const ServedModel& model,
           Engine& engine,
           const std::function<bool()>& stop_wanted,
           const std::function<void(int port)>& started) {
  Metrics metrics(model.name);
  EngineFront front(engine, &metrics);
  CallRegistry calls;
  ResponseStore responses;
  HttpOptions http_options = options.http;
  http_options.on_answer = [&](const std::string& route, int status) {
    metrics.answered(route, status);
  };
  HttpServer http(http_options);
  add_sglang_routes(http, front, model, calls);
  add_openai_routes(http, front, model, calls);
  add_messages_routes(http, front, model, calls);
  add_responses_routes(http, front, model, calls, responses);
  add_operation_routes(http, front, metrics, model);
  if (options.group != nullptr) add_scaling_routes(http, *options.group);
  engine.open();
  http.start();
  started(http.port());
  Watcher watcher(options, http, front, engine, stop_wanted);
  try {
    engine.run([&](const TokenEvent& event) { front.on_token(event); });
  } catch (const std::exception& e) {
    front.fail(std::string("the engine has failed: ") + e.what());
    watcher.engine_has_ended();
    throw;
  }
}

}  // namespace ferry
