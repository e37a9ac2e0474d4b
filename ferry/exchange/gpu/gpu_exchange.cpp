#include "ferry/exchange/gpu/gpu_exchange.h"

#include <algorithm>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/exchange/compatibility.h"

namespace ferry {

namespace {

constexpr std::size_t kLine = 256;
constexpr const char* kPhases[] = {
    "dispatch_send", "dispatch_recv", "combine_send", "combine_recv"};
constexpr std::uint32_t kMasked = 1;  // copied to the device from here, at any time

void refuse(bool when, std::string_view what) {
  if (when) fail<ConfigError>("a GPU exchange has no {}", what);
}

[[noreturn]] void late(const std::string& what, Rank rank = -1) {
  throw TransportError(TransportError::Kind::timeout, rank, what);
}

std::size_t aligned(std::size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

/// Of this rank's own; with sums they lie in its part.
std::size_t in_slot_bytes(const gpu::GpuLayout& layout) {
  return layout.sums
             ? 0
             : static_cast<std::size_t>(layout.max_tokens * layout.topk) * sizeof(std::uint32_t);
}

std::size_t begins_bytes(const gpu::GpuLayout& layout) {
  return layout.sums ? static_cast<std::size_t>(layout.ranks * layout.slots) * sizeof(std::uint32_t)
                     : 0;
}

/// Of a row that experts write beside the results.
std::size_t output_bytes(const gpu::GpuLayout& layout) {
  return layout.results_as_written() ? 0 : static_cast<std::size_t>(layout.output_row_bytes);
}

}  // namespace

void check_gpu_options(const DispatcherOptions& o, int ranks) {
  check_options(o, ranks);
  refuse(o.exchange.hidden_partition, "hidden_partition");
  refuse(o.exchange.pipeline == ExchangeOptions::Pipeline::tiles,
         "tiles: choose a backend whose experts compute all rows at once");
  if (o.topk > kWarpThreads) {
    fail<ConfigError>(
        "a GPU exchange takes up to {} experts a token, not {}", kWarpThreads, o.topk);
  }
}

namespace gpu {

GpuLayout::GpuLayout(const DispatcherOptions& o, int num_ranks)
    : ranks(num_ranks),
      slots(o.slots_per_rank),
      topk(o.topk),
      max_tokens(o.max_tokens),
      tp(o.tp),
      list_tokens((o.max_tokens + o.tp - 1) / o.tp),
      hidden(o.hidden),
      result_columns(o.columns_of_results()),
      dispatch_wire(o.dispatch_wire),
      expert_type(o.expert_type),
      combine_wire(o.combine_wire),
      output_type(o.output_type()),
      padded(o.exchange.format == DispatchFormat::padded),
      pointers(o.exchange.format == DispatchFormat::row_pointers),
      row_weights(o.row_weights),
      masks(o.exchange.on_dead_rank == ExchangeOptions::OnDeadRank::mask),
      sums(o.exchange.reduce_at == ExchangeOptions::ReduceAt::rank_then_home),
      slot_capacity(std::int64_t{num_ranks} * list_tokens),
      alignment(o.row_alignment),
      dispatch_row_bytes(static_cast<std::int64_t>(wire_row_bytes(o.dispatch_wire, o.hidden))),
      expert_row_bytes(static_cast<std::int64_t>(wire_row_bytes(o.expert_type, o.hidden))),
      input_row_bytes(pointers ? static_cast<std::int64_t>(sizeof(std::byte*)) : expert_row_bytes),
      output_row_bytes(result_columns * static_cast<std::int64_t>(dtype_bytes(o.output_type()))),
      combine_row_bytes(static_cast<std::int64_t>(wire_row_bytes(o.combine_wire, result_columns))) {
  const auto lists = static_cast<std::size_t>(ranks) * static_cast<std::size_t>(slots);
  const auto tokens_of_list = static_cast<std::size_t>(list_tokens);
  const std::int64_t records = slot_capacity * std::min(topk, slots);
  expert_rows = padded ? slot_capacity * slots : records + alignment * slots;
  const auto take = [this](std::size_t bytes) {
    return std::exchange(part_bytes, part_bytes + aligned(bytes));
  };
  signals = take(kGpuSignals * static_cast<std::size_t>(ranks) * sizeof(std::uint64_t));
  counts = take(lists * sizeof(std::uint32_t));
  tokens = take(lists * tokens_of_list * sizeof(std::uint32_t));
  weights = take(row_weights ? lists * tokens_of_list * sizeof(float) : 0);
  result_rows = take(static_cast<std::size_t>(tp) * lists * sizeof(std::uint32_t));
  homes_tokens = take(sums ? static_cast<std::size_t>(ranks) * sizeof(std::uint32_t) : 0);
  const std::size_t routed = sums ? static_cast<std::size_t>(max_tokens * topk) : 0;
  routed_slots = take(routed * sizeof(SlotId));
  routed_places = take(routed * sizeof(std::uint32_t));
  routed_weights = take(routed * sizeof(float));
  stage = take(static_cast<std::size_t>(max_tokens * dispatch_row_bytes));
  results =
      take(static_cast<std::size_t>((sums ? slot_capacity : expert_rows) * combine_row_bytes));
}

}  // namespace gpu

GpuExchange::GpuExchange(const DispatcherOptions& options, Transport& transport, GpuQueue& queue)
    : options_(options), transport_(transport), queue_(queue) {
  // Every reserved byte of a device is paid for.
  options_.exchange.format = format_for(options_.exchange, /*reserved_costs=*/true);
  check_gpu_options(options_, transport.size());
  check_survives_deaths(options_, transport);
  args_.layout = gpu::GpuLayout(options_, transport.size());
  args_.rank = transport.rank();
  args_.timeout_ns = static_cast<std::uint64_t>(options_.timeout.count());
  const gpu::GpuLayout& layout = args_.layout;
  const std::size_t shared = gpu::ReceiveTokens::shared_bytes(layout);
  if (shared > queue.shared_bytes()) {
    fail<ConfigError>("{} slots on {} ranks need {} bytes of a block's shared memory; {} has {}",
                      layout.slots,
                      layout.ranks,
                      shared,
                      queue.name(),
                      queue.shared_bytes());
  }
  grid_ = {.blocks = queue.resident_blocks(gpu::kGpuBlockThreads),
           .threads = gpu::kGpuBlockThreads};
  const auto rows = static_cast<std::size_t>(layout.expert_rows);
  part_ = queue.allocate(layout.part_bytes);
  state_ = queue.allocate(sizeof(gpu::GpuState));
  in_slot_ = queue.allocate(in_slot_bytes(layout));
  input_ = queue.allocate(rows * static_cast<std::size_t>(layout.input_row_bytes));
  output_ = queue.allocate(rows * output_bytes(layout));
  weights_ = queue.allocate(layout.row_weights ? rows * sizeof(float) : 0);
  counts_ = queue.allocate(static_cast<std::size_t>(layout.slots) * sizeof(std::int32_t));
  offsets_ = queue.allocate(static_cast<std::size_t>(layout.slots) * sizeof(std::int64_t));
  begins_ = queue.allocate(begins_bytes(layout));
  parts_ = queue.allocate(static_cast<std::size_t>(layout.ranks) * sizeof(std::byte*));
  masked_ = queue.allocate(static_cast<std::size_t>(layout.ranks) * sizeof(std::uint32_t));
  masked_now_.resize(static_cast<std::size_t>(layout.ranks));
  if (layout.masks) lost_now_.resize(static_cast<std::size_t>(layout.max_tokens));
  lost_ = queue.allocate(lost_now_.size() * sizeof(std::uint32_t));
  lost_tokens_.reserve(lost_now_.size());
  meet();
  args_.parts = parts_->as<std::byte* const>();
  args_.state = state_->as<gpu::GpuState>();
  args_.masked = masked_->as<std::uint32_t>();
  args_.in_slot = layout.sums ? gpu::at<std::uint32_t>(part_->data(), layout.routed_places)
                              : in_slot_->as<std::uint32_t>();
}

GpuExchange::~GpuExchange() = default;

std::size_t GpuExchange::mem_size(const DispatcherOptions& options, int ranks) {
  DispatcherOptions o = options;
  o.exchange.format = format_for(o.exchange, /*reserved_costs=*/true);
  check_gpu_options(o, ranks);
  const gpu::GpuLayout layout(o, ranks);
  const auto rows = static_cast<std::size_t>(layout.expert_rows);
  return layout.part_bytes + sizeof(gpu::GpuState) + in_slot_bytes(layout) + begins_bytes(layout) +
         rows * (static_cast<std::size_t>(layout.input_row_bytes) + output_bytes(layout)) +
         (layout.row_weights ? rows * sizeof(float) : 0) +
         static_cast<std::size_t>(layout.slots) * (sizeof(std::int32_t) + sizeof(std::int64_t)) +
         (layout.masks ? static_cast<std::size_t>(layout.max_tokens) * sizeof(std::uint32_t) : 0) +
         static_cast<std::size_t>(layout.ranks) * (sizeof(std::uint32_t) + sizeof(std::byte*));
}

/// Tells the peers where this rank's part is, and opens theirs.
void GpuExchange::meet() {
  const std::vector<std::byte> own = queue_.share(*part_);
  const auto ranks = static_cast<std::size_t>(transport_.size());
  const std::unique_ptr<Region> region = transport_.allocate_region((ranks + 1) * own.size(), 1);
  const std::span<std::byte> memory = region->local();
  const std::span<std::byte> mine = memory.last(own.size());
  std::ranges::copy(own, mine.begin());
  for (Rank peer = 0; peer < transport_.size(); ++peer) {
    transport_.put({.region = region.get(),
                    .peer = peer,
                    .offset = static_cast<std::size_t>(transport_.rank()) * own.size(),
                    .source = mine});
  }
  if (transport_.wait(*region, 0, ranks, deadline_in(options_.timeout)) != WaitResult::reached)
    late("not all ranks of a GPU exchange came within the timeout");
  std::vector<std::byte*> parts(ranks, part_->data());
  for (std::size_t peer = 0; peer < ranks; ++peer) {
    if (static_cast<Rank>(peer) == transport_.rank()) continue;
    peers_.push_back(
        queue_.open(memory.subspan(peer * own.size(), own.size()), args_.layout.part_bytes));
    parts[peer] = peers_.back()->data();
  }
  queue_.copy(parts_->data(), parts.data(), ranks * sizeof(std::byte*));
  queue_.synchronise();
  if (transport_.barrier(deadline_in(options_.timeout)) != WaitResult::reached)
    late("not all ranks of a GPU exchange opened each other's memory within the timeout");
}

GpuExchange::Course& GpuExchange::enter(Phase expected, Phase next, std::string_view name) {
  const std::uint64_t capture = queue_.capturing();
  Course& course = capture != 0 ? captured_ : called_;
  // A capture that begins an exchange owes nothing to an earlier one, which may have been given up.
  if (capture != course.capture && expected == Phase::idle) course.phase = Phase::idle;
  FERRY_CHECK(course.phase == expected, "{} called out of turn, after {}", name, course.phase_name);
  course.capture = capture;
  course.phase = next;
  course.phase_name = name;
  return course;
}

void GpuExchange::launch(const GpuKernel& kernel, std::size_t shared_bytes) {
  queue_.launch(kernel,
                {.blocks = grid_.blocks, .threads = grid_.threads, .shared_bytes = shared_bytes});
}

void GpuExchange::dispatch_send(const GpuTokens& tokens) {
  Course& course = enter(Phase::idle, Phase::dispatch_sent, "dispatch_send");
  FERRY_CHECK(tokens.count >= 0 && tokens.count <= options_.max_tokens,
              "{} tokens; 0 to {} are possible",
              tokens.count,
              options_.max_tokens);
  FERRY_CHECK(tokens.slots != nullptr || tokens.count == 0, "no slots");
  FERRY_CHECK(!args_.layout.sums || tokens.weights != nullptr, "no weights, which ranks sum by");
  FERRY_CHECK(!options_.row_weights || tokens.row_weights != nullptr, "no row weights");
  if (!tokens.encoded && is_quantized(options_.dispatch_wire) && tokens.type == DType::f16)
    fail<ConfigError>("{} wires take f32 or bf16 rows, not f16",
                      wire_type_name(options_.dispatch_wire));
  course.args = args_;
  course.args.tokens = tokens.tokens;
  course.args.count = tokens.count;
  course.args.slots = tokens.slots;
  const bool in_stage = tokens.rows.base == registered_input().base && !tokens.rows.pointers;
  launch(gpu::SendTokens{.args = course.args,
                         .rows = in_stage ? RowsView{} : tokens.rows,
                         .type = tokens.type,
                         .encoded = tokens.encoded,
                         .row_weights = tokens.row_weights,
                         .sum_weights = tokens.weights},
         gpu::SendTokens::shared_bytes(args_.layout));
}

ExpertRows GpuExchange::dispatch_recv() {
  const Course& course = enter(Phase::dispatch_sent, Phase::dispatched, "dispatch_recv");
  launch(gpu::ReceiveTokens{.args = course.args,
                            .input = input_->data(),
                            .weights = weights_->as<float>(),
                            .counts = counts_->as<std::int32_t>(),
                            .offsets = offsets_->as<std::int64_t>(),
                            .begins = begins_->as<std::uint32_t>()},
         gpu::ReceiveTokens::shared_bytes(args_.layout));
  const gpu::GpuLayout& layout = args_.layout;
  const auto slots = static_cast<std::size_t>(layout.slots);
  const auto rows = static_cast<std::size_t>(layout.expert_rows);
  return {.format = options_.exchange.format,
          .place = queue_.place(),
          .counts = {counts_->as<const std::int32_t>(), slots},
          .offsets = {offsets_->as<const std::int64_t>(), slots},
          .in = layout.pointers
                    ? RowsView{.stride = layout.expert_row_bytes,
                               .pointers = input_->as<const std::byte* const>()}
                    : RowsView{.base = input_->data(), .stride = layout.expert_row_bytes},
          .in_type = options_.expert_type,
          .weights = {weights_->as<const float>(), layout.row_weights ? rows : 0},
          .out = {layout.results_as_written() ? part_->data() + layout.results : output_->data(),
                  layout.output_row_bytes},
          .out_type = layout.output_type,
          .hidden = layout.hidden};
}

void GpuExchange::combine_send() {
  const Course& course = enter(Phase::dispatched, Phase::combine_sent, "combine_send");
  if (args_.layout.sums) {
    launch(gpu::SendSums{.args = course.args,
                         .output = output_->data(),
                         .begins = begins_->as<const std::uint32_t>()},
           gpu::SendSums::shared_bytes(args_.layout));
    return;
  }
  launch(gpu::SendResults{.args = course.args,
                          .output = args_.layout.results_as_written() ? nullptr : output_->data(),
                          .counts = counts_->as<const std::int32_t>(),
                          .offsets = offsets_->as<const std::int64_t>()},
         gpu::SendResults::shared_bytes(args_.layout));
}

void GpuExchange::combine_recv(const GpuTarget& target) {
  const Course& course = enter(Phase::combine_sent, Phase::idle, "combine_recv");
  launch(gpu::SumResults{.args = course.args,
                         .weights = target.weights,
                         .rows = target.rows,
                         .type = target.type,
                         .accumulate = target.accumulate,
                         .lost = lost_->as<std::uint32_t>()},
         gpu::SumResults::shared_bytes(args_.layout));
}

MutableRowsView GpuExchange::registered_input() const {
  return {part_->data() + args_.layout.stage, args_.layout.dispatch_row_bytes};
}

void GpuExchange::synchronise() {
  queue_.refuse_in_capture("synchronise()");
  const gpu::GpuLayout& layout = args_.layout;
  gpu::GpuFaultRecord fault;
  queue_.copy(&fault, &args_.state->fault, sizeof fault);
  if (layout.masks) {
    queue_.copy(masked_now_.data(), masked_->data(), masked_->size());
    queue_.copy(lost_now_.data(), lost_->data(), lost_->size());
  }
  queue_.synchronise();
  if (fault.kind != gpu::GpuFaultRecord::none) throw_fault(fault);
  if (layout.masks) learn_masks();
}

void GpuExchange::learn_masks() {
  for (Rank peer = 0; peer < args_.layout.ranks; ++peer)
    if (is_masked(peer)) transport_.mask(peer);
  lost_tokens_.clear();
  for (std::size_t token = 0; token < lost_now_.size(); ++token)
    if (lost_now_[token] != 0) lost_tokens_.push_back(static_cast<int>(token));
}

void GpuExchange::leave() {
  synchronise();
  const auto all_do = [&](std::string_view what) {
    if (transport_.barrier(deadline_in(options_.timeout)) != WaitResult::reached)
      late(fmt::format("not all ranks of a GPU exchange {} within the timeout", what));
  };
  all_do("ended theirs");
  peers_.clear();
  all_do("let go of the others' memory");
}

void GpuExchange::mask(Rank peer) {
  FERRY_CHECK(args_.layout.masks, "mask() of a GPU exchange that fails when a rank dies");
  FERRY_CHECK(peer >= 0 && peer < args_.layout.ranks && peer != args_.rank,
              "rank {} cannot be masked by rank {} of {}",
              peer,
              args_.rank,
              args_.layout.ranks);
  queue_.refuse_in_capture("mask()");
  queue_.copy(masked_->as<std::uint32_t>() + peer, &kMasked, sizeof kMasked);
  masked_now_[static_cast<std::size_t>(peer)] = kMasked;
  transport_.mask(peer);
}

void GpuExchange::throw_fault(const gpu::GpuFaultRecord& fault) const {
  using Kind = gpu::GpuFaultRecord;
  const auto rank = static_cast<Rank>(fault.rank);
  switch (fault.kind) {
    case Kind::no_tokens:
    case Kind::no_results:
      late(fmt::format("{}: nothing from rank {} within {} ms in exchange {}",
                       fault.kind == Kind::no_tokens ? "dispatch_recv" : "combine_recv",
                       rank,
                       args_.timeout_ns / 1'000'000,
                       fault.exchange),
           rank);
    case Kind::left_behind:
      throw TransportError(TransportError::Kind::aborted,
                           rank,
                           fmt::format("rank {} waited too long for this rank and went on without "
                                       "it; start it again with the next group",
                                       rank));
    case Kind::out_of_turn:
      fail<BrokenContract>(
          "{} ran out of turn behind exchange {}: launch a graph when no exchange is half done, "
          "and "
          "each of its graphs once",
          kPhases[fault.where],
          fault.exchange);
    case Kind::bad_count:
      fail<BrokenContract>("dispatch_send: the device says {} tokens; 0 to {} are possible",
                           fault.value,
                           fault.where);
    case Kind::bad_id:
      fail<BrokenContract>("dispatch_send: token {}: choice {} is slot {}, outside -1..{}",
                           fault.where / options_.topk,
                           fault.where % options_.topk,
                           fault.value,
                           args_.layout.ranks * args_.layout.slots - 1);
    default:
      throw TransportError(TransportError::Kind::io,
                           rank,
                           fmt::format("rank {} sent {} for slot {} in exchange {}: that cannot be",
                                       rank,
                                       fault.value,
                                       fault.where,
                                       fault.exchange));
  }
}

}  // namespace ferry
