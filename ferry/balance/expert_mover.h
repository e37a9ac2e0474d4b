// ExpertMover: brings experts' weights to where a new placement wants them, while steps go on.
//
// Rank 0 puts the maps of a plan to every rank and names the plan in the orders of a step. From
// then on every rank works out the same transfers, in the same order, and which bytes of them
// travel in which step, so nothing but the bytes has to be said. A layer is worked on at a time:
// its experts arrive in spare blocks; when the last byte is there, the layer's maps and blocks
// switch together on all ranks, before the same step, and the blocks that are no longer used
// become the spare ones. A newer plan takes the place of an older one between two layers; what had
// arrived of an unfinished layer is dropped. A move within a rank, or between ranks of one domain
// (block_domain.h), hands over the block and copies nothing. Where replicas are chosen by shares, a
// plan has them, and they switch with the maps.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ferry/balance/block_domain.h"
#include "ferry/balance/move_wire.h"
#include "ferry/balance/plan_message.h"
#include "ferry/expert_moves.h"
#include "ferry/function_ref.h"
#include "ferry/transport.h"

namespace ferry {

/// What rank 0 tells all ranks about moves before a step.
struct MoveOrders {
  std::uint64_t plan = 0;      ///< number of the plan in work, from 1; 0 = none yet
  std::uint64_t switches = 0;  ///< version of the placement: layers switched before this step
  std::uint64_t bytes = 0;     ///< that a rank sends, and receives, at most in this step

  bool operator==(const MoveOrders&) const = default;
};

struct MoverOptions {
  std::size_t block_bytes = 0;     ///< weights of one expert, scales and all
  std::size_t max_step_bytes = 0;  ///< no orders have more
  bool shares = false;             ///< plans say which part of an expert each slot takes
  int numa_node = 0;               ///< that this rank's memory is on
  /// Compares every block that comes into use with what its expert's was in the beginning.
  bool canary = false;
  std::chrono::nanoseconds timeout = std::chrono::seconds(30);
};

/// One rank's end; construction is collective. Threads: one at a time. Errors: TransportError;
/// BrokenContract when ranks disagree about the orders or the canary finds other bytes.
class ExpertMover {
 public:
  using OnSwitch = FunctionRef<void(int layer, const Placement&, const ExpertBlocks&)>;

  ExpertMover(const MoverOptions& options, ExpertHolding holding, Transport& transport);

  /// Rank 0 only, between two steps: `plan` is the next one, its layers worked on in `order`.
  /// Throws ConfigError, and changes nothing, unless it holds every expert and has the shape of the
  /// placement in force.
  void announce(const PlacementPlan& plan, std::span<const int> order);

  /// Rank 0 only: the orders of the next step.
  MoveOrders orders(std::size_t bytes) const;

  /// Before a step: takes in what was sent in the last one, switches the layers that are complete,
  /// adopts a new plan, and sends the next bytes. All ranks with the same orders.
  void begin_step(const MoveOrders& orders, OnSwitch on_switch);

  /// Whether a plan is being carried out.
  bool moving() const { return next_layer_ < order_.size(); }

  const std::vector<Placement>& placements() const { return placements_; }

  const std::vector<ExpertBlocks>& blocks() const { return domain_.blocks(transport_.rank()); }

  std::uint64_t switches() const { return switches_; }

  std::uint64_t bytes_sent() const { return wire_.bytes_sent(); }  ///< by this rank to others

  std::uint64_t bytes_received() const { return wire_.bytes_received(); }

  /// Spent on copying those.
  std::chrono::nanoseconds copy_time() const { return wire_.copy_time(); }

 private:
  /// One expert on its way; all ranks keep the same list.
  struct Transit {
    Rank from = 0;
    Rank to = 0;
    int from_local = 0;
    bool handed_over = false;     ///< the block itself, not its bytes
    std::size_t done = 0;         ///< bytes that were sent in earlier steps
    std::byte* target = nullptr;  ///< what the slot will have, where that is one of this domain
  };

  /// The layer being worked on.
  struct Work {
    int layer = 0;
    Placement target;
    LayerMoves moves;
    std::vector<Transit> transits;  ///< in the order of the receives of rank 0, 1, ..
    std::size_t first_open = 0;     ///< those before it are complete
  };

  Rank ranks() const { return transport_.size(); }

  PlanShape plan_shape() const;
  Placement planned_layer(const PlacementPlan& plan, std::size_t layer) const;
  void exchange_hashes();
  void check_blocks(int layer) const;

  /// Whether the layer in work has all its experts, so that it switches before the next step.
  bool complete() const;
  std::vector<ExpertBlocks> blocks_behind(const Work& work) const;
  void switch_layer(OnSwitch on_switch);
  void adopt(std::uint64_t plan);
  void drop_work();
  bool in_force(std::size_t layer) const;
  bool start_layer();
  void add_transits();
  void send(std::size_t budget);

  const MoverOptions options_;
  Transport& transport_;
  const std::size_t slots_per_rank_;
  MoveWire wire_;
  BlockDomain domain_;
  std::vector<Placement> placements_;       // [layer]
  std::vector<std::vector<float>> shares_;  // [layer][P] in force

  std::uint64_t plans_announced_ = 0;
  std::uint64_t plan_ = 0;
  PlacementPlan planned_;       // the plan in work
  std::vector<int> order_;      // its layers
  std::size_t next_layer_ = 0;  // in order_: the one being worked on
  std::optional<Work> work_;
  std::uint64_t switches_ = 0;
  std::vector<std::vector<std::uint64_t>> hashes_;  // [layer][expert], with the canary
  std::vector<std::size_t> sent_, received_;        // [R] bytes of the step, scratch of send()
};

}  // namespace ferry
