#include "apps/ferry/load_report.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"
#include "ferry/engine/load_dump.h"

namespace ferry {

namespace {

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

void write_dump(const std::string& path, const Balancer& balancer, const ModelConfig& config) {
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "w"));
  if (!file) fail<Error>("{}: cannot be written", path);
  write_load_dump(balancer, config, [&](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), file.get());
  });
  if (std::fflush(file.get()) != 0 || std::ferror(file.get()) != 0)
    fail<Error>("{}: writing failed; is the disk full?", path);
}

/// What part of the steps' time went into recording.
double recording_share(const Balancer& balancer, std::chrono::nanoseconds step_time) {
  const std::chrono::duration<double> steps = step_time;
  const std::chrono::duration<double> recording = balancer.recording_time();
  return steps.count() > 0 ? recording / steps : 0.0;
}

std::chrono::nanoseconds step_time(const Engine& engine) {
  return engine.stats().prefill_time + engine.stats().decode_time;
}

}  // namespace

nlohmann::ordered_json load_json(const Engine& engine) {
  if (!engine.balancer()) return nullptr;
  return load_json(*engine.balancer(), step_time(engine));
}

nlohmann::ordered_json load_json(const Balancer& balancer, std::chrono::nanoseconds step_time) {
  const LoadMetrics metrics = balancer.recorder().metrics();
  nlohmann::ordered_json json{{"steps", metrics.steps},
                              {"balancedness", metrics.current},
                              {"last_10_average_balancedness", metrics.last_10},
                              {"last_100_average_balancedness", metrics.last_100},
                              {"last_1000_average_balancedness", metrics.last_1000},
                              {"rank_rows", metrics.rank_rows},
                              {"recording_share", recording_share(balancer, step_time)}};
  const std::optional<RebalanceStats> stats = balancer.rebalance_stats();
  if (!stats) return json;
  json["plans"] = stats->plans;
  json["plans_adopted"] = stats->plans_adopted;
  json["shares_renewed"] = stats->shares_renewed;
  json["plans_failed"] = stats->plans_failed;
  json["last_failure"] = stats->last_failure;
  json["layers_switched"] = stats->layers_switched;
  json["bytes_moved_by_rank_0"] = stats->bytes_moved;
  json["moving"] = stats->moving;
  json["predicted_balancedness"] = stats->predicted;
  json["achieved_balancedness"] =
      stats->settled ? nlohmann::ordered_json(metrics.since_mark) : nlohmann::ordered_json();
  json["achieved_steps"] = stats->settled ? metrics.steps_since_mark : 0;
  json["quiet_step_us"] = {{"p50", stats->quiet_step_us}, {"p99", stats->quiet_p99_us}};
  json["moving_step_us"] = {{"p50", stats->moving_step_us}, {"p99", stats->moving_p99_us}};
  json["moving_steps"] = stats->moving_steps;
  return json;
}

namespace {

void report_rebalancing(const RebalanceStats& stats, const LoadMetrics& metrics) {
  spdlog::info(
      "eplb: {} plans, {} carried out{}, {} layers switched, {:.1f} MB sent by rank 0; a step took "
      "{:.0f} us (p50; p99 {:.0f}), {} steps with moves {:.0f} us (p99 {:.0f})",
      stats.plans,
      stats.plans_adopted,
      stats.moving ? " (the last one not to the end)" : "",
      stats.layers_switched,
      static_cast<double>(stats.bytes_moved) * 1e-6,
      stats.quiet_step_us,
      stats.quiet_p99_us,
      stats.moving_steps,
      stats.moving_step_us,
      stats.moving_p99_us);
  if (stats.settled) {
    spdlog::info(
        "eplb: the last plan predicted a balancedness of {:.3f}; the {} steps since had {:.3f}",
        stats.predicted,
        metrics.steps_since_mark,
        metrics.since_mark);
  }
  if (stats.plans_failed > 0)
    spdlog::warn("eplb: {} plans failed, the last: {}", stats.plans_failed, stats.last_failure);
}

}  // namespace

void report_load(const Session& session, const Engine& engine) {
  if (engine.balancer()) report_load(session, *engine.balancer(), step_time(engine));
}

void report_load(const Session& session,
                 const Balancer& balancer,
                 std::chrono::nanoseconds step_time) {
  const LoadReportOptions& options = session.options.load_report;
  const LoadRecorder& recorder = balancer.recorder();
  if (options.metrics && !session.options.quiet) {
    const LoadMetrics m = recorder.metrics();
    spdlog::info(
        "expert load: balancedness {:.3f}, over the last 10 / 100 / 1000 of {} steps {:.3f} / "
        "{:.3f} / {:.3f}; rows of each rank in the last step {}; "
        "recording took {:.2f} % of the steps' time",
        m.current,
        m.steps,
        m.last_10,
        m.last_100,
        m.last_1000,
        fmt::join(m.rank_rows, " "),
        100 * recording_share(balancer, step_time));
  }
  const std::optional<RebalanceStats> stats = balancer.rebalance_stats();
  if (stats && !session.options.quiet) report_rebalancing(*stats, recorder.metrics());
  if (options.file.empty()) return;
  if (recorder.window_steps() == 0)
    fail<Error>("{}: no step was recorded, so there is nothing to write", options.file);
  write_dump(options.file, balancer, session.config());
  if (!session.options.quiet)
    spdlog::info("load of {} steps written to {}", recorder.window_steps(), options.file);
}

}  // namespace ferry
