// ExpertMover: brings experts' weights to where a new placement wants them, while steps go on.
//
// Rank 0 puts the maps of a plan to every rank and names the plan in the orders of a step. From
// then on every rank works out the same transfers, in the same order, and which bytes of them
// travel in which step, so nothing but the bytes has to be said. A layer is worked on at a time:
// its experts arrive in spare blocks; when the last byte is there, the layer's maps and blocks
// switch together on all ranks, before the same step, and the blocks that are no longer used
// become the spare ones. A newer
// plan takes the place of an older one between two layers; what had arrived of an unfinished layer
// is dropped. A move within a rank, or between ranks that map one another's blocks on one NUMA
// node, hands over the block and copies nothing: weights do not change, so slots may share a block,
// and one is spare when no slot of those ranks has it any more. Where replicas are chosen by
// shares, a plan has them, and they switch with the maps.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "ferry/balance/moves.h"
#include "ferry/core/function_ref.h"
#include "ferry/transport/transport.h"

namespace ferry {

/// What rank 0 tells all ranks about moves before a step.
struct MoveOrders {
  std::uint64_t plan = 0;      ///< number of the plan in work, from 1; 0 = none yet
  std::uint64_t switches = 0;  ///< version of the placement: layers switched before this step
  std::uint64_t bytes = 0;     ///< that a rank sends, and receives, at most in this step

  bool operator==(const MoveOrders&) const = default;
};

/// What a plan says of each layer.
struct PlacementPlan {
  std::vector<std::vector<ExpertId>> maps;   ///< [layer][P]
  std::vector<std::vector<float>> shares{};  ///< [layer][P] with MoverOptions::shares, else none
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
  using Blocks = std::vector<std::byte*>;  ///< [slots_per_rank], null where a slot is empty

  /// What a rank holds; the memory stays its owner's, who keeps all of it until the end.
  struct Holding {
    std::vector<Placement> placements;  ///< [layer], of equal shape, the same on all ranks
    std::vector<Blocks> blocks;         ///< [layer]
    Blocks spare;                       ///< as many as spare_blocks() says; none with `memory`
    /// Where every rank's blocks lie, if peers map it: [layer][local], then spare blocks, one for
    /// each local slot. Null: in memory of this rank alone.
    Region* memory = nullptr;
  };

  using OnSwitch = FunctionRef<void(int layer, const Placement&, const Blocks&)>;

  /// Spare blocks that a rank with such layers needs: those of a layer, and one for each empty
  /// slot.
  static std::size_t spare_blocks(const std::vector<Blocks>& layers);

  ExpertMover(const MoverOptions& options, Holding holding, Transport& transport);

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

  const std::vector<Blocks>& blocks() const { return blocks_[own_member()]; }

  std::uint64_t switches() const { return switches_; }

  std::uint64_t bytes_sent() const { return bytes_sent_; }  ///< by this rank to others

  std::uint64_t bytes_received() const { return bytes_received_; }

  /// Spent on copying those.
  std::chrono::nanoseconds copy_time() const { return copy_time_; }

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

  /// Bytes of this step's sends that come here: they are taken in before the next step.
  struct Arrival {
    Rank from = 0;
    std::byte* target = nullptr;
    std::size_t offset = 0;  ///< in the part of the region that they arrive in
    std::size_t bytes = 0;
  };

  Rank ranks() const { return transport_.size(); }

  std::size_t plan_words() const;
  Placement planned_layer(const PlacementPlan& plan, std::size_t layer) const;
  std::size_t in_offset(std::uint64_t step) const;
  std::size_t out_offset(std::uint64_t step) const;
  std::uint64_t puts_for(std::size_t bytes) const;
  void put(Rank peer, std::size_t to, std::size_t from, std::size_t bytes, int signal);
  void await(int signal, std::uint64_t count, const char* what, Rank peer);
  void gather(std::size_t at, std::size_t bytes, const char* what);
  void find_domain(const Holding& holding);
  void touch_memory(const Holding& holding);
  void exchange_hashes();
  void check_blocks(int layer) const;

  std::size_t own_member() const {
    return *member_of_[static_cast<std::size_t>(transport_.rank())];
  }

  void take_in();
  /// Whether the layer in work has all its experts, so that it switches before the next step.
  bool complete() const;
  std::vector<Blocks> blocks_behind(const Work& work) const;
  void switch_layer(OnSwitch on_switch);
  void adopt(std::uint64_t plan);
  void drop_work();
  bool in_force(std::size_t layer) const;
  bool start_layer();
  std::byte* take_spare();
  void add_transits();
  void send(std::size_t budget);
  void send_chunk(const Transit& transit, std::size_t bytes, std::size_t in_at, std::size_t out_at);

  const MoverOptions options_;
  Transport& transport_;
  const std::size_t slots_per_rank_;
  const bool direct_;  // peers' memory can be written
  // Each rank's part: the plan that came and, on rank 0, the plan to send; two buffers that bytes
  // arrive in and two that they leave from, for steps of even and odd number; all ranks' NUMA
  // nodes; with the canary, all ranks' hashes.
  std::size_t plan_bytes_ = 0;
  std::size_t buffer_bytes_ = 0;
  std::size_t nodes_at_ = 0;
  std::size_t hashes_at_ = 0;
  std::unique_ptr<Region> region_;
  std::uint64_t gathered_ = 0;  // puts from each rank so far, of gather()

  // Ranks of one domain hand blocks over. Each keeps the books of all of its own, in the same
  // order, so that nothing has to be said about blocks either.
  std::vector<int> domain_of_;                         // [R]
  std::vector<std::optional<std::size_t>> member_of_;  // [R] number within the own domain
  std::vector<Placement> placements_;                  // [layer]
  std::vector<std::vector<Blocks>> blocks_;            // [member][layer]
  Blocks spare_;                                       // of the domain

  std::uint64_t step_ = 0;
  std::uint64_t plans_announced_ = 0;
  std::uint64_t plan_ = 0;
  PlacementPlan planned_;       // the plan in work
  std::vector<int> order_;      // its layers
  std::size_t next_layer_ = 0;  // in order_: the one being worked on
  std::optional<Work> work_;
  std::uint64_t switches_ = 0;
  std::vector<std::vector<float>> shares_;  // [layer][P] in force
  std::vector<Arrival> arrivals_;
  std::vector<std::uint64_t> puts_expected_;        // [R] so far, from each rank
  std::vector<std::vector<std::uint64_t>> hashes_;  // [layer][expert], with the canary
  std::vector<std::size_t> sent_, received_;        // [R] bytes of the step, scratch of send()
  std::uint64_t bytes_sent_ = 0;
  std::uint64_t bytes_received_ = 0;
  std::chrono::nanoseconds copy_time_{};
};

}  // namespace ferry
