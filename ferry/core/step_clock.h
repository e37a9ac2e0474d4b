// Where the time of a rank's steps goes.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

namespace ferry {

/// Wall time of one rank's main thread by phase. A phase inside another interrupts it, so that no
/// moment counts twice. Costs a look at the clock at each border while it runs, else a branch.
/// Threads: one.
class StepClock {
 public:
  enum class Phase : std::uint8_t {
    other,  ///< embedding rows, plans, what stands between the phases
    norms,
    attention,
    dense_layers,
    router,
    exchange,  ///< dispatch and combine, waits for other ranks included
    shared_expert,
    experts,
    head,
  };
  static constexpr std::size_t kPhases = 9;

  static constexpr std::string_view name(Phase phase) {
    constexpr std::array<std::string_view, kPhases> kNames{"other",
                                                           "norms",
                                                           "attention",
                                                           "dense layers",
                                                           "router",
                                                           "exchange",
                                                           "shared expert",
                                                           "experts",
                                                           "head"};
    return kNames[static_cast<std::size_t>(phase)];
  }

  /// From nothing.
  void start() {
    spent_ = {};
    phase_ = Phase::other;
    since_ = Clock::now();
    runs_ = true;
  }

  void stop() {
    if (runs_) enter(Phase::other);
    runs_ = false;
  }

  std::chrono::nanoseconds spent(Phase phase) const {
    return spent_[static_cast<std::size_t>(phase)];
  }

  /// The phase lasts as long as the object. A null clock measures nothing.
  class [[nodiscard]] Scope {
   public:
    Scope(StepClock* clock, Phase phase)
        : clock_(clock != nullptr && clock->runs_ ? clock : nullptr) {
      if (clock_ != nullptr) before_ = clock_->enter(phase);
    }

    ~Scope() {
      if (clock_ != nullptr) clock_->enter(before_);
    }

    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    StepClock* clock_;
    Phase before_ = Phase::other;
  };

 private:
  using Clock = std::chrono::steady_clock;

  /// Returns the phase that ends.
  Phase enter(Phase phase) {
    const Clock::time_point now = Clock::now();
    spent_[static_cast<std::size_t>(phase_)] += now - since_;
    since_ = now;
    return std::exchange(phase_, phase);
  }

  std::array<std::chrono::nanoseconds, kPhases> spent_{};
  Phase phase_ = Phase::other;
  Clock::time_point since_;
  bool runs_ = false;
};

}  // namespace ferry
