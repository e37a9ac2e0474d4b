// A plan as it travels, in 32-bit words:
//   plan = hash of what follows (2 words), number of layers in the order, order [layers],
//          maps [layers][P], with shares: shares [layers][P], f32
#include "ferry/balance/expert_mover.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/core/timed.h"

namespace ferry {

namespace {

constexpr int kPlanSignal = 0;
constexpr std::size_t kPlanHeadWords = 3;
constexpr std::int64_t kAlignment = 64;
constexpr std::size_t kSmallestPage = 4096;

int bytes_signal(Rank from) { return 1 + from; }

int gather_signal(Rank from, int ranks) { return 1 + ranks + from; }

std::size_t aligned(std::size_t bytes) {
  return static_cast<std::size_t>(round_up(static_cast<std::int64_t>(bytes), kAlignment));
}

/// Four independent chains, so that it goes as fast as memory.
std::uint64_t hash_bytes(const std::byte* data, std::size_t bytes) {
  std::uint64_t h[4] = {1, 2, 3, 4};
  for (std::size_t i = 0; i + 8 <= bytes; i += 8) {
    std::uint64_t word;
    std::memcpy(&word, data + i, 8);
    std::uint64_t& chain = h[i / 8 % 4];
    chain = (chain ^ word) * 0x9E3779B97F4A7C15U;
    chain ^= chain >> 29;
  }
  return ((h[0] * 3 + h[1]) * 5 + h[2]) * 7 + h[3];
}

}  // namespace

std::size_t ExpertMover::spare_blocks(const std::vector<Blocks>& layers) {
  std::size_t spare = layers.front().size();
  for (const Blocks& blocks : layers)
    spare += static_cast<std::size_t>(std::count(blocks.begin(), blocks.end(), nullptr));
  return spare;
}

ExpertMover::ExpertMover(const MoverOptions& options, Holding holding, Transport& transport)
    : options_(options),
      transport_(transport),
      slots_per_rank_(holding.blocks.front().size()),
      direct_(transport.capabilities().load_store) {
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
  for (const Placement& placement : holding.placements) {
    FERRY_CHECK(placement.ranks() == ranks() &&
                    static_cast<std::size_t>(placement.slots_per_rank()) == slots_per_rank_,
                "a placement of {} slots on {} ranks",
                placement.slots(),
                placement.ranks());
  }
  placements_ = std::move(holding.placements);
  const auto all = static_cast<std::size_t>(ranks());
  plan_bytes_ = aligned(plan_words() * sizeof(std::int32_t));
  buffer_bytes_ = aligned(options.max_step_bytes);
  nodes_at_ = 2 * plan_bytes_ + 4 * buffer_bytes_;
  hashes_at_ = nodes_at_ + aligned(all * sizeof(std::int64_t));
  const std::size_t hash_bytes_of_all =
      options.canary ? all * placements_.size() * slots_per_rank_ * sizeof(std::uint64_t) : 0;
  region_ = transport.allocate_region(hashes_at_ + hash_bytes_of_all, 1 + 2 * ranks());
  puts_expected_.assign(all, 0);
  sent_.assign(all, 0);
  received_.assign(all, 0);
  find_domain(holding);
  touch_memory(holding);
  if (options.shares)
    for (const Placement& placement : placements_) shares_.push_back(placement.shares());
  if (options.canary) exchange_hashes();
}

/// The ranks whose blocks this one may have, itself included, and where those lie.
void ExpertMover::find_domain(const Holding& holding) {
  const auto all = static_cast<std::size_t>(ranks());
  const auto me = static_cast<std::size_t>(transport_.rank());
  auto* nodes = reinterpret_cast<std::int64_t*>(region_->local().data() + nodes_at_);
  nodes[me] = options_.numa_node;
  gather(nodes_at_, sizeof(std::int64_t), "NUMA node");
  domain_of_.resize(all);
  for (std::size_t rank = 0; rank < all; ++rank)
    domain_of_[rank] = static_cast<int>(holding.memory ? nodes[rank] : static_cast<int>(rank));
  member_of_.resize(all);
  if (!holding.memory) {
    member_of_[me] = 0;
    blocks_ = {holding.blocks};
    spare_ = holding.spare;
    return;
  }
  const std::size_t layers = placements_.size();
  for (std::size_t rank = 0; rank < all; ++rank) {
    if (domain_of_[rank] != domain_of_[me]) continue;
    std::byte* next = transport_.peer_window(*holding.memory, static_cast<Rank>(rank)).data();
    member_of_[rank] = blocks_.size();
    std::vector<Blocks>& held = blocks_.emplace_back(layers, Blocks(slots_per_rank_, nullptr));
    for (std::size_t i = 0; i < (layers + 1) * slots_per_rank_; ++i, next += options_.block_bytes) {
      const std::size_t layer = i / slots_per_rank_;
      const std::size_t local = i % slots_per_rank_;
      const auto slot = static_cast<SlotId>(rank * slots_per_rank_ + local);
      if (layer < layers && placements_[layer].expert_of(slot) >= 0)
        held[layer][local] = next;
      else
        spare_.push_back(next);
    }
  }
  FERRY_CHECK(blocks() == holding.blocks, "blocks do not lie in the shared memory as they should");
}

/// What weights travel through has its pages before a step needs them: the kernel clears new ones,
/// which takes longer than the copies.
void ExpertMover::touch_memory(const Holding& holding) {
  if (std::ssize(blocks_) == ranks()) return;  // none travel
  for (std::byte* const block : spare_) {
    const bool own = !holding.memory || (block >= holding.memory->local().data() &&
                                         block < std::to_address(holding.memory->local().end()));
    if (own) std::memset(block, 0, options_.block_bytes);
  }
  std::memset(region_->local().data() + in_offset(0), 0, 4 * buffer_bytes_);
  const bool maps_peers = direct_ && !transport_.capabilities().one_process;
  for (Rank peer = 0; maps_peers && peer < ranks(); ++peer) {
    const auto in = transport_.peer_window(*region_, peer).subspan(in_offset(0), 2 * buffer_bytes_);
    for (std::size_t i = 0; i < in.size(); i += kSmallestPage)
      static_cast<void>(*static_cast<volatile std::byte*>(in.data() + i));
  }
  // A peer that went on could write where this rank still clears.
  if (transport_.barrier(deadline_in(options_.timeout)) == WaitResult::timed_out) {
    throw TransportError(TransportError::Kind::timeout,
                         -1,
                         "moving experts: some rank did not get its memory ready in time");
  }
}

// --- Bytes ---------------------------------------------------------------------------------------

std::size_t ExpertMover::plan_words() const {
  const std::size_t layers = placements_.size();
  const auto slots = static_cast<std::size_t>(placements_.front().slots());
  return kPlanHeadWords + layers + layers * slots * (options_.shares ? 2 : 1);
}

std::size_t ExpertMover::in_offset(std::uint64_t step) const {
  return 2 * plan_bytes_ + step % 2 * buffer_bytes_;
}

std::size_t ExpertMover::out_offset(std::uint64_t step) const {
  return 2 * plan_bytes_ + (2 + step % 2) * buffer_bytes_;
}

std::uint64_t ExpertMover::puts_for(std::size_t bytes) const {
  const std::size_t most = transport_.capabilities().max_put_bytes;
  return bytes / most + (bytes % most != 0 ? 1 : 0);
}

void ExpertMover::put(Rank peer, std::size_t to, std::size_t from, std::size_t bytes, int signal) {
  const std::size_t most = transport_.capabilities().max_put_bytes;
  for (std::size_t done = 0; done < bytes;) {
    const std::size_t n = std::min(bytes - done, most);
    transport_.put({.region = region_.get(),
                    .peer = peer,
                    .offset = to + done,
                    .source = region_->local().subspan(from + done, n),
                    .signal = signal});
    done += n;
  }
}

/// `bytes` of each rank, [R] at `at`, come to all.
void ExpertMover::gather(std::size_t at, std::size_t bytes, const char* what) {
  const std::size_t own = at + static_cast<std::size_t>(transport_.rank()) * bytes;
  for (Rank peer = 0; peer < ranks(); ++peer)
    if (peer != transport_.rank())
      put(peer, own, own, bytes, gather_signal(transport_.rank(), ranks()));
  gathered_ += puts_for(bytes);
  for (Rank peer = 0; peer < ranks(); ++peer)
    if (peer != transport_.rank()) await(gather_signal(peer, ranks()), gathered_, what, peer);
}

void ExpertMover::await(int signal, std::uint64_t count, const char* what, Rank peer) {
  if (transport_.wait(*region_, signal, count, deadline_in(options_.timeout)) ==
      WaitResult::reached)
    return;
  throw TransportError(TransportError::Kind::timeout,
                       peer,
                       fmt::format("moving experts: rank {} sent no {} (expected {} puts, saw {})",
                                   peer,
                                   what,
                                   count,
                                   transport_.signal_value(*region_, signal)));
}

// --- The canary ----------------------------------------------------------------------------------

void ExpertMover::exchange_hashes() {
  const std::size_t per_rank = placements_.size() * slots_per_rank_;
  auto* all = reinterpret_cast<std::uint64_t*>(region_->local().data() + hashes_at_);
  const auto me = static_cast<std::size_t>(transport_.rank());
  for (std::size_t layer = 0; layer < placements_.size(); ++layer) {
    for (std::size_t local = 0; local < slots_per_rank_; ++local) {
      const std::byte* block = blocks()[layer][local];
      all[me * per_rank + layer * slots_per_rank_ + local] =
          block ? hash_bytes(block, options_.block_bytes) : 0;
    }
  }
  gather(hashes_at_, per_rank * sizeof(std::uint64_t), "hashes");

  for (std::size_t layer = 0; layer < placements_.size(); ++layer) {
    const Placement& placement = placements_[layer];
    std::vector<std::uint64_t>& hashes = hashes_.emplace_back();
    for (ExpertId e = 0; e < placement.experts(); ++e) {
      const SlotId slot = placement.replicas(e).front();
      const auto rank = static_cast<std::size_t>(placement.rank_of(slot));
      const std::size_t local = static_cast<std::size_t>(slot) % slots_per_rank_;
      hashes.push_back(all[rank * per_rank + layer * slots_per_rank_ + local]);
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
    FERRY_CHECK(hash_bytes(block, options_.block_bytes) == hashes_[l][static_cast<std::size_t>(e)],
                "sparse layer {}: slot {} of rank {} does not hold expert {}",
                layer,
                local,
                transport_.rank(),
                e);
  }
}

// --- Plans ---------------------------------------------------------------------------------------

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

  // This rank's own copy is the source, so the plan of before must have been read: it has, since
  // every rank has answered the step that adopted it.
  const std::size_t from = plan_bytes_;
  auto* words = reinterpret_cast<std::int32_t*>(region_->local().data() + from);
  std::int32_t* next = words + 2;
  *next++ = static_cast<std::int32_t>(order.size());
  std::copy(order.begin(), order.end(), next);
  next += layers;
  for (const auto& map : plan.maps) next = std::copy(map.begin(), map.end(), next);
  for (const auto& shares : plan.shares) {
    std::memcpy(next, shares.data(), shares.size() * sizeof(float));
    next += shares.size();
  }
  const std::size_t bytes = plan_words() * sizeof(std::int32_t);
  const std::uint64_t hash =
      hash_bytes(reinterpret_cast<std::byte*>(words + 2), (bytes - 8) / 8 * 8);
  std::memcpy(words, &hash, sizeof(hash));
  for (Rank peer = 0; peer < ranks(); ++peer) put(peer, 0, from, bytes, kPlanSignal);
  ++plans_announced_;
}

MoveOrders ExpertMover::orders(std::size_t bytes) const {
  return {.plan = plans_announced_,
          .switches = switches_ + (complete() ? 1 : 0),
          .bytes = std::min(bytes, options_.max_step_bytes)};
}

void ExpertMover::adopt(std::uint64_t plan) {
  FERRY_CHECK(plan == plan_ + 1, "plan {} behind plan {}", plan, plan_);
  const std::size_t bytes = plan_words() * sizeof(std::int32_t);
  await(kPlanSignal, plan * puts_for(bytes), "plan", 0);
  drop_work();
  plan_ = plan;
  const auto* words = reinterpret_cast<const std::int32_t*>(region_->local().data());
  std::uint64_t hash = 0;
  std::memcpy(&hash, words, sizeof(hash));
  FERRY_CHECK(
      hash == hash_bytes(reinterpret_cast<const std::byte*>(words + 2), (bytes - 8) / 8 * 8),
      "plan {} is damaged",
      plan);
  const std::int32_t* next = words + kPlanHeadWords;
  order_.assign(next, next + words[2]);
  next_layer_ = 0;
  next += placements_.size();
  const auto slots = static_cast<std::size_t>(placements_.front().slots());
  planned_.maps.resize(placements_.size());
  for (std::vector<ExpertId>& map : planned_.maps) {
    map.assign(next, next + slots);
    next += slots;
  }
  planned_.shares.assign(shares_.size(), std::vector<float>(slots));
  for (std::vector<float>& shares : planned_.shares) {
    std::memcpy(shares.data(), next, slots * sizeof(float));
    next += slots;
  }
}

// --- A layer -------------------------------------------------------------------------------------

void ExpertMover::drop_work() {
  if (!work_) return;
  for (const Transit& transit : work_->transits)
    if (transit.target && !transit.handed_over) spare_.push_back(transit.target);
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

std::byte* ExpertMover::take_spare() {
  FERRY_CHECK(!spare_.empty(), "no spare block is left");
  std::byte* const block = spare_.back();
  spare_.pop_back();
  return block;
}

void ExpertMover::add_transits() {
  const auto layer = static_cast<std::size_t>(work_->layer);
  for (Rank to = 0; to < ranks(); ++to) {
    for (const Transfer& receive : work_->moves.ranks[static_cast<std::size_t>(to)].receives) {
      const auto from = static_cast<std::size_t>(receive.peer);
      Transit transit{.from = receive.peer, .to = to, .from_local = receive.peer_local};
      transit.handed_over = domain_of_[from] == domain_of_[static_cast<std::size_t>(to)];
      if (transit.handed_over) transit.done = options_.block_bytes;
      if (member_of_[static_cast<std::size_t>(to)]) {
        transit.target =
            transit.handed_over
                ? blocks_[*member_of_[from]][layer][static_cast<std::size_t>(transit.from_local)]
                : take_spare();
      }
      work_->transits.push_back(transit);
    }
  }
}

bool ExpertMover::complete() const { return work_ && work_->first_open == work_->transits.size(); }

/// What the members' slots of the layer in work have once it has switched: [member][local].
std::vector<ExpertMover::Blocks> ExpertMover::blocks_behind(const Work& work) const {
  std::vector<Blocks> after(blocks_.size(), Blocks(slots_per_rank_, nullptr));
  auto transit = work.transits.begin();
  for (std::size_t rank = 0; rank < member_of_.size(); ++rank) {
    const RankMoves& moves = work.moves.ranks[rank];
    const auto first = transit;
    transit += std::ssize(moves.receives);
    if (!member_of_[rank]) continue;
    const Blocks& before = blocks_[*member_of_[rank]][static_cast<std::size_t>(work.layer)];
    Blocks& mine = after[*member_of_[rank]];
    for (std::size_t local = 0; local < slots_per_rank_; ++local) {
      const SlotId source = work.moves.source[rank * slots_per_rank_ + local];
      if (source >= 0 && static_cast<std::size_t>(source) / slots_per_rank_ == rank)
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
  std::vector<Blocks> after = blocks_behind(*work_);
  std::set<std::byte*> kept;
  for (const Blocks& blocks : after) kept.insert(blocks.begin(), blocks.end());
  for (std::size_t member = 0; member < blocks_.size(); ++member) {
    for (std::byte* block : blocks_[member][layer])
      if (block && kept.insert(block).second) spare_.push_back(block);
    blocks_[member][layer] = std::move(after[member]);
  }
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
  take_in();
  ++step_;
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

void ExpertMover::take_in() {
  for (const Arrival& arrival : arrivals_) {
    await(bytes_signal(arrival.from),
          puts_expected_[static_cast<std::size_t>(arrival.from)],
          "weights",
          arrival.from);
    const Timed timed(copy_time_);
    std::memcpy(
        arrival.target, region_->local().data() + in_offset(step_) + arrival.offset, arrival.bytes);
    bytes_received_ += arrival.bytes;
  }
  arrivals_.clear();
}

void ExpertMover::send(std::size_t budget) {
  if (budget == 0 || (!work_ && !start_layer())) return;
  std::fill(sent_.begin(), sent_.end(), 0);
  std::fill(received_.begin(), received_.end(), 0);
  std::vector<Transit>& transits = work_->transits;
  for (std::size_t i = work_->first_open; i < transits.size(); ++i) {
    Transit& transit = transits[i];
    std::size_t& out_at = sent_[static_cast<std::size_t>(transit.from)];
    std::size_t& in_at = received_[static_cast<std::size_t>(transit.to)];
    const std::size_t bytes =
        std::min({options_.block_bytes - transit.done, budget - out_at, budget - in_at});
    if (bytes == 0) continue;
    if (transit.from == transport_.rank()) send_chunk(transit, bytes, in_at, out_at);
    if (transit.to == transport_.rank()) {
      // Over mapped memory the bytes are written in place, and one empty put says so.
      puts_expected_[static_cast<std::size_t>(transit.from)] += direct_ ? 1 : puts_for(bytes);
      arrivals_.push_back({transit.from, transit.target + transit.done, in_at, bytes});
    }
    transit.done += bytes;
    out_at += bytes;
    in_at += bytes;
  }
  while (work_->first_open < transits.size() &&
         transits[work_->first_open].done == options_.block_bytes)
    ++work_->first_open;
}

void ExpertMover::send_chunk(const Transit& transit,
                             std::size_t bytes,
                             std::size_t in_at,
                             std::size_t out_at) {
  const Timed timed(copy_time_);
  const std::byte* source = blocks()[static_cast<std::size_t>(work_->layer)]
                                    [static_cast<std::size_t>(transit.from_local)] +
                            transit.done;
  const int signal = bytes_signal(transport_.rank());
  const std::size_t to = in_offset(step_) + in_at;
  if (direct_) {
    std::memcpy(transport_.peer_window(*region_, transit.to).data() + to, source, bytes);
    transport_.put({.region = region_.get(), .peer = transit.to, .signal = signal});
  } else {
    // Free again two steps later: the peer has taken these bytes in before it answers the next
    // one.
    const std::size_t from = out_offset(step_) + out_at;
    std::memcpy(region_->local().data() + from, source, bytes);
    put(transit.to, to, from, bytes, signal);
  }
  bytes_sent_ += bytes;
}

}  // namespace ferry
