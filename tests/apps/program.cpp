#include "apps/program.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <stdexcept>

namespace ferry::test {

namespace {

std::vector<char*> pointers(Arguments& strings) {
  std::vector<char*> result;
  for (std::string& s : strings) result.push_back(s.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace

std::string program_path() { return FERRY_PROGRAM; }

std::string mpirun_line() { return FERRY_MPIRUN; }

Program::Program(const Arguments& arguments, const Arguments& environment) {
  Arguments argv_strings = Arguments{program_path()} + arguments;
  Arguments env_strings = environment;
  for (char** e = environ; *e != nullptr; ++e) {
    // Tests decide on these; the first of two equal names counts.
    const std::string name(*e);
    if (!name.starts_with("FERRY_HOME=")) env_strings.push_back(name);
  }
  std::vector<char*> argv = pointers(argv_strings);
  std::vector<char*> env = pointers(env_strings);

  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  constexpr int kFlags = O_WRONLY | O_CREAT | O_APPEND;
  posix_spawn_file_actions_addopen(&files, 1, (directory_.path() / "out").c_str(), kFlags, 0600);
  posix_spawn_file_actions_addopen(&files, 2, (directory_.path() / "err").c_str(), kFlags, 0600);
  const int error =
      posix_spawn(&pid_, argv_strings[0].c_str(), &files, nullptr, argv.data(), env.data());
  posix_spawn_file_actions_destroy(&files);
  if (error != 0) throw std::runtime_error("cannot start " + program_path());
}

Program::~Program() {
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

std::vector<pid_t> Program::children() const {
  const std::string id = std::to_string(pid_);
  std::ifstream in("/proc/" + id + "/task/" + id + "/children");
  std::vector<pid_t> pids;
  for (pid_t pid; in >> pid;) pids.push_back(pid);
  return pids;
}

Outcome Program::wait() {
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  return {.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
          .out = read_file(directory_.path() / "out"),
          .err = read_file(directory_.path() / "err")};
}

Outcome output_of(const std::string& command) {
  std::FILE* const pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("cannot run a shell");
  Outcome outcome;
  std::array<char, 4096> part{};
  for (std::size_t n; (n = std::fread(part.data(), 1, part.size(), pipe)) > 0;)
    outcome.out.append(part.data(), n);
  outcome.status = WEXITSTATUS(pclose(pipe));
  return outcome;
}

void expect_one_line(const Outcome& outcome, int status, const std::string& text) {
  EXPECT_EQ(outcome.status, status) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_TRUE(outcome.err.starts_with("ferry: ")) << outcome.err;
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  EXPECT_NE(outcome.err.find(text), std::string::npos) << outcome.err << "should hold " << text;
}

}  // namespace ferry::test
