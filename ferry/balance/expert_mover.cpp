#include "ferry/balance/expert_mover.h"

#include <algorithm>
#include <array>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/core/hash.h"
#include "ferry/transport/gather_words.h"

namespace ferry {

namespace {

/// Slots of a rank. Throws BrokenContract unless the parts of the holding fit one another.
std::size_t checked_slots(const MoverOptions& options,
                          const ExpertHolding& holding,
                          const Transport& transport) {
  FERRY_CHECK(holding.placements.size() == holding.blocks.size() &&
                  (holding.memory || holding.spare.size() >= spare_blocks(holding.blocks)),
              "{} placements, {} layers of blocks, {} spare ones",
              holding.placements.size(),
              holding.blocks.size(),
              holding.spare.size());
  FERRY_CHECK(options.block_bytes % 8 == 0 && options.block_bytes > 0 && options.max_step_bytes > 0,
              "blocks of {} bytes, {} a step",
              options.block_bytes,
              options.max_step_bytes);
  const std::size_t slots = holding.blocks.front().size();
  for (const Placement& placement : holding.placements) {
    FERRY_CHECK(placement.ranks() == transport.size() &&
                    static_cast<std::size_t>(placement.slots_per_rank()) == slots,
                "a placement of {} slots on {} ranks",
                placement.slots(),
                placement.ranks());
  }
  return slots;
}

PlanShape shape_of(const std::vector<Placement>& placements, bool shares) {
  return {.layers = placements.size(),
          .slots = static_cast<std::size_t>(placements.front().slots()),
          .shares = shares};
}

}  // namespace

ExpertMover::ExpertMover(const MoverOptions& options, ExpertHolding holding, Transport& transport)
    : options_(options),
      transport_(transport),
      slots_per_rank_(checked_slots(options, holding, transport)),
      wire_({.plan_words = shape_of(holding.placements, options.shares).words(),
             .step_bytes = options.max_step_bytes},
            options.timeout,
            transport),
      domain_(holding,
              gather_words(std::array{static_cast<std::uint64_t>(options.numa_node)},
                           "NUMA node",
                           options.timeout,
                           transport),
              options.block_bytes,
              transport),
      placements_(std::move(holding.placements)),
      sent_(static_cast<std::size_t>(transport.size()), 0),
      received_(static_cast<std::size_t>(transport.size()), 0) {
  if (!domain_.has_all()) wire_.touch_buffers();
  if (options.shares)
    for (const Placement& placement : placements_) shares_.push_back(placement.shares());
  if (options.canary) exchange_hashes();
}

// --- The canary ----------------------------------------------------------------------------------

void ExpertMover::exchange_hashes() {
  std::vector<std::uint64_t> own;
  for (const ExpertBlocks& layer : blocks())
    for (const std::byte* block : layer)
      own.push_back(block ? hash_bytes({block, options_.block_bytes}) : 0);
  const std::vector<std::uint64_t> all = gather_words(own, "hashes", options_.timeout, transport_);

  for (std::size_t layer = 0; layer < placements_.size(); ++layer) {
    const Placement& placement = placements_[layer];
    std::vector<std::uint64_t>& hashes = hashes_.emplace_back();
    for (ExpertId e = 0; e < placement.experts(); ++e) {
      const SlotId slot = placement.replicas(e).front();
      const auto rank = static_cast<std::size_t>(placement.rank_of(slot));
      const std::size_t local = static_cast<std::size_t>(slot) % slots_per_rank_;
      hashes.push_back(all[rank * own.size() + layer * slots_per_rank_ + local]);
    }
    check_blocks(static_cast<int>(layer));
  }
}

void ExpertMover::check_blocks(int layer) const {
  const auto l = static_cast<std::size_t>(layer);
  const Placement& placement = placements_[l];
  const auto first =
      static_cast<SlotId>(static_cast<std::size_t>(transport_.rank()) * slots_per_rank_);
  for (std::size_t local = 0; local < slots_per_rank_; ++local) {
    const ExpertId e = placement.expert_of(first + static_cast<SlotId>(local));
    const std::byte* block = blocks()[l][local];
    FERRY_CHECK((e < 0) == (block == nullptr), "layer {}, slot {}: expert {}", l, local, e);
    if (e < 0) continue;
    FERRY_CHECK(
        hash_bytes({block, options_.block_bytes}) == hashes_[l][static_cast<std::size_t>(e)],
        "sparse layer {}: slot {} of rank {} does not hold expert {}",
        layer,
        local,
        transport_.rank(),
        e);
  }
}

// --- Plans ---------------------------------------------------------------------------------------

PlanShape ExpertMover::plan_shape() const { return shape_of(placements_, options_.shares); }

/// Throws ConfigError where it cannot be.
Placement ExpertMover::planned_layer(const PlacementPlan& plan, std::size_t layer) const {
  const Placement& now = placements_[layer];
  Placement placement(plan.maps[layer], now.experts(), now.ranks());
  return options_.shares ? placement.choosing({.shares = plan.shares[layer]}) : placement;
}

void ExpertMover::announce(const PlacementPlan& plan, std::span<const int> order) {
  FERRY_CHECK(transport_.rank() == 0 && plans_announced_ == plan_,
              "plan {} is announced by rank {} while {} is in work",
              plans_announced_ + 1,
              transport_.rank(),
              plan_);
  const std::size_t layers = placements_.size();
  if (plan.maps.size() != layers)
    fail<ConfigError>("a plan of {} layers for {}", plan.maps.size(), layers);
  FERRY_CHECK(order.size() <= layers && plan.shares.size() == (options_.shares ? layers : 0),
              "{} layers in order and shares of {}, of {}",
              order.size(),
              plan.shares.size(),
              layers);
  const int slots = placements_.front().slots();
  for (std::size_t layer = 0; layer < layers; ++layer) {
    if (std::ssize(plan.maps[layer]) != slots)
      fail<ConfigError>("a plan of {} slots, {} are in force", plan.maps[layer].size(), slots);
    static_cast<void>(planned_layer(plan, layer));  // throws
  }
  // Every rank has had the plan of before: all have answered the step that adopted it.
  write_plan(plan_shape(), plan, order, wire_.next_plan());
  wire_.put_plan();
  ++plans_announced_;
}

MoveOrders ExpertMover::orders(std::size_t bytes) const {
  return {.plan = plans_announced_,
          .switches = switches_ + (complete() ? 1 : 0),
          .bytes = std::min(bytes, options_.max_step_bytes)};
}

void ExpertMover::adopt(std::uint64_t plan) {
  FERRY_CHECK(plan == plan_ + 1, "plan {} behind plan {}", plan, plan_);
  const std::span<const std::int32_t> words = wire_.plan(plan);
  drop_work();
  plan_ = plan;
  PlanMessage message = read_plan(plan_shape(), words);
  planned_ = std::move(message.plan);
  order_ = std::move(message.order);
  next_layer_ = 0;
}

// --- A layer -------------------------------------------------------------------------------------

void ExpertMover::drop_work() {
  if (!work_) return;
  for (const Transit& transit : work_->transits)
    if (transit.target && !transit.handed_over) domain_.give_back(transit.target);
  work_.reset();
  ++next_layer_;
}

/// Whether the plan in work wants the layer as it is.
bool ExpertMover::in_force(std::size_t layer) const {
  return std::ranges::equal(planned_.maps[layer], placements_[layer].expert_of_slots()) &&
         (!options_.shares || planned_.shares[layer] == shares_[layer]);
}

bool ExpertMover::start_layer() {
  for (; next_layer_ < order_.size(); ++next_layer_) {
    const int layer = order_[next_layer_];
    if (in_force(static_cast<std::size_t>(layer))) continue;
    Placement target = planned_layer(planned_, static_cast<std::size_t>(layer));
    LayerMoves moves =
        make_moves(placements_[static_cast<std::size_t>(layer)], target, equal_hosts(transport_));
    work_.emplace(Work{layer, std::move(target), std::move(moves), {}});
    add_transits();
    return true;
  }
  return false;
}

void ExpertMover::add_transits() {
  const auto layer = static_cast<std::size_t>(work_->layer);
  for (Rank to = 0; to < ranks(); ++to) {
    for (const Transfer& receive : work_->moves.ranks[static_cast<std::size_t>(to)].receives) {
      Transit transit{.from = receive.peer, .to = to, .from_local = receive.peer_local};
      transit.handed_over = domain_.together(receive.peer, to);
      if (transit.handed_over) transit.done = options_.block_bytes;
      if (domain_.has(to)) {
        const auto from_local = static_cast<std::size_t>(receive.peer_local);
        transit.target = transit.handed_over ? domain_.blocks(receive.peer)[layer][from_local]
                                             : domain_.take_spare();
      }
      work_->transits.push_back(transit);
    }
  }
}

bool ExpertMover::complete() const { return work_ && work_->first_open == work_->transits.size(); }

/// What the slots of the domain's ranks have once the layer in work has switched: [R][local].
std::vector<ExpertBlocks> ExpertMover::blocks_behind(const Work& work) const {
  std::vector<ExpertBlocks> after(static_cast<std::size_t>(ranks()));
  auto transit = work.transits.begin();
  for (Rank rank = 0; rank < ranks(); ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    const RankMoves& moves = work.moves.ranks[r];
    const auto first = transit;
    transit += std::ssize(moves.receives);
    if (!domain_.has(rank)) continue;
    const ExpertBlocks& before = domain_.blocks(rank)[static_cast<std::size_t>(work.layer)];
    ExpertBlocks& mine = after[r];
    mine.assign(slots_per_rank_, nullptr);
    for (std::size_t local = 0; local < slots_per_rank_; ++local) {
      const SlotId source = work.moves.source[r * slots_per_rank_ + local];
      if (source >= 0 && static_cast<std::size_t>(source) / slots_per_rank_ == r)
        mine[local] = before[static_cast<std::size_t>(source) % slots_per_rank_];
    }
    for (std::size_t i = 0; i < moves.receives.size(); ++i)
      mine[static_cast<std::size_t>(moves.receives[i].local)] =
          (first + static_cast<std::ptrdiff_t>(i))->target;
    // An expert that lies twice on a rank lies there once: both slots share the block.
    for (const LocalCopy& copy : moves.duplicates)
      mine[static_cast<std::size_t>(copy.to)] = mine[static_cast<std::size_t>(copy.from)];
  }
  return after;
}

void ExpertMover::switch_layer(OnSwitch on_switch) {
  const auto layer = static_cast<std::size_t>(work_->layer);
  domain_.switch_layer(layer, blocks_behind(*work_));
  placements_[layer] = std::move(work_->target);
  if (options_.shares) shares_[layer] = planned_.shares[layer];
  ++switches_;
  if (options_.canary) check_blocks(work_->layer);
  on_switch(work_->layer, placements_[layer], blocks()[layer]);
  work_.reset();
  ++next_layer_;
}

// --- Steps ---------------------------------------------------------------------------------------

void ExpertMover::begin_step(const MoveOrders& orders, OnSwitch on_switch) {
  wire_.begin_step();
  if (complete()) switch_layer(on_switch);
  FERRY_CHECK(orders.switches == switches_ && orders.bytes <= options_.max_step_bytes,
              "rank 0 expects {} switched layers, rank {} has {}; {} bytes a step",
              orders.switches,
              transport_.rank(),
              switches_,
              orders.bytes);
  if (orders.plan != plan_) adopt(orders.plan);
  send(orders.bytes);
}

void ExpertMover::send(std::size_t budget) {
  if (budget == 0 || (!work_ && !start_layer())) return;
  std::fill(sent_.begin(), sent_.end(), 0);
  std::fill(received_.begin(), received_.end(), 0);
  const auto layer = static_cast<std::size_t>(work_->layer);
  std::vector<Transit>& transits = work_->transits;
  for (std::size_t i = work_->first_open; i < transits.size(); ++i) {
    Transit& transit = transits[i];
    std::size_t& out_at = sent_[static_cast<std::size_t>(transit.from)];
    std::size_t& in_at = received_[static_cast<std::size_t>(transit.to)];
    const std::size_t bytes =
        std::min({options_.block_bytes - transit.done, budget - out_at, budget - in_at});
    if (bytes == 0) continue;
    if (transit.from == transport_.rank()) {
      const std::byte* block = blocks()[layer][static_cast<std::size_t>(transit.from_local)];
      wire_.send(transit.to, {block + transit.done, bytes}, in_at, out_at);
    }
    if (transit.to == transport_.rank())
      wire_.expect(transit.from, {transit.target + transit.done, bytes}, in_at);
    transit.done += bytes;
    out_at += bytes;
    in_at += bytes;
  }
  while (work_->first_open < transits.size() &&
         transits[work_->first_open].done == options_.block_bytes)
    ++work_->first_open;
}

}  // namespace ferry
