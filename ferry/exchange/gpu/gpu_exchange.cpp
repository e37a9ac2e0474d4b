#include "ferry/exchange/gpu/gpu_exchange.h"

#include <algorithm>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/exchange/compatibility.h"

namespace ferry {

namespace {

constexpr const char* kPhases[] = {
    "dispatch_send", "dispatch_recv", "combine_send", "combine_recv"};
constexpr std::uint32_t kMasked = 1;  // copied to the device from here, at any time

void refuse(bool when, std::string_view what) {
  if (when) fail<ConfigError>("a GPU exchange has no {}", what);
}

[[noreturn]] void late(const std::string& what, Rank rank = -1) {
  throw TransportError(TransportError::Kind::timeout, rank, what);
}

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
  refuse(o.exchange.pipeline == ExchangeOptions::Pipeline::tiles,
         "tiles: choose a backend whose experts compute all rows at once");
  if (o.topk > kWarpThreads) {
    fail<ConfigError>(
        "a GPU exchange takes up to {} experts a token, not {}", kWarpThreads, o.topk);
  }
}

GpuExchange::GpuExchange(const DispatcherOptions& options,
                         Transport& transport,
                         GpuQueue& queue,
                         int ranks_per_host)
    : options_(options), transport_(transport), queue_(queue) {
  // Every reserved byte of a device is paid for.
  options_.exchange.format = format_for(options_.exchange, /*reserved_costs=*/true);
  check_gpu_options(options_, transport.size());
  check_survives_deaths(options_, transport);
  const std::vector<int> hosts = hosts_of_ranks(transport, ranks_per_host);
  check_gpu_hosts(hosts, options_, transport);
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
  to_ = queue.allocate(static_cast<std::size_t>(layout.ranks) * sizeof(gpu::GpuLink));
  from_ = queue.allocate(static_cast<std::size_t>(layout.ranks) * sizeof(gpu::GpuSource));
  masked_ = queue.allocate(static_cast<std::size_t>(layout.ranks) * sizeof(std::uint32_t));
  masked_now_.resize(static_cast<std::size_t>(layout.ranks));
  if (layout.masks) lost_now_.resize(static_cast<std::size_t>(layout.max_tokens));
  lost_ = queue.allocate(lost_now_.size() * sizeof(std::uint32_t));
  lost_tokens_.reserve(lost_now_.size());
  if (spans_hosts(hosts)) {
    network_ = std::make_unique<GpuNetwork>(layout, hosts, transport, queue);
    const auto lists =
        static_cast<std::size_t>(layout.ranks) * static_cast<std::size_t>(layout.slots);
    home_rows_ = queue.allocate(lists * sizeof(std::uint32_t));
    box_rows_ = queue.allocate(lists * sizeof(std::uint32_t));
    far_results_ = queue.allocate(static_cast<std::size_t>(layout.ranks) * sizeof(std::byte*));
  }
  meet();
  args_.part = part_->data();
  args_.to = to_->as<const gpu::GpuLink>();
  args_.from = from_->as<const gpu::GpuSource>();
  args_.state = state_->as<gpu::GpuState>();
  args_.masked = masked_->as<std::uint32_t>();
  args_.in_slot = layout.sums
                      ? reinterpret_cast<std::uint32_t*>(part_->data() + layout.routed_places)
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
         static_cast<std::size_t>(layout.ranks) *
             (sizeof(std::uint32_t) + sizeof(gpu::GpuLink) + sizeof(gpu::GpuSource));
}

/// Tells the peers where this rank's part is, and opens those of its host.
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
    const auto rank = static_cast<Rank>(peer);
    if (rank == transport_.rank() || (network_ != nullptr && network_->is_far(rank))) continue;
    peers_.push_back(
        queue_.open(memory.subspan(peer * own.size(), own.size()), args_.layout.part_bytes));
    parts[peer] = peers_.back()->data();
  }
  link_up(parts);
  if (transport_.barrier(deadline_in(options_.timeout)) != WaitResult::reached)
    late("not all ranks of a GPU exchange opened each other's memory within the timeout");
}

/// Tells the device where to write for each rank and where to read from it. `parts` of far ranks
/// are of no meaning.
void GpuExchange::link_up(const std::vector<std::byte*>& parts) {
  const gpu::GpuLayout& layout = args_.layout;
  std::vector<gpu::GpuLink> to;
  std::vector<gpu::GpuSource> from;
  std::vector<std::byte*> results;
  for (Rank peer = 0; peer < layout.ranks; ++peer) {
    std::byte* part = parts[static_cast<std::size_t>(peer)];
    const bool is_far = network_ != nullptr && network_->is_far(peer);
    to.push_back(is_far ? network_->to(peer) : layout.link(part, args_.rank));
    from.push_back(is_far ? network_->from(peer)
                          : layout.source(part, layout.link(part_->data(), peer)));
    results.push_back(network_ != nullptr ? network_->results(peer) : nullptr);
  }
  queue_.copy(to_->data(), to.data(), to_->size());
  queue_.copy(from_->data(), from.data(), from_->size());
  if (network_ != nullptr) {
    args_.far = network_->far();
    args_.far.results = far_results_->as<std::byte* const>();
    args_.far.home_rows = home_rows_->as<std::uint32_t>();
    args_.far.box_rows = box_rows_->as<std::uint32_t>();
    queue_.copy(far_results_->data(), results.data(), far_results_->size());
  }
  queue_.synchronise();
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
  const gpu::GpuRows from = {.rows = tokens.rows, .type = tokens.type, .encoded = tokens.encoded};
  if (network_ != nullptr) {
    const RowsView staged = {registered_input().base, registered_input().stride};
    launch(
        gpu::SendFarTokens{.args = course.args,
                           .from = in_stage ? gpu::GpuRows{.rows = staged, .encoded = true} : from},
        gpu::SendFarTokens::shared_bytes(args_.layout));
  }
  launch(gpu::SendTokens{.args = course.args,
                         .from = in_stage ? gpu::GpuRows{} : from,
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
                            .sum_rows = begins_->as<std::uint32_t>()},
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
  const bool as_written = args_.layout.results_as_written();
  if (network_ != nullptr) {
    launch(gpu::SendFarResults{.args = course.args,
                               .rows = as_written ? part_->data() + args_.layout.results
                                                  : output_->data(),
                               .encoded = as_written,
                               .counts = counts_->as<const std::int32_t>(),
                               .offsets = offsets_->as<const std::int64_t>()},
           gpu::SendFarResults::shared_bytes(args_.layout));
  }
  launch(gpu::SendResults{.args = course.args,
                          .output = as_written ? nullptr : output_->data(),
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
  network_ = nullptr;
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
    case Kind::no_link:
      network_->rethrow();
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
