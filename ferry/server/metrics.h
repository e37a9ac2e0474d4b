// What /metrics tells, and what the dashboard draws beside it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ferry/engine/engine.h"
#include "ferry/runtime/engine_front.h"

namespace ferry {

/// What the engine's loop says about itself, taken between two steps.
struct EngineState {
  EngineStats stats;
  std::int64_t kv_capacity = 0;      ///< positions over all ranks
  std::vector<double> balancedness;  ///< of each sparse layer over the window; empty: not recorded
};

/// Counters and histograms in Prometheus' text format. Threads: any.
class Metrics : public RequestListener {
 public:
  Metrics();
  ~Metrics() override;

  void prompt_tokens(std::size_t tokens) override;
  void token(bool first, double since) override;
  void finished(double seconds) override;
  void cancelled() override;
  void refused() override;

  /// Quantiles in seconds, from the histograms' buckets.
  double first_token_quantile(double q) const;
  double next_token_quantile(double q) const;

  double generated_tokens() const;

  std::string text(const EngineState& state);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
