#include "ferry/server/operations.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/engine/load_dump.h"
#include "ferry/expert_load.h"
#include "ferry/server/pages.h"
#include "ferry/text/json_fields.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

/// Of the window, by sparse layer: what each expert and each rank had to do.
struct WindowLoad {
  int steps = 0;
  std::vector<std::vector<double>> experts;  // [layer][expert]
  std::vector<std::vector<double>> ranks;    // [layer][rank]
  std::vector<double> balancedness;          // [layer]
};

WindowLoad window_load_of(const Balancer& balancer, const ServedModel& model, int ranks) {
  const LoadRecorder& recorder = balancer.recorder();
  const ExpertLoad load = recorder.window_load();
  WindowLoad rows{.steps = recorder.window_steps()};
  int sparse = 0;
  for (int layer = 0; layer < model.config->all_layers(); ++layer) {
    if (!model.config->sparse(layer)) continue;
    const std::span<const double> experts = load.layer(sparse++);
    rows.experts.emplace_back(experts.begin(), experts.end());
    rows.ranks.push_back(rank_loads(experts, balancer.map_of_layer(layer), ranks));
    if (rows.steps > 0) rows.balancedness.push_back(balancedness(rows.ranks.back()));
  }
  return rows;
}

EngineState engine_state(EngineFront& front, const ServedModel& model, WindowLoad& rows) {
  EngineState state;
  front.between_steps([&](Engine& engine) {
    state.stats = engine.stats();
    state.kv_capacity = engine.kv_capacity();
    if (engine.balancer()) rows = window_load_of(*engine.balancer(), model, state.stats.ranks);
  });
  state.balancedness = rows.balancedness;
  return state;
}

double rate(std::uint64_t tokens, std::chrono::nanoseconds time) {
  const double seconds = std::chrono::duration<double>(time).count();
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
}

/// Seconds since the start, [rank][source].
Json waits_of(const EngineStats& stats) {
  Json rows = Json::array();
  const auto columns = static_cast<std::size_t>(stats.ranks);
  for (std::size_t pair = 0; pair < stats.sources.size(); ++pair) {
    if (pair % columns == 0) rows.push_back(Json::array());
    rows.back().push_back(static_cast<double>(stats.sources[pair].wait_ns()) * 1e-9);
  }
  return rows;
}

Json quantiles_of(const TimeCounts& times) {
  return {{"p50", times.quantile(0.5)}, {"p99", times.quantile(0.99)}};
}

/// The last minute, for numbers beside those since the start.
Json minute_of(const History& history) {
  const auto [slot, seconds] = history.last_minute();
  return {{"tokens_per_s", static_cast<double>(slot.tokens) / std::max(seconds, 1.0)},
          {"refused", slot.refused},
          {"errors", slot.errors},
          {"first_token_s", quantiles_of(slot.first_token)},
          {"next_token_s", quantiles_of(slot.next_token)},
          {"queue_s", quantiles_of(slot.queue)}};
}

/// What the dashboard draws.
HttpReply dashboard_state(EngineFront& front, const Metrics& metrics, const ServedModel& model) {
  WindowLoad rows;
  const EngineState state = engine_state(front, model, rows);
  const EngineStats& stats = state.stats;
  Json live = Json::array();
  for (const EngineFront::LiveRequest& r : front.live()) {
    live.push_back({{"id", r.id},
                    {"prompt_tokens", r.prompt_tokens},
                    {"tokens", r.tokens},
                    {"seconds", r.seconds}});
  }
  const auto quantiles = [](double p50, double p99) { return Json{{"p50", p50}, {"p99", p99}}; };
  return {.body = to_text(
              {{"model", model.name},
               {"setup",
                fmt::format("{} ranks, {}, {}, {} weights",
                            stats.ranks,
                            model.backend,
                            model.transport,
                            model.weights)},
               {"uptime", static_cast<double>(std::time(nullptr) - model.started)},
               {"running", stats.requests_running},
               {"waiting", stats.requests_waiting},
               {"kv", {{"used", stats.kv_tokens}, {"capacity", state.kv_capacity}}},
               {"steps", stats.steps},
               {"prefill_tokens", stats.prefill_tokens},
               {"generated", metrics.generated_tokens()},
               {"prefill_tokens_per_s", rate(stats.prefill_tokens, stats.prefill_time)},
               {"decode_tokens_per_s", rate(stats.decode_tokens, stats.decode_time)},
               {"first_token_s",
                quantiles(metrics.first_token_quantile(0.5), metrics.first_token_quantile(0.99))},
               {"next_token_s",
                quantiles(metrics.next_token_quantile(0.5), metrics.next_token_quantile(0.99))},
               {"minute", minute_of(metrics.history())},
               {"live", std::move(live)},
               {"epoch", stats.epoch},
               {"waits", waits_of(stats)},
               {"straggler", stats.straggler},
               {"load",
                {{"steps", rows.steps},
                 {"experts", rows.experts},
                 {"ranks", rows.ranks},
                 {"balancedness", rows.balancedness}}}})};
}

