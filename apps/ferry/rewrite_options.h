// What the commands share that write a checkpoint again in another form.
#pragma once

#include <string>

#include "apps/ferry/command_line.h"
#include "ferry/core/threads.h"
#include "ferry/model/checkpoint.h"

namespace ferry {

/// Registered on a subcommand; must live until parsing is over.
struct RewriteOptions {
  std::string model = {};
  std::string out = {};
  int threads = 0;
  bool quiet = false;

  /// Registers --model, --out, --threads and --quiet.
  void add_to(Command& app);

  Checkpoint open() const;

  /// Of the pool that reads and writes.
  int num_threads() const;
};

}  // namespace ferry
