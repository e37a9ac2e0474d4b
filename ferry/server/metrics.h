// What /metrics tells, and what the dashboard draws beside it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ferry/engine/engine.h"
#include "ferry/runtime/engine_front.h"
#include "ferry/server/history.h"

namespace ferry {

/// What the engine's loop says about itself, taken between two steps.
struct EngineState {
  EngineStats stats;
  std::int64_t kv_capacity = 0;  ///< positions over all ranks
  std::vector<double>
      balancedness;  ///< of each sparse layer over the window; empty: nothing is counted
};

/// Counters and histograms in Prometheus' text format. Threads: any.
class Metrics : public RequestListener {
 public:
  /// `model`: what clients call it.
  explicit Metrics(const std::string& model);
  ~Metrics() override;

  void prompt_tokens(std::size_t tokens) override;
  void queued(double seconds) override;
  void token(bool first, double since) override;
  void ended(const EndedRequest& request) override;
  void refused() override;

  /// An answer of a route.
  void answered(const std::string& route, int status);

  /// Quantiles in seconds, from the histograms' buckets.
  double first_token_quantile(double q) const;
  double next_token_quantile(double q) const;

  double generated_tokens() const;

  const History& history() const;

  std::string text(const EngineState& state);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
