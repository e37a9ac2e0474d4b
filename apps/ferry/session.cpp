#include "apps/ferry/session.h"

#include <spdlog/spdlog.h>

#include <memory>
#include <utility>

#include "apps/ferry/progress.h"
#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/kv_type.h"

namespace ferry {

namespace {

/// The end of the returned function is the end of the task.
LoadProgress show_progress(std::string_view what) {
  const auto progress = std::make_shared<Progress>(std::string(what), /*visible=*/true);
  return [progress](std::uint64_t done, std::uint64_t total) { progress->update(done, total); };
}

ModelListener log_to_stderr() {
  return {.info = [](const std::string& line) { spdlog::info("{}", line); },
          .warn = [](const std::string& line) { spdlog::warn("{}", line); },
          .loading = show_progress};
}

std::string described_groups(const DecoderOptions& o) {
  if (o.tp == 1) return {};
  if (o.expert_slices == 1) return fmt::format(" in groups of {}", o.tp);
  return fmt::format(" in groups of {}, experts in {} slices", o.tp, o.expert_slices);
}

}  // namespace

Session open_session(const RunOptions& options) {
  Session session{options, Model::open(options, options.quiet ? ModelListener{} : log_to_stderr())};
  static_cast<ModelOptions&>(session.options) = session.model.options();
  return session;
}

void check_prompt(const Session& session, const Request& request, const std::string& origin) {
  try {
    check_request(request, session.config().vocab, session.model.max_context());
  } catch (const ConfigError& e) {
    fail<ConfigError>("{}: {}", origin, e.what());
  }
}

double rate(std::uint64_t tokens, std::chrono::nanoseconds time) {
  const double seconds = std::chrono::duration<double>(time).count();
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
}

void print_summary(const Session& session, const EngineStats& stats) {
  const RunOptions& o = session.options;
  if (o.quiet) return;
  spdlog::info(
      "prefill {} tokens, {:.1f}/s; decode {} tokens, {:.1f}/s; {} rank{} x {} thread{}{}, {}, {}, "
      "{} weights, {}{}{}{}",
      stats.prefill_tokens,
      rate(stats.prefill_tokens, stats.prefill_time),
      stats.decode_tokens,
      rate(stats.decode_tokens, stats.decode_time),
      o.launch.ranks,
      o.launch.ranks == 1 ? "" : "s",
      o.threads,
      o.threads == 1 ? "" : "s",
      described_groups(o.decoder),
      o.launch.transport,
      backend_name(o.decoder.backend),
      session.model.held_as(),
      session.model.weights().int8_rows ? "int8 activations, " : "",
      o.decoder.kv_type
          ? fmt::format("keys and values as {}, ", kv_type_name(session.model.kv_type()))
          : "",
      arithmetic_name(o.numerics),
      o.decoder.experts_device
          ? fmt::format(", experts on {}", experts_device_name(o.decoder.experts_device))
          : "");
}

}  // namespace ferry
