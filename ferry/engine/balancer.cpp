#include "ferry/engine/balancer.h"

#include <sched.h>

#include <algorithm>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/core/timed.h"

namespace ferry {

namespace {

/// Where memory that this thread touches first comes to lie.
int numa_node() {
  unsigned cpu = 0;
  unsigned node = 0;
  return getcpu(&cpu, &node) == 0 ? static_cast<int>(node) : 0;
}

}  // namespace

LoadPhase parse_load_phase(std::string_view name) {
  if (name == "all") return LoadPhase::all;
  if (name == "prefill") return LoadPhase::prefill;
  if (name == "decode") return LoadPhase::decode;
  fail<ConfigError>("unknown phase \"{}\": use one of all, prefill, decode", name);
}

Balancer::Balancer(const BalanceOptions& options,
                   Decoder& decoder,
                   Transport& transport,
                   std::chrono::nanoseconds timeout)
    : options_(options),
      config_(decoder.config()),
      experts_(decoder.sparse_layers()),
      transport_(transport),
      timeout_(timeout) {
  options_.rebalance.weighted = experts_.replica_rule() == ReplicaRule::weighted;
  options_.rebalance.nodes = equal_hosts(transport);
  for (int layer = 0; layer < config_.all_layers(); ++layer)
    if (config_.sparse(layer)) sparse_layers_.push_back(layer);
  FERRY_CHECK(!sparse_layers_.empty(), "nothing to balance in a model without experts");
  FERRY_CHECK(!options.rebalance.enabled || experts_.expert_slices() == 1,
              "experts in {} slices cannot move",
              experts_.expert_slices());
  slots_per_rank_ = static_cast<std::size_t>(placement(0).slots_per_rank());

  const std::size_t count = sparse_layers_.size() * slots_per_rank_;
  const std::size_t bytes = count * sizeof(std::int32_t);
  if (const std::size_t most = transport.capabilities().max_put_bytes; bytes > most) {
    fail<ConfigError>("counters of {} bytes, but transport {} puts at most {} at once",
                      bytes,
                      transport.name(),
                      most);
  }
  region_ = transport.allocate_region(bytes * (1 + static_cast<std::size_t>(transport.size())),
                                      transport.size());
  counters_ = {reinterpret_cast<std::int32_t*>(region_->local().data()), count};
  experts_.count_rows(counters_);
  if (options.rebalance.enabled) make_mover();
  if (transport.rank() != 0) return;
  recorder_.emplace(LoadRecorder::Options{.layers = static_cast<int>(sparse_layers_.size()),
                                          .experts = config_.moe.experts,
                                          .ranks = placement(0).ranks(),
                                          .window = options.window});
  if (mover_) rebalancer_.emplace(options_.rebalance, *recorder_, *mover_);
}

/// Ranks that are threads share their experts' memory. Processes could map it too, but the files
/// behind such memory get no huge pages, and steps are more than moves.
void Balancer::make_mover() {
  ExpertHolding holding;
  if (transport_.capabilities().one_process)
    holding.memory = &experts_.share_blocks(transport_);
  else
    experts_.level_blocks();
  for (const int layer : sparse_layers_) {
    holding.placements.push_back(experts_.placement(layer));
    holding.blocks.push_back(experts_.blocks(layer));
  }
  if (!holding.memory) holding.spare = experts_.spare_blocks(spare_blocks(holding.blocks));
  mover_.emplace(MoverOptions{.block_bytes = experts_.block_bytes(),
                              .max_step_bytes = largest_budget(options_.rebalance),
                              .shares = options_.rebalance.weighted,
                              .numa_node = numa_node(),
                              .canary = options_.rebalance.canary,
                              .timeout = timeout_},
                 std::move(holding),
                 transport_);
}

MoveOrders Balancer::orders() {
  step_began_ = std::chrono::steady_clock::now();
  return rebalancer_ && may_move_ ? rebalancer_->orders() : MoveOrders{};
}

std::optional<RebalanceStats> Balancer::rebalance_stats() const {
  if (!rebalancer_) return std::nullopt;
  return rebalancer_->stats();
}

Balancer::~Balancer() { experts_.count_rows({}); }

const Placement& Balancer::placement(std::size_t layer) const {
  return experts_.placement(sparse_layers_[layer]);
}

std::vector<ExpertId> Balancer::map_of_layer(int layer) const {
  const int slots = placement(0).slots();
  const auto to_vector = [](const Placement& p) {
    return std::vector<ExpertId>(p.expert_of_slots().begin(), p.expert_of_slots().end());
  };
  if (config_.sparse(layer)) return to_vector(experts_.placement(layer));
  std::vector<ExpertId> map(static_cast<std::size_t>(slots), -1);
  for (int slot = 0; slot < slots; ++slot)
    map[static_cast<std::size_t>(slot)] = slot % config_.moe.experts;
  return map;
}

std::span<std::int32_t> Balancer::counters_of(Rank rank) const {
  return {counters_.data() + (1 + static_cast<std::size_t>(rank)) * counters_.size(),
          counters_.size()};
}

void Balancer::begin_step(const std::optional<MoveOrders>& orders) {
  may_move_ = may_move_ && orders;
  if (mover_ && may_move_) {
    mover_->begin_step(
        *orders, [this](int layer, const Placement& placement, const ExpertBlocks& blocks) {
          experts_.place_layer(sparse_layers_[static_cast<std::size_t>(layer)], placement, blocks);
        });
  }
  const Timed timed(recording_time_);
  std::fill(counters_.begin(), counters_.end(), 0);
}

void Balancer::end_step() {
  const Timed timed(recording_time_);
  // Its source is free again when the next record comes: rank 0 sends that behind take_loads().
  const auto target = static_cast<std::size_t>(1 + transport_.rank()) * counters_.size_bytes();
  transport_.put({.region = region_.get(),
                  .peer = 0,
                  .offset = target,
                  .source = std::as_bytes(counters_),
                  .signal = transport_.rank()});
  ++steps_;
}

void Balancer::restart_recording() {
  recorder_->clear();
  paused_ = false;
}

void Balancer::pause_recording() {
  if (rebalancer_)
    fail<ConfigError>("--enable-eplb plans from the recorded load, so recording cannot stop");
  paused_ = true;
}

void Balancer::take_loads(bool prefill) {
  record_loads(prefill);
  if (rebalancer_ && may_move_)
    rebalancer_->end_step(std::chrono::steady_clock::now() - step_began_);
}

void Balancer::await_loads() const {
  for (Rank rank = 0; rank < transport_.size(); ++rank) {
    if (experts_.is_masked(rank)) continue;
    if (transport_.wait(*region_, rank, steps_, deadline_in(timeout_)) == WaitResult::timed_out) {
      throw TransportError(TransportError::Kind::timeout,
                           rank,
                           fmt::format("rank {} sent no load counters (expected {} times, saw {})",
                                       rank,
                                       steps_,
                                       transport_.signal_value(*region_, rank)));
    }
  }
}

void Balancer::record_loads(bool prefill) {
  const Timed timed(recording_time_);
  await_loads();
  // Ranks with slices of the same experts count the same rows, so one of them says how many.
  const int slices = experts_.expert_slices();
  for (Rank holder = 0; holder < placement(0).ranks(); ++holder) {
    if (experts_.is_masked(holder * slices)) continue;
    const std::span<const std::int32_t> counters = counters_of(holder * slices);
    for (std::size_t layer = 0; layer < sparse_layers_.size(); ++layer) {
      recorder_->add(static_cast<int>(layer),
                     holder,
                     counters.subspan(layer * slots_per_rank_, slots_per_rank_),
                     placement(layer));
    }
  }
  const bool counts = !paused_ && (options_.phase == LoadPhase::all ||
                                   (options_.phase == LoadPhase::prefill) == prefill);
  if (counts)
    recorder_->end_step();
  else
    recorder_->drop_step();
}

}  // namespace ferry