/// The last hour, a number for each slot that is over; times are medians.
HttpReply dashboard_history(const History& history) {
  std::vector<History::Slot> slots = history.slots();
  if (slots.size() > 1) slots.pop_back();  // it would look as if less had happened
  const auto column = [&](const auto& value) {
    Json numbers = Json::array();
    for (const History::Slot& slot : slots) numbers.push_back(value(slot));
    return numbers;
  };
  const auto seconds = static_cast<double>(History::kSlot.count());
  using Slot = History::Slot;
  return {.body = to_text(
              {{"seconds", seconds},
               {"slots", History::kSlots},
               {"tokens_per_s",
                column([&](const Slot& s) { return static_cast<double>(s.tokens) / seconds; })},
               {"in_flight", column([](const Slot& s) { return s.in_flight; })},
               {"refused", column([](const Slot& s) { return s.refused; })},
               {"errors", column([](const Slot& s) { return s.errors; })},
               {"first_token_s", column([](const Slot& s) { return s.first_token.quantile(0.5); })},
               {"next_token_s", column([](const Slot& s) { return s.next_token.quantile(0.5); })},
               {"queue_s", column([](const Slot& s) { return s.queue.quantile(0.5); })}})};
}

Balancer& need_recording(Engine& engine) {
  if (!engine.balancer())
    fail<ConfigError>("this model has no experts whose load could be recorded");
  return *engine.balancer();
}

/// SGLang's and vLLM's. Like theirs it does nothing while requests are there.
void add_flush_routes(RouteTable& routes, EngineFront& front) {
  const auto flush = [&](const HttpRequest&) -> HttpReply {
    bool done = false;
    front.between_steps([&](Engine& engine) { done = engine.forget_prefixes(); });
    if (!done)
      fail<ConfigError>(
          "requests run or wait, so prompts are still remembered; flush when there are none");
    return {.body = to_text({{"message", "no prompt is remembered any more"}})};
  };
  for (const char* path : {"/flush_cache", "/reset_prefix_cache"}) {
    routes.post(path, flush);
    routes.get(path, flush);
  }
}

void add_recording_routes(RouteTable& routes, EngineFront& front, const ServedModel& model) {
  const auto both = [&](const char* path, const HttpHandler& handler) {
    routes.post(path, handler);
    routes.get(path, handler);  // which SGLang takes as well
  };
  both("/start_expert_distribution_record", [&](const HttpRequest&) -> HttpReply {
    front.between_steps([](Engine& engine) { need_recording(engine).restart_recording(); });
    return {.body = to_text({{"message", "recording the load of experts from the next step on"}})};
  });
  both("/stop_expert_distribution_record", [&](const HttpRequest&) -> HttpReply {
    front.between_steps([](Engine& engine) { need_recording(engine).pause_recording(); });
    return {.body = to_text({{"message", "recording stopped; what was recorded is kept"}})};
  });
  both("/dump_expert_distribution_record", [&](const HttpRequest&) -> HttpReply {
    HttpReply reply;
    front.between_steps([&](Engine& engine) {
      if (need_recording(engine).recorder().window_steps() == 0)
        fail<ConfigError>("no step has been recorded");
      write_load_dump(
          *engine.balancer(), *model.config, [&](std::string_view text) { reply.body += text; });
    });
    return reply;
  });
}

}  // namespace

void add_operation_routes(RouteTable& routes,
                          EngineFront& front,
                          Metrics& metrics,
                          const ServedModel& model) {
  const auto health = [&](const HttpRequest&) -> HttpReply {
    front.check_open();
    return {.body = to_text({{"status", "ok"}})};
  };
  routes.get("/health", health, /*open=*/true);
  routes.get("/metrics", [&](const HttpRequest&) -> HttpReply {
    WindowLoad rows;
    return {.body = metrics.text(engine_state(front, model, rows)),
            .content_type = "text/plain; version=0.0.4"};
  });
  add_recording_routes(routes, front, model);
  add_flush_routes(routes, front);
  const auto add_page = [&](const char* path, std::string_view page) {
    routes.get(
        path,
        [page](const HttpRequest&) -> HttpReply {
          return {.body = std::string(page), .content_type = "text/html; charset=utf-8"};
        },
        /*open=*/true);
  };
  add_page("/", dashboard_html());
  add_page("/chat", chat_html());
  routes.get("/dashboard/state",
             [&](const HttpRequest&) { return dashboard_state(front, metrics, model); });
  routes.get("/dashboard/history",
             [&](const HttpRequest&) { return dashboard_history(metrics.history()); });
}

}  // namespace ferry
