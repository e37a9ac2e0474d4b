// The POST routes over the demo model without sockets: for tests of single replies.
#pragma once

#include <algorithm>
#include <filesystem>
#include <future>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "ferry/runtime/engine_front.h"
#include "ferry/runtime/model.h"
#include "ferry/server/messages_api.h"
#include "ferry/server/metrics.h"
#include "ferry/server/openai_api.h"
#include "ferry/server/responses_api.h"
#include "ferry/server/sglang_api.h"
#include "ferry/text/json_fields.h"
#include "server/replies.h"
#include "support/paths.h"

namespace ferry::test {

/// An engine on a thread of its own answers from construction to destruction.
class OfflineRoutes : public RouteTable {
 public:
  explicit OfflineRoutes(int max_context, const ThinkingStyle* thinking = nullptr)
      : options_{.max_context = max_context, .max_waiting = 8}, thinking_(thinking) {
    thread_ = std::thread([this] { run(); });
    started_.get_future().get();
  }

  ~OfflineRoutes() override {
    engine_->close();
    thread_.join();
  }

  using RouteTable::get;
  using RouteTable::post;

  void get(const std::string& /*path*/, HttpHandler /*handler*/, bool /*open*/) override {}

  void del(const std::string& /*path*/, HttpHandler /*handler*/) override {}

  void post(const std::string& path, HttpHandler handler, ErrorForm /*errors*/) override {
    handlers_[path] = std::move(handler);
  }

  /// Null where there is no such route.
  const HttpHandler* find(const std::string& path) const {
    const auto found = handlers_.find(path);
    return found == handlers_.end() ? nullptr : &found->second;
  }

  /// Throws what the route does. REQUIRES: it is there.
  HttpReply post(const std::string& path, const std::string& body) const {
    return handlers_.at(path)({.body = body, .peer = "127.0.0.1"});
  }

 private:
  void run() {
    const std::filesystem::path directory = test::source_dir() / "assets" / "demo-moe";
    const Model opened = Model::open({.model = directory,
                                      .weights = WeightType::bf16,
                                      .decoder = {.max_tokens = options_.max_tokens_per_step},
                                      .engine = options_});
    const ServedModel model{
        .name = "demo-moe",
        .path = directory.string(),
        .config = &opened.config(),
        .tokenizer = opened.tokenizer(),
        // Templates have an entry point of their own.
        .render_chat = [](const auto& messages,
                          const auto& /*options*/) { return to_text(messages).substr(0, 8); },
        .thinking = thinking_,
        .sampling = recommended_sampling(directory),
        .max_context = options_.max_context};
    opened.run_engine([&](Engine& engine) {
      Metrics metrics("demo-moe");
      EngineFront front(engine, &metrics);
      CallRegistry calls;
      ResponseStore responses;
      add_sglang_routes(*this, front, model, calls);
      add_openai_routes(*this, front, model, calls);
      add_messages_routes(*this, front, model, calls);
      add_responses_routes(*this, front, model, calls, responses);
      engine_ = &engine;
      engine.open();
      started_.set_value();
      engine.run([&](const TokenEvent& event) { front.on_token(event); });
      return 0;
    });
  }

  const EngineOptions options_;
  const ThinkingStyle* thinking_;
  std::map<std::string, HttpHandler> handlers_;
  Engine* engine_ = nullptr;
  std::promise<void> started_;
  std::thread thread_;
};

}  // namespace ferry::test
