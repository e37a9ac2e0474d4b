#include "ferry/transport/processes.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <vector>

#include "ferry/core/error.h"

namespace ferry {

namespace {

/// SIGINT and SIGTERM as a descriptor while the launcher waits.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, &saved_);
    fd_ = UniqueFd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  }

  ~BlockedSignals() { restore(); }

  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;

  void restore() const { pthread_sigmask(SIG_SETMASK, &saved_, nullptr); }

  int fd() const { return fd_.get(); }

  /// The signal that came, 0 for none.
  int take() const {
    signalfd_siginfo info{};
    return read(fd_.get(), &info, sizeof info) == sizeof info ? static_cast<int>(info.ssi_signo)
                                                              : 0;
  }

 private:
  sigset_t saved_{};
  UniqueFd fd_;
};

struct Child {
  pid_t pid = 0;
  UniqueFd process;
  bool ended = false;
};

void flush_output() {
  std::cout.flush();
  std::fflush(nullptr);
}

int guarded(const ProcessGroup& group, Rank rank) {
  try {
    return group.child(rank);
  } catch (const ConfigError& e) {
    fmt::print(stderr, "ferry: rank {}: {}\n", rank, e.what());
    return 2;
  } catch (const std::exception& e) {
    fmt::print(stderr, "ferry: rank {}: {}\n", rank, e.what());
  } catch (...) {
    fmt::print(stderr, "ferry: rank {}: an exception of unknown type\n", rank);
  }
  return 1;
}

[[noreturn]] void run_child(const ProcessGroup& group, Rank rank, pid_t launcher) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != launcher) _exit(1);  // it died before the line above
  const int status = guarded(group, rank);
  flush_output();
  _exit(status);  // the launcher's destructors and atexit handlers are not ours to run
}

void end_all(std::vector<Child>& children) {
  for (const Child& child : children) kill(child.pid, SIGKILL);
  for (const Child& child : children) waitpid(child.pid, nullptr, 0);
}

void start(const ProcessGroup& group, const BlockedSignals& signals, std::vector<Child>& children) {
  const pid_t launcher = getpid();
  for (Rank r = 0; r < group.ranks; ++r) {
    const pid_t pid = fork();
    if (pid == 0) {
      children.clear();  // closes what belongs to the launcher
      signals.restore();
      run_child(group, r, launcher);
    }
    const int fork_error = errno;
    if (pid > 0) children.push_back({.pid = pid, .process = open_process(pid)});
    if (pid < 0 || !children.back().process.valid()) {
      const int error = pid < 0 ? fork_error : errno;
      end_all(children);
      fail<ConfigError>("cannot start rank {} of {} as a process: {}; use fewer ranks",
                        r,
                        group.ranks,
                        std::strerror(error));
    }
  }
}

/// Exit status of a child that has ended, without reaping it: a process id must not be used again
/// while other ranks may still look at it.
int status_of(Rank rank, const Child& child, int interrupted_by) {
  siginfo_t info{};
  waitid(P_PID, static_cast<id_t>(child.pid), &info, WEXITED | WNOWAIT);
  if (info.si_code == CLD_EXITED) return info.si_status;
  if (info.si_status == interrupted_by) return 128 + interrupted_by;
  fmt::print(
      stderr, "ferry: rank {} (pid {}) was killed by signal {}\n", rank, child.pid, info.si_status);
  return 1;
}

/// Field 22 of /proc/<process>/task/<process>/stat; 0 when there is no such process any more. Its
/// first thread's, because qemu-user makes up the file that a process has of its own, another start
/// for each thread. Waits look for deaths by it, so it allocates nothing.
std::uint64_t start_of(pid_t pid) {
  std::array<char, 64> path{};
  fmt::format_to_n(path.data(), path.size() - 1, "/proc/{0}/task/{0}/stat", pid);
  const UniqueFd file(open(path.data(), O_RDONLY | O_CLOEXEC));
  std::array<char, 1024> text{};
  if (!file.valid() || read(file.get(), text.data(), text.size() - 1) <= 0) return 0;
  // The second field is the program's name, with any characters in it; the third stands behind.
  const char* at = std::strrchr(text.data(), ')');
  for (int field = 2; at != nullptr && field < 22; ++field) at = std::strchr(at + 1, ' ');
  return at == nullptr ? 0 : std::strtoull(at, nullptr, 10);
}

}  // namespace

UniqueFd open_process(pid_t pid) {
  return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
}

ProcessId this_process() { return {.pid = getpid(), .started = start_of(getpid())}; }

UniqueFd open_process(const ProcessId& process) {
  UniqueFd opened = open_process(process.pid);
  // Only now that the number stays reserved for whoever has it.
  if (opened.valid() && start_of(process.pid) != process.started) {
    opened = {};
    errno = ESRCH;
  }
  return opened;
}

bool has_ended(const UniqueFd& process) {
  pollfd p{.fd = process.get(), .events = POLLIN, .revents = 0};
  return poll(&p, 1, 0) == 1;
}

int run_processes(const ProcessGroup& group) {
  flush_output();  // else every child would print it again
  std::vector<Child> children;
  const BlockedSignals signals;
  start(group, signals, children);
  int status = 0;
  int interrupted_by = 0;
  for (std::size_t running = children.size(); running > 0;) {
    std::vector<pollfd> awaited;
    awaited.reserve(children.size() + 1);
    for (const Child& child : children) {
      awaited.push_back({child.ended ? -1 : child.process.get(), POLLIN, 0});
    }
    awaited.push_back({signals.fd(), POLLIN, 0});
    if (poll(awaited.data(), awaited.size(), -1) < 0) continue;  // EINTR
    if (const int signal = awaited.back().revents ? signals.take() : 0) {
      interrupted_by = signal;
      for (const Child& child : children) kill(child.pid, signal);
    }
    for (std::size_t r = 0; r < children.size(); ++r) {
      if (!awaited[r].revents) continue;
      children[r].ended = true;
      --running;
      if (group.ended) group.ended(static_cast<Rank>(r));
      status = std::max(status, status_of(static_cast<Rank>(r), children[r], interrupted_by));
    }
  }
  for (const Child& child : children) waitpid(child.pid, nullptr, 0);
  return status;
}

}  // namespace ferry
