// The program: parses the command line, runs one subcommand, turns errors into one line and an
// exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "apps/ferry/command.h"
#include "apps/ferry/common_options.h"
#include "ferry/core/error.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {
namespace {

constexpr int kInterrupted = 130;

/// Ends this process at once. Ranks that are processes get the signal as well, from the terminal or
/// from the launcher; shared memory has no name that could stay behind.
extern "C" void end_interrupted(int) { _exit(kInterrupted); }

void handle_interrupts() {
  struct sigaction action {};

  action.sa_handler = end_interrupted;
  sigaction(SIGINT, &action, nullptr);
}

/// All logs go to stderr: stdout is for results.
void start_log() {
  auto log = spdlog::stderr_logger_mt("ferry");
  log->set_pattern("ferry: %v");
  spdlog::set_default_logger(std::move(log));
}

/// One line for what CLI11 refused; it tells an unknown subcommand only as a missing one.
int usage_error(const CLI::App& app, const CLI::ParseError& error, const char* first_argument) {
  std::string message = error.what();
  std::string help = "ferry --help";
  if (const auto used = app.get_subcommands(); !used.empty()) {
    help = fmt::format("ferry {} --help", used.front()->get_name());
  } else if (first_argument != nullptr && first_argument[0] != '-') {
    message = fmt::format("unknown subcommand \"{}\"", first_argument);
  }
  fmt::print(stderr, "ferry: {}; see {}\n", message, help);
  return 2;
}

/// Of ranks that a launcher started only rank 0 prints results; errors are everybody's.
void silence_other_ranks() {
  const auto world = started_world();
  if (!world || world->rank == 0) return;
  const UniqueFd nowhere(open("/dev/null", O_WRONLY | O_CLOEXEC));
  dup2(nowhere.get(), STDOUT_FILENO);
}

int run(int argc, char** argv) {
  silence_other_ranks();
  CLI::App app{"Tokenferry: mixture-of-experts models with the experts spread over ranks.",
               "ferry"};
  app.set_version_flag("--version", "ferry " FERRY_VERSION, "Print the version and exit");
  app.require_subcommand(1);
  app.get_formatter()->column_width(36);

  int status = 0;
  add_generate(app, status);
  add_serve(app, status);
  add_eval(app, status);
  add_inspect(app, status);
  add_make_model(app, status);
  add_quantize(app, status);
  add_doctor(app, status);
  add_bench(app, status);
  add_eplb(app, status);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(e);
    return usage_error(app, e, argc > 1 ? argv[1] : nullptr);
  }
  return status;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  ferry::handle_interrupts();
  try {
    ferry::start_log();
    return ferry::run(argc, argv);
  } catch (const ferry::ConfigError& e) {
    fmt::print(stderr, "ferry: {}\n", e.what());
    return 2;
  } catch (const std::exception& e) {
    fmt::print(stderr, "ferry: {}\n", e.what());
    return 1;
  }
}
