#include "ferry/model/sparse_layers.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/exchange/gpu/cuda.h"
#include "ferry/transport/track.h"

namespace ferry {

namespace {

MoeContext::Options moe_options(const ModelConfig& config,
                                const DecoderOptions& options,
                                DType type,
                                int slots_per_rank,
                                TensorGroup& slices) {
  const MoeConfig& moe = config.moe;
  return {.router = moe.router,
          .dispatcher = expert_exchange(config, options, type, slots_per_rank, slices.self()),
          .two_batch_overlap = options.two_batch_overlap,
          .inter = moe.inter,
          .gating = moe.gating,
          .shared_inter = moe.shared_inter,
          .dtype = type,
          .slices = &slices};
}

/// The widest rows gathered are those between the experts' projections, and f32 results.
GroupGather::Options slice_options(const ModelConfig& config, const DecoderOptions& options) {
  return {.tp = options.expert_slices,
          .max_row_bytes = static_cast<std::size_t>(std::max(config.hidden, config.moe.inter)) *
                           dtype_bytes(DType::f32),
          .timeout = options.timeout};
}

/// Slices gather between the projections of every layer, which is for memory and not for a network.
void check_slice_hosts(int slices, const Transport& transport) {
  for (Rank rank = 0; rank < transport.size(); ++rank) {
    const Rank first = rank / slices * slices;
    if (transport.host_of(rank) == transport.host_of(first)) continue;
    fail<ConfigError>(
        "--expert-slices {}: ranks {} and {} share experts but no memory, being on two "
        "hosts; let each host have a multiple of {} ranks",
        slices,
        first,
        rank,
        slices);
  }
}

/// Asked for on the rank: a process that is yet to fork must not meet the driver. Kernels of
/// experts wait for nobody, so each rank may have the whole device.
std::unique_ptr<GpuQueue> own_device(const DecoderOptions& options, const Transport& transport) {
  if (!options.experts_device) return nullptr;
  if (*options.experts_device != kDeviceOfRank) return make_cuda_queue(*options.experts_device, 1);
  const CudaDevices found = find_cuda_devices();
  if (found.names.empty()) fail<ConfigError>("--experts-device cuda: {}", found.why_none);
  std::size_t before = 0;  // ranks of this host
  for (Rank rank = 0; rank < transport.rank(); ++rank)
    before += transport.host_of(rank) == transport.host_of(transport.rank()) ? 1 : 0;
  return make_cuda_queue(static_cast<int>(before % found.names.size()), 1);
}

std::unique_ptr<Transport> own_track(const ModelConfig& config,
                                     const DecoderOptions& options,
                                     Transport& transport) {
  const int slices = options.expert_slices;
  if (slices == 1 || config.sparse_layers() == 0) return nullptr;
  check_slices(options, config);
  check_slice_hosts(slices, transport);
  return std::make_unique<TrackTransport>(transport, slices, options.timeout);
}

}  // namespace

DispatcherOptions expert_exchange(const ModelConfig& config,
                                  const DecoderOptions& options,
                                  DType type,
                                  int slots_per_rank,
                                  const GroupMember& slice) {
  ExchangeOptions exchange = exchange_options(options.backend, options.deepep_mode);
  exchange.format = options.layout.value_or(exchange.format);
  exchange.fixed_format = options.layout.has_value();
  return {.exchange = exchange,
          .slots_per_rank = slots_per_rank,
          .hidden = config.hidden,
          .result_columns = static_cast<int>(slice.columns(config.hidden).size()),
          .topk = config.moe.topk,
          .max_tokens = options.max_tokens,
          .tp = options.tp / slice.tp,
          .dispatch_wire = options.dispatch_wire.value_or(wire_type(type)),
          .expert_type = wire_type(type),
          .combine_wire = options.combine_wire.value_or(wire_type(type)),
          .row_weights = config.moe.weigh_rows,
          .timeout = options.timeout};
}

void check_slices(const DecoderOptions& options, const ModelConfig& config) {
  const int slices = options.expert_slices;
  if (slices == 1 || config.sparse_layers() == 0) return;
  if (ceil_div(config.hidden, kPanelColumns) < slices) {
    fail<ConfigError>(
        "--expert-slices {}: this model's {} hidden columns are shared out in panels of "
        "{}, which are fewer",
        slices,
        config.hidden,
        kPanelColumns);
  }
  const ExchangeOptions exchange = exchange_options(options.backend, options.deepep_mode);
  if (exchange.reduce_at != ExchangeOptions::ReduceAt::home) {
    fail<ConfigError>(
        "--expert-slices {}: backend {} sums on each rank first; choose pplx or another "
        "that combines per expert",
        slices,
        backend_name(options.backend));
  }
  if (exchange.on_dead_rank == ExchangeOptions::OnDeadRank::mask) {
    fail<ConfigError>(
        "--expert-slices {}: backend {} goes on without a rank that dies, but every rank "
        "has a slice of its experts; choose pplx",
        slices,
        backend_name(options.backend));
  }
  if (options.combine_wire && is_quantized(*options.combine_wire)) {
    fail<ConfigError>(
        "--expert-slices {}: --combine-wire {} has scales for whole rows of results, of "
        "which no rank has all columns; choose f32 or bf16",
        slices,
        wire_type_name(*options.combine_wire));
  }
}

SparseLayers::SparseLayers(const ModelConfig& config,
                           const DenseWeights& dense,
                           ExpertWeights experts,
                           const DecoderOptions& options,
                           const Links& links,
                           StepClock* clock)
    : config_(config),
      rule_(options.replica_rule),
      sums_on_ranks_(exchange_options(options.backend, options.deepep_mode).reduce_at ==
                     ExchangeOptions::ReduceAt::rank_then_home),
      ranks_(links.transport.size()),
      slices_(slice_options(config, options), links.transport, links.group.pool()),
      own_track_(own_track(config, options, links.transport)),
      track_(own_track_ ? *own_track_ : links.transport),
      tp_(options.tp / slices_.tp()),
      holder_(track_.rank()),
      hosts_(equal_hosts(track_)),
      experts_(std::move(experts)),
      device_(own_device(options, links.transport)) {
  layers_.resize(static_cast<std::size_t>(config_.all_layers()));
  for (int i = 0; i < config_.all_layers(); ++i) {
    if (!config_.sparse(i)) continue;
    const DenseWeights::Layer& layer = dense.layers[static_cast<std::size_t>(i)];
    ExpertWeights::Layer& local = experts_.layers[static_cast<std::size_t>(i)];
    FERRY_CHECK(local.placement.ranks() == track_.size(),
                "experts placed on {} ranks, {} take part",
                local.placement.ranks(),
                track_.size());
    local.placement = with_choice(local.placement);
    if (!context_) {
      const int slots_per_rank = local.placement.slots_per_rank();
      MoeContext::Options own = moe_options(config_, options, dense.dtype, slots_per_rank, slices_);
      own.group = &links.group;
      own.experts_on = device_.get();
      own.clock = clock;
      context_.emplace(own, track_, links.group.pool());
    }
    MoeWeights weights{.router = layer.router.whole(),
                       .router_bias = layer.router_bias,
                       .selection_bias = layer.selection_bias,
                       .local = local.slots,
                       .shared = {},
                       .shared_gate = layer.shared_gate.whole()};
    if (config_.moe.shared_inter > 0) weights.shared = layer.shared.view;
    layers_[static_cast<std::size_t>(i)].emplace(*context_, local.placement, std::move(weights), i);
  }
}

void SparseLayers::forward(int layer, const RowsView& rows, int tokens, float* out) {
  layers_[static_cast<std::size_t>(layer)]->forward(rows, tokens, out);
}

void SparseLayers::check_nothing_lost() {
  if (context_) context_->check_nothing_lost();
}

ExchangeStats SparseLayers::exchange_stats() const {
  return context_ ? context_->exchange_stats() : ExchangeStats{};
}

std::vector<SourceStats> SparseLayers::source_stats() const {
  if (!context_) return {};
  const std::vector<SourceStats> on_track = context_->source_stats();
  std::vector<SourceStats> all(static_cast<std::size_t>(ranks_));
  const auto slices = static_cast<std::size_t>(slices_.tp());
  const auto slice = static_cast<std::size_t>(slices_.member());
  for (std::size_t holder = 0; holder < on_track.size(); ++holder)
    all[holder * slices + slice] = on_track[holder];
  return all;
}

std::chrono::nanoseconds SparseLayers::exchange_time() const {
  return context_ ? context_->exchange_time() : std::chrono::nanoseconds{};
}

/// What each slot takes of its expert's tokens: nothing on a rank that is gone.
std::vector<float> SparseLayers::shares_of(const Placement& placement) const {
  const auto slots = static_cast<std::size_t>(placement.slots());
  std::vector<float> shares =
      rule_ == ReplicaRule::weighted ? placement.shares() : std::vector<float>(slots, 1.0F);
  for (std::size_t slot = 0; slot < slots; ++slot) {
    // A plan may have given all to a rank that then died; those left take it over.
    constexpr float kLeast = 1e-6F;
    const bool gone = is_masked(placement.rank_of(static_cast<SlotId>(slot)));
    shares[slot] = gone ? 0.0F : std::max(shares[slot], kLeast);
  }
  return shares;
}

/// This rank's choice of replicas.
Placement SparseLayers::with_choice(const Placement& placement) const {
  const std::vector<float> shares = shares_of(placement);
  return placement.choosing({.shares = shares,
                             .source = holder_,
                             .nearest = rule_ == ReplicaRule::nearest,
                             .nodes = hosts_,
                             .tp = tp_});
}

void SparseLayers::count_rows(std::span<std::int32_t> slot_rows) {
  std::size_t next = 0;
  for (int i = 0; i < config_.all_layers(); ++i) {
    auto& moe = layers_[static_cast<std::size_t>(i)];
    if (!moe) continue;
    const std::size_t slots =
        slot_rows.empty() ? 0 : experts_.layers[static_cast<std::size_t>(i)].slots.size();
    moe->count_rows(slot_rows.subspan(next, slots));
    next += slots;
  }
  FERRY_CHECK(next == slot_rows.size(), "{} counters for {} slots", slot_rows.size(), next);
}

const Placement& SparseLayers::placement(int layer) const {
  return experts_.layers[static_cast<std::size_t>(layer)].placement;
}

std::vector<std::byte*> SparseLayers::blocks(int layer) {
  // The memory is this object's own and writable; only those who compute see it as constant.
  std::vector<std::byte*> blocks;
  for (const GatedFfnWeights& slot : experts_.layers[static_cast<std::size_t>(layer)].slots)
    blocks.push_back(const_cast<std::byte*>(slot.gate_up.data));
  return blocks;
}

std::size_t SparseLayers::block_bytes() const {
  std::size_t most = 0;
  for (const ExpertWeights::Layer& layer : experts_.layers)
    if (!layer.slots.empty()) most = std::max(most, expert_block_bytes(layer.slots.front()));
  FERRY_CHECK(most > 0, "no layer has experts");
  return most;
}

Region& SparseLayers::share_blocks(Transport& transport) {
  const std::size_t bytes = block_bytes();
  std::size_t count = 0;
  std::size_t slots_per_rank = 0;
  for (const ExpertWeights::Layer& layer : experts_.layers) {
    count += layer.slots.size();
    slots_per_rank = std::max(slots_per_rank, layer.slots.size());
  }
  region_ = transport.allocate_region((count + slots_per_rank) * bytes, /*num_signals=*/0);
  std::byte* next = region_->local().data();
  advise_huge_pages(next, region_->local().size());
  for (ExpertWeights::Layer& layer : experts_.layers) {
    for (GatedFfnWeights& slot : layer.slots) {
      if (slot.gate_up.data) {
        std::memcpy(next, slot.gate_up.data, expert_block_bytes(slot));
        slot = at_block(slot, next);
      }
      next += bytes;
    }
    layer.memory = Buffer();
  }
  experts_.more.clear();
  return *region_;
}

void SparseLayers::level_blocks() {
  const std::size_t bytes = block_bytes();
  const bool level = std::ranges::all_of(experts_.layers, [&](const ExpertWeights::Layer& layer) {
    return layer.slots.empty() || expert_block_bytes(layer.slots.front()) == bytes;
  });
  if (level) return;
  std::vector<ExpertWeights::Blocks> all;
  for (ExpertWeights::Layer& layer : experts_.layers) {
    if (layer.slots.empty()) continue;
    all.push_back({Buffer(layer.slots.size() * bytes), bytes});
    std::byte* next = all.back().memory.data();
    for (GatedFfnWeights& slot : layer.slots) {
      if (slot.gate_up.data == nullptr) continue;
      std::memcpy(next, slot.gate_up.data, expert_block_bytes(slot));
      slot = at_block(slot, std::exchange(next, next + bytes));
    }
    layer.memory = Buffer();
  }
  experts_.more = std::move(all);
}

std::vector<std::byte*> SparseLayers::spare_blocks(std::size_t count) {
  const std::size_t bytes = block_bytes();
  experts_.more.push_back({Buffer(count * bytes), bytes});
  const Buffer& memory = experts_.more.back().memory;
  std::vector<std::byte*> blocks;
  for (std::size_t i = 0; i < count; ++i) blocks.push_back(memory.data() + i * bytes);
  return blocks;
}

ExpertWeights SparseLayers::take_experts() {
  experts_.holder = {.rank = holder_, .slice = slices_.self()};
  if (!region_) return std::move(experts_);
  const std::size_t bytes = block_bytes();
  std::size_t count = 0;
  for (const ExpertWeights::Layer& layer : experts_.layers) count += layer.slots.size();
  experts_.more.push_back({Buffer(count * bytes), bytes});
  std::byte* next = experts_.more.back().memory.data();
  for (ExpertWeights::Layer& layer : experts_.layers) {
    for (GatedFfnWeights& slot : layer.slots) {
      if (!slot.gate_up.data) continue;
      std::memcpy(next, slot.gate_up.data, expert_block_bytes(slot));
      slot = at_block(slot, std::exchange(next, next + bytes));
    }
  }
  return std::move(experts_);
}

void SparseLayers::place_layer(int layer,
                               const Placement& placement,
                               std::span<std::byte* const> blocks) {
  ExpertWeights::Layer& experts = experts_.layers[static_cast<std::size_t>(layer)];
  FERRY_CHECK(config_.sparse(layer) && blocks.size() == experts.slots.size() &&
                  static_cast<int>(blocks.size()) == placement.slots_per_rank(),
              "layer {}: {} blocks for {} slots",
              layer,
              blocks.size(),
              experts.slots.size());
  // The layer borrows both, so it sees them from its next run on.
  experts.placement = with_choice(placement);
  for (std::size_t i = 0; i < blocks.size(); ++i)
    experts.slots[i] = at_block(experts.slots[i], blocks[i]);
}

void SparseLayers::check_no_expert_lost(int layer, Rank gone) const {
  const Placement& placement = experts_.layers[static_cast<std::size_t>(layer)].placement;
  for (ExpertId e = 0; e < placement.experts(); ++e) {
    const auto replicas = placement.replicas(e);
    const bool lost = std::ranges::all_of(
        replicas, [&](SlotId slot) { return is_masked(placement.rank_of(slot)); });
    if (!lost) continue;
    throw TransportError(
        TransportError::Kind::peer_died,
        gone,
        fmt::format("rank {} is gone, and expert {} of layer {} has no replica on another rank "
                    "(--ep-num-redundant-experts {} gives one to each)",
                    gone,
                    e,
                    layer,
                    placement.experts()));
  }
}

bool SparseLayers::has_replicas() const {
  for (int layer = 0; layer < config_.all_layers(); ++layer) {
    if (!config_.sparse(layer)) continue;
    const Placement& p = placement(layer);
    for (ExpertId e = 0; e < p.experts(); ++e)
      if (p.replicas(e).size() > 1) return true;
  }
  return false;
}

bool SparseLayers::masks() const { return context_ && context_->masks(); }

bool SparseLayers::is_masked(Rank rank) const { return masks() && context_->is_masked(rank); }

void SparseLayers::mask(Rank rank) {
  FERRY_CHECK(masks(), "this model's layers fail when a rank dies");
  context_->mask(rank);
  for (int layer = 0; layer < config_.all_layers(); ++layer) {
    if (!config_.sparse(layer)) continue;
    check_no_expert_lost(layer, rank);
    Placement& placement = experts_.layers[static_cast<std::size_t>(layer)].placement;
    placement = with_choice(placement);
  }
}

}  // namespace ferry
