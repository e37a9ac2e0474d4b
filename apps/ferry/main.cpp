// The program: parses the command line, runs one subcommand, turns errors into one line and an
// exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "ferry/core/error.h"
#include "ferry/transport/unique_fd.h"
#include "ferry/version.h"

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

/// Of ranks that a launcher started only rank 0 prints results; errors are everybody's.
void silence_other_ranks() {
  const auto world = started_world();
  if (!world || world->rank == 0) return;
  const UniqueFd nowhere(open("/dev/null", O_WRONLY | O_CLOEXEC));
  dup2(nowhere.get(), STDOUT_FILENO);
}

int run(int argc, char** argv) {
  silence_other_ranks();
  Command app("Tokenferry: mixture-of-experts models with the experts spread over ranks.",
              "ferry",
              "ferry " + std::string(version()));
  app.require_subcommand();

  int status = 0;
  add_generate(app, status);
  add_serve(app, status);
  add_chat(app, status);
  add_eval(app, status);
  add_inspect(app, status);
  add_make_model(app, status);
  add_quantize(app, status);
  add_pack(app, status);
  add_doctor(app, status);
  add_bench(app, status);
  add_eplb(app, status);
  add_simulate(app, status);

  if (const auto ended = app.parse(argc, argv)) return *ended;
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
