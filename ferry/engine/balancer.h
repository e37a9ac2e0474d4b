// Balancing while the engine runs: what each slot has to do travels to rank 0 after every step, and
// where rank 0 finds a better placement, experts move between ranks while steps go on.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "ferry/balance/expert_mover.h"
#include "ferry/balance/recorder.h"
#include "ferry/engine/rebalancer.h"
#include "ferry/model/decoder.h"
#include "ferry/transport.h"

namespace ferry {

/// Which steps count. A step with any prompt token is a prefill step.
enum class LoadPhase : std::uint8_t { all, prefill, decode };

/// Throws ConfigError that lists the names for an unknown one.
LoadPhase parse_load_phase(std::string_view name);

/// All ranks must have the same.
struct BalanceOptions {
  bool record = false;  ///< count the rows of every slot in every step
  LoadPhase phase = LoadPhase::all;
  int window = 1000;  ///< steps that rank 0 keeps
  RebalanceOptions rebalance;

  bool on() const { return record || rebalance.enabled; }
};

/// One rank's end; construction is collective. Borrows decoder and transport. Threads: one at a
/// time. Recording allocates nothing in a step. Errors: TransportError.
class Balancer {
 public:
  /// REQUIRES: the decoder has a sparse layer.
  Balancer(const BalanceOptions& options,
           Decoder& decoder,
           Transport& transport,
           std::chrono::nanoseconds timeout);
  ~Balancer();
  Balancer(const Balancer&) = delete;
  Balancer& operator=(const Balancer&) = delete;

  /// Rank 0 only: what the next step's record says.
  MoveOrders orders();

  /// Behind the receipt of a step's record: carries out its orders; the counters start at 0.
  /// Without orders nothing moves from now on, since a rank is gone. All ranks alike.
  void begin_step(const std::optional<MoveOrders>& orders);
  /// Before the step's result is sent: the counters go to rank 0.
  void end_step();
  /// Rank 0 only: waits for the counters that take_loads() takes. May be called again after an
  /// error about a rank that is gone.
  void await_loads() const;
  /// Rank 0 only, when it has all results of the step and before it sends another record. Ranks
  /// that are gone count as idle.
  void take_loads(bool prefill);

  /// Rank 0 only, between two steps: forgets what was recorded and records from now on.
  void restart_recording();
  /// Rank 0 only, between two steps: keeps what was recorded and adds nothing. Throws ConfigError
  /// where rebalancing needs it.
  void pause_recording();

  /// On rank 0. Layers are the sparse layers of the model, in order.
  const LoadRecorder& recorder() const { return *recorder_; }

  /// On rank 0, where rebalancing is on.
  std::optional<RebalanceStats> rebalance_stats() const;

  /// What recording has cost this rank's steps so far.
  std::chrono::nanoseconds recording_time() const { return recording_time_; }

  /// The map in force in a layer of the model, [P] slot -> expert; a dense layer's is the identity.
  std::vector<ExpertId> map_of_layer(int layer) const;

 private:
  void make_mover();
  void record_loads(bool prefill);
  std::span<std::int32_t> counters_of(Rank rank) const;
  const Placement& placement(std::size_t layer) const;

  BalanceOptions options_;
  const ModelConfig& config_;
  SparseLayers& experts_;
  Transport& transport_;
  std::chrono::nanoseconds timeout_;
  std::vector<int> sparse_layers_;  // of the model
  std::size_t slots_per_rank_;
  // Each rank's part: its own counters [sparse layers][slots_per_rank], and on rank 0 everybody's.
  std::unique_ptr<Region> region_;
  std::span<std::int32_t> counters_;
  bool paused_ = false;
  bool may_move_ = true;
  std::uint64_t steps_ = 0;
  std::chrono::nanoseconds recording_time_{};
  std::optional<LoadRecorder> recorder_;  // on rank 0
  std::optional<ExpertMover> mover_;      // where rebalancing is on
  std::optional<Rebalancer> rebalancer_;  // on rank 0 then
  std::chrono::steady_clock::time_point step_began_;
};

}  // namespace ferry
