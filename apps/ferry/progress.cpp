#include "apps/ferry/progress.h"

#include <fmt/core.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <utility>

namespace ferry {

namespace {

constexpr int kBarWidth = 30;
constexpr std::chrono::milliseconds kBarInterval{50};
constexpr std::chrono::seconds kLineInterval{5};

double percent(std::uint64_t done, std::uint64_t total) {
  return total == 0 ? 100.0 : 100.0 * static_cast<double>(done) / static_cast<double>(total);
}

double megabytes(std::uint64_t bytes) { return static_cast<double>(bytes) / 1e6; }

}  // namespace

Progress::Progress(std::string label, bool visible, std::string doing, std::string did)
    : label_(std::move(label)),
      doing_(std::move(doing)),
      did_(std::move(did)),
      visible_(visible),
      terminal_(isatty(STDERR_FILENO) == 1),
      exceptions_(std::uncaught_exceptions()),
      begin_(Clock::now()),
      shown_(begin_) {}

Progress::~Progress() {
  if (!visible_ || total_ == 0) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
  if (terminal_) fmt::print(stderr, "\r\x1b[K");
  if (std::uncaught_exceptions() > exceptions_) return;
  spdlog::info("{} {}: {:.1f} MB in {:.2f} s", did_, label_, megabytes(total_), seconds);
}

void Progress::draw_bar() const {
  const double share = percent(done_, total_);
  const int filled = static_cast<int>(share * kBarWidth / 100);
  fmt::print(stderr,
             "\r{} {} [{:=<{}}{:{}}] {:3.0f}% of {:.1f} MB",
             doing_,
             label_,
             "",
             filled,
             "",
             kBarWidth - filled,
             share,
             megabytes(total_));
  std::fflush(stderr);
}

void Progress::update(std::uint64_t done, std::uint64_t total) {
  done_ = done;
  total_ = total;
  if (!visible_) return;
  const Clock::time_point now = Clock::now();
  if (terminal_ && now - shown_ >= kBarInterval) {
    draw_bar();
    shown_ = now;
  } else if (!terminal_ && now - shown_ >= kLineInterval) {
    spdlog::info(
        "{} {}: {:.0f}% of {:.1f} MB", doing_, label_, percent(done, total), megabytes(total));
    shown_ = now;
  }
}

LoadProgress Progress::callback() {
  return [this](std::uint64_t done, std::uint64_t total) { update(done, total); };
}

}  // namespace ferry
