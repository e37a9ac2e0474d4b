// The program: parses the command line, runs one subcommand, turns errors into one line and an
// exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
#include <fmt/format.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "apps/ferry/command.h"
#include "ferry/core/error.h"

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

int usage_error(const std::string& message) {
  fmt::print(stderr, "ferry: {}; see ferry --help\n", message);
  return 2;
}

int run(int argc, char** argv) {
  CLI::App app{"Tokenferry: mixture-of-experts models with the experts spread over ranks.",
               "ferry"};
  app.set_version_flag("--version", "ferry " FERRY_VERSION, "Print the version and exit");
  app.require_subcommand(1);
  app.get_formatter()->column_width(36);

  int status = 0;
  add_generate(app, status);
  add_eval(app, status);
  add_inspect(app, status);
  add_make_model(app, status);
  add_doctor(app, status);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(e);
    return usage_error(e.what());
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
