// A server over the demo model in this process, and what tests say to it.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>

#include "ferry/model/decoder.h"
#include "ferry/server/server.h"
#include "ferry/transport/launch.h"
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

  const Tokenizer& tokenizer() const { return *tokenizer_; }

  /// As SIGTERM does.
  void stop() { stop_ = true; }

 private:
  void run(const EngineOptions& engine_options, const HttpOptions& http, int ranks) {
    const Checkpoint checkpoint = Checkpoint::open(demo_model());
    tokenizer_.emplace(Tokenizer::load(demo_model()));
    ThreadPool loader(1);
    const auto dense = std::make_shared<const DenseWeights>(
        load_dense_weights(checkpoint, {WeightType::bf16}, loader, /*progress=*/{}));
    const ServedModel model{
        .name = "demo-moe",
        .path = demo_model().string(),
        .config = &checkpoint.config(),
        .tokenizer = &*tokenizer_,
        .render_chat = {},
        .sampling = recommended_sampling(demo_model()),
        .max_context = resolve_context(checkpoint.config(), engine_options.max_context),
        .ranks = ranks};
    EngineOptions options = engine_options;
    options.balance.record = true;
    run_ranks({.transport = "inproc", .ranks = ranks}, [&](Transport& transport) {
      ThreadPool pool(1);
      Decoder decoder(
          checkpoint.config(),
          dense,
          load_expert_weights(checkpoint, {WeightType::bf16}, transport.rank(), ranks, pool, {}),
          {.max_tokens = options.max_tokens_per_step},
          transport,
          pool);
      Engine engine(options, decoder, transport);
      if (transport.rank() != 0) {
        engine.run({});
        return 0;
      }
      serve(
          {.http = http, .shutdown_timeout = std::chrono::milliseconds(1000)},
          model,
          engine,
          [this] { return stop_.load(); },
          [this](int port) { started_.set_value(port); });
      return 0;
    });
  }

  std::optional<Tokenizer> tokenizer_;
  std::promise<int> started_;
  std::atomic<bool> stop_{false};
  int port_ = 0;
  std::thread thread_;
};

}  // namespace ferry::test
