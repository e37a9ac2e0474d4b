// ferry serve: a model behind HTTP.
#include <fmt/core.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/elastic_start.h"
#include "apps/ferry/served_session.h"
#include "apps/ferry/session.h"
#include "ferry/core/error.h"
#include "ferry/core/types.h"
#include "ferry/kernels/kernels.h"
#include "ferry/server/server.h"

namespace ferry {

namespace {

constexpr int kInterrupted = 130;
/// Connections beside those that a full server's requests hold: clients keep them open.
constexpr int kSpareConnections = 4096;
/// Descriptors beside those of connections: the port, transports, files.
constexpr int kSpareDescriptors = 256;

struct ServeOptions {
  explicit ServeOptions(Command& app) : common(app) {}

  CommonOptions common;
  HttpOptions http;
  std::string name;
  ParserFlags parsers;
  int max_running = 0;
  std::int64_t max_total_tokens = 0;
  double mem_fraction = 0.8;
  int max_queued = 256;
  double shutdown_timeout_s = 30;
  bool no_access_log = false;
  bool elastic = false;
};

void add_options(Command& command, ServeOptions& o) {
  constexpr const char* kGroup = "Server";
  command.add_option("--host", o.http.host, "Address to listen on; 0.0.0.0 is open to everybody")
      ->type_name("H")
      ->capture_default_str()
      ->group(kGroup);
  command.add_option("--port", o.http.port, "0: any that is free")
      ->type_name("N")
      ->range(0, 65535)
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option("--api-key", o.http.api_key, "What clients must know; also from FERRY_API_KEY")
      ->type_name("KEY")
      ->envname("FERRY_API_KEY")
      ->group(kGroup);
  command
      .add_option("--allowed-origins",
                  o.http.allowed_origins,
                  "Whose pages may call from browsers: https://a.example, or * for everybody's")
      ->type_name("URL,...")
      ->delimiter(',')
      ->group(kGroup);
  command
      .add_option("--ssl-certfile",
                  o.http.ssl_certfile,
                  "Certificates in PEM, the server's own first: HTTPS instead of HTTP")
      ->type_name("FILE")
      ->group(kGroup);
  command
      .add_option("--ssl-keyfile",
                  o.http.ssl_keyfile,
                  "The certificate's private key in PEM [in --ssl-certfile]")
      ->type_name("FILE")
      ->group(kGroup);
  command
      .add_option("--ssl-keyfile-password",
                  o.http.ssl_keyfile_password,
                  "Of that file; also from FERRY_SSL_KEYFILE_PASSWORD")
      ->type_name("WORD")
      ->envname("FERRY_SSL_KEYFILE_PASSWORD")
      ->group(kGroup);
  command
      .add_option("--served-model-name",
                  o.name,
                  "What clients call the model [as on the Hub, or its directory's name]")
      ->type_name("NAME")
      ->group(kGroup);
  add_parser_options(command, o.parsers, kGroup);
  command
      .add_option("--max-running-requests",
                  o.max_running,
                  "Requests that run at once over all ranks [ranks x --max-sequences]")
      ->type_name("N")
      ->range(1, 1 << 16)
      ->group(kGroup);
  command
      .add_option("--max-total-tokens",
                  o.max_total_tokens,
                  "Positions of keys and values that all ranks may hold [what memory is left for]")
      ->type_name("N")
      ->positive()
      ->group(kGroup);
  command
      .add_option("--mem-fraction-static",
                  o.mem_fraction,
                  "Part of the memory left beside the weights that keys and values may fill")
      ->type_name("X")
      ->range(0.001, 1.0)
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option(
          "--max-queued-requests", o.max_queued, "That may wait; more are answered with 429")
      ->type_name("N")
      ->range(1, 1 << 20)
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option("--shutdown-timeout",
                  o.shutdown_timeout_s,
                  "Seconds for running requests to come to their end on SIGTERM")
      ->type_name("S")
      ->range(0.0, 86400.0)
      ->capture_default_str()
      ->group(kGroup);
  command.add_flag("--no-access-log", o.no_access_log, "No line for each request")->group(kGroup);
  command
      .add_flag("--elastic",
                o.elastic,
                "Ranks, each a process that is started by itself, may die, come back, come new and "
                "leave while requests run; all but rank 0")
      ->group(kGroup);
}

volatile sig_atomic_t stop_signals = 0;
volatile std::time_t first_signal = 0;

/// The first one asks for a good end, an impatient second SIGINT ends at once. Ranks that are
/// processes get one and the same ^C from the terminal and from their launcher, so a second counts
/// only a second later.
extern "C" void on_stop_signal(int signal) {
  const std::time_t now = std::time(nullptr);
  if (stop_signals == 0) first_signal = now;
  if (signal == SIGINT && stop_signals != 0 && now > first_signal + 1) _exit(kInterrupted);
  stop_signals = 1;
}

void catch_stop_signals() {
  struct sigaction action {};

  action.sa_handler = on_stop_signal;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
}

/// Of ranks that hold the same sequences.
int groups_of(const RunOptions& run) { return run.launch.ranks / run.decoder.tp; }

/// Requests that run at once in the beginning.
int running_at_start(const RunOptions& run) {
  return run.engine.max_running > 0 ? run.engine.max_running
                                    : groups_of(run) * run.engine.max_sequences_per_rank;
}

/// `run`: the options that all commands have.
RunOptions resolve(const ServeOptions& o, RunOptions run) {
  const int groups = groups_of(run);
  if (o.max_running > 0) {
    run.engine.max_running = o.max_running;
    run.engine.max_sequences_per_rank =
        static_cast<int>(ceil_div(static_cast<std::int64_t>(o.max_running), groups));
  } else if (!run.elastic) {
    run.engine.max_running = groups * run.engine.max_sequences_per_rank;
  }
  run.engine.max_waiting = o.max_queued;
  run.kv_memory_fraction = o.mem_fraction;
  if (o.max_total_tokens > 0) {
    run.engine.max_kv_tokens = o.max_total_tokens / groups;
    if (run.engine.max_kv_tokens < 1)
      fail<ConfigError>("--max-total-tokens {} are none for each of {} groups of ranks",
                        o.max_total_tokens,
                        groups);
  }
  run.engine.balance.record = true;  // for the dashboard
  return run;
}

void print_config(const ServeOptions& o,
                  const Session& session,
                  const ServedModel& model,
                  std::int64_t kv_capacity,
                  int port) {
  const RunOptions& run = session.options;
  spdlog::info(
      "{}: ep {}, tp {}, threads {}, {}, {}, {} weights, activations {}, {}; context {}, {} "
      "requests run and {} "
      "wait at most, keys and values of {} positions as {}; {}",
      model.name,
      run.launch.ranks,
      run.decoder.tp,
      run.threads,
      model.transport,
      model.backend,
      model.weights,
      model.activations,
      arithmetic_name(run.numerics),
      model.max_context,
      running_at_start(run),
      run.engine.max_waiting,
      kv_capacity,
      model.kv_type,
      o.http.api_key.empty() ? "no API key" : "with an API key");
  const char* scheme = o.http.ssl_certfile.empty() ? "http" : "https";
  spdlog::info("ready at {}://{}:{}", scheme, o.http.host, port);
}

/// Of so many connections, how many this process may have. Shells mostly let it raise their limit.
int allowed_connections(int wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;
  const rlim_t descriptors = static_cast<rlim_t>(wanted) + kSpareDescriptors;
  if (limit.rlim_cur < descriptors) {
    limit.rlim_cur = std::min(descriptors, limit.rlim_max);
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  if (limit.rlim_cur >= descriptors) return wanted;
  return std::max(static_cast<int>(limit.rlim_cur) - kSpareDescriptors, 1);
}

int run_server(const ServeOptions& o) {
  RunOptions common = o.common.resolve(o.elastic);
  std::optional<ElasticStart> elastic;
  if (o.elastic) elastic = start_elastic(common);
  const RunOptions run = resolve(o, common);
  ServerOptions options{.http = o.http,
                        .shutdown_timeout = std::chrono::milliseconds(
                            static_cast<std::int64_t>(o.shutdown_timeout_s * 1000))};
  options.http.max_connections =
      allowed_connections(running_at_start(run) + run.engine.max_waiting + kSpareConnections);
  options.http.access_log = !o.no_access_log && !run.quiet;
  const std::optional<World>& world = elastic ? run.elastic : run.launch.world;
  const bool leads = !world || world->rank == 0;
  if (leads) check_port(options.http);
  const Session session = open_session(run);
  const ServedModel model = served_model(session, o.name, o.parsers);
  // Others of an elastic group may be ended as any process; the group goes on.
  if (leads || !elastic) catch_stop_signals();
  const auto lead = [&](Engine& engine) {
    serve(
        options,
        model,
        engine,
        [] { return stop_signals != 0; },
        [&](int port) {
          if (!run.quiet) print_config(o, session, model, engine.kv_capacity(), port);
          if (run.json) {
            fmt::print("{}\n", nlohmann::json{{"host", o.http.host}, {"port", port}}.dump());
            std::fflush(stdout);
          }
        });
    print_summary(session, engine.stats());
    return 0;
  };
  if (!elastic) return session.model.run_engine(lead);
  elastic->options.join.agreement = session.options.launch.agreement;
  return run_elastic(
      session.model, elastic->options, *elastic->store, [&](Engine& engine, GroupSize& size) {
        options.group = &size;
        return lead(engine);
      });
}

}  // namespace

void add_serve(Command& app, int& status) {
  Command* command =
      app.add_subcommand("serve", "Answer HTTP requests: OpenAI's, Anthropic's and SGLang's APIs");
  auto options = std::make_shared<ServeOptions>(*command);
  add_options(*command, *options);
  command->callback([options, &status] { status = run_server(*options); });
}

}  // namespace ferry
