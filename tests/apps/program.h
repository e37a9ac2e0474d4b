// Runs the real program and catches what it says.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

#include "support/files.h"

namespace ferry::test {

struct Outcome {
  int status = -1;  ///< exit status; 128 + signal when a signal ended it
  std::string out;
  std::string err;
};

/// The program that was built.
std::string program_path();

/// How ranks are started by mpirun; empty where there is none.
std::string mpirun_line();

using Arguments = std::vector<std::string>;

/// A running program with its own standard output and error.
class Program {
 public:
  /// `environment`: "NAME=value", on top of this process's own.
  explicit Program(const Arguments& arguments, const Arguments& environment = {});
  /// Ends it if it still runs.
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t pid() const { return pid_; }

  /// The processes it has started.
  std::vector<pid_t> children() const;

  /// What it has written to stdout so far.
  std::string out() const { return read_file(directory_.path() / "out"); }

  Outcome wait();

 private:
  TempDir directory_;
  pid_t pid_ = -1;
};

inline Outcome run_program(const Arguments& arguments, const Arguments& environment = {}) {
  return Program(arguments, environment).wait();
}

/// Of a shell command; `out` has both that it writes.
Outcome output_of(const std::string& command);

/// Arguments put together.
inline Arguments operator+(Arguments a, const Arguments& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Expects one line that begins with "ferry: " and holds `text`, nothing on stdout, and `status`.
void expect_one_line(const Outcome& outcome, int status, const std::string& text);

}  // namespace ferry::test
