// How far loading or writing is, for people: a bar on a terminal, plain lines otherwise; on stderr.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "ferry/model/weights.h"

namespace ferry {

/// One task with a known number of bytes. Ends its line when destroyed, and says that it is done
/// unless an exception ends it.
class Progress {
 public:
  /// `label`: "dense weights". Not visible: prints nothing. `doing` and `did`: what is done with
  /// it.
  Progress(std::string label,
           bool visible,
           std::string doing = "loading",
           std::string did = "loaded");
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(std::uint64_t done, std::uint64_t total);

  /// Refers to this object.
  LoadProgress callback();

 private:
  using Clock = std::chrono::steady_clock;

  void draw_bar() const;

  std::string label_;
  std::string doing_;
  std::string did_;
  bool visible_;
  bool terminal_;
  std::uint64_t done_ = 0;
  std::uint64_t total_ = 0;
  int exceptions_;  // in flight when it began
  Clock::time_point begin_;
  Clock::time_point shown_;
};

}  // namespace ferry
