// A server over the demo model in this process, and what tests say to it.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <future>
#include <optional>
#include <string>
#include <thread>

#include "ferry/runtime/model.h"
#include "ferry/server/server.h"
#include "support/paths.h"

namespace ferry::test {

inline std::filesystem::path demo_model() { return test::source_dir() / "assets" / "demo-moe"; }

/// Serves from construction to destruction, with ranks as threads.
class Served {
 public:
  explicit Served(const EngineOptions& engine = {.max_waiting = 256},
                  const HttpOptions& http = {.port = 0, .access_log = false},
                  int ranks = 2) {
    thread_ = std::thread([=, this] { run(engine, http, ranks); });
    port_ = started_.get_future().get();
  }

  ~Served() {
    stop_ = true;
    thread_.join();
  }

  int port() const { return port_; }

  const Tokenizer& tokenizer() const { return model_->need_tokenizer(); }

  /// As SIGTERM does.
  void stop() { stop_ = true; }

 private:
  void run(const EngineOptions& engine_options, const HttpOptions& http, int ranks) {
    ModelOptions options{.model = demo_model(),
                         .launch = {.transport = "inproc", .ranks = ranks},
                         .weights = WeightType::bf16,
                         .decoder = {.max_tokens = engine_options.max_tokens_per_step},
                         .engine = engine_options};
    options.engine.balance.record = true;
    const Model& opened = model_.emplace(Model::open(options));
    const ServedModel model{.name = "demo-moe",
                            .path = demo_model().string(),
                            .config = &opened.config(),
                            .tokenizer = opened.tokenizer(),
                            .render_chat = chat_renderer(demo_model(), {}),
                            .sampling = recommended_sampling(demo_model()),
                            .max_context = opened.max_context(),
                            .ranks = ranks};
    opened.run_engine([&](Engine& engine) {
      serve(
          {.http = http, .shutdown_timeout = std::chrono::milliseconds(1000)},
          model,
          engine,
          [this] { return stop_.load(); },
          [this](int port) { started_.set_value(port); });
      return 0;
    });
  }

  std::optional<Model> model_;
  std::promise<int> started_;
  std::atomic<bool> stop_{false};
  int port_ = 0;
  std::thread thread_;
};

}  // namespace ferry::test
