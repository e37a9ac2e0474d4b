#include "ferry/exchange/row_receiver.h"

#include <algorithm>

namespace ferry {

namespace {

constexpr std::size_t kStreamedBytes = std::size_t{4} << 20;  // twice an L2

std::size_t input_bytes(const DispatcherOptions& options, const ExchangeLayout& layout) {
  return options.exchange.format == DispatchFormat::row_pointers
             ? 0
             : static_cast<std::size_t>(layout.expert_rows) * layout.expert_row_bytes;
}

std::size_t pointer_bytes(const DispatcherOptions& options, const ExchangeLayout& layout) {
  return options.exchange.format == DispatchFormat::row_pointers
             ? static_cast<std::size_t>(layout.expert_rows) * sizeof(void*)
             : 0;
}

std::size_t weight_bytes(const DispatcherOptions& options, const ExchangeLayout& layout) {
  return options.row_weights ? static_cast<std::size_t>(layout.expert_rows) * sizeof(float) : 0;
}

}  // namespace

std::size_t RowReceiver::memory_bytes(const DispatcherOptions& options,
                                      const ExchangeLayout& layout) {
  return input_bytes(options, layout) + pointer_bytes(options, layout) +
         weight_bytes(options, layout);
}

RowReceiver::RowReceiver(LaneState& lane,
                         PeerLink& link,
                         DispatchMessages& messages,
                         DataPlane& plane)
    : lane_(lane),
      link_(link),
      messages_(messages),
      plane_(plane),
      input_(plane.allocate(input_bytes(lane.options, lane.layout), /*sparse=*/true)),
      pointers_(plane.allocate(pointer_bytes(lane.options, lane.layout), /*sparse=*/true)),
      weights_(plane.allocate(weight_bytes(lane.options, lane.layout), /*sparse=*/true)),
      passed_(static_cast<std::size_t>(lane.ranks)),
      rows_expected_(static_cast<std::size_t>(lane.ranks)) {
  const auto slots = plane.runs_later() ? static_cast<std::size_t>(lane.options.slots_per_rank) : 0;
  offsets_ = plane.allocate(slots * sizeof(std::int64_t), /*sparse=*/false);
  counts_ = plane.allocate(slots * sizeof(std::int32_t), /*sparse=*/false);
  no_row_ = plane.allocate(lane.masks() ? lane.layout.expert_row_bytes : 0, /*sparse=*/true);
}

void RowReceiver::receive_messages() {
  lane_.chunks_of_all = 0;
  // This rank's own rows first: where their places depend on nobody else, they fill the wait.
  const Rank me = lane_.rank;
  messages_.receive(me);
  own_rows_taken_ = false;
  // Until the messages say, as much may arrive as leaves.
  arriving_bytes_ = static_cast<std::size_t>(lane_.tokens) *
                    static_cast<std::size_t>(lane_.options.topk) * lane_.layout.expert_row_bytes;
  const bool columns = lane_.options.exchange.hidden_partition;
  const bool kept = lane_.kept != nullptr;
  ReceivePlan& plan = lane_.built_receive_plan;
  if (!columns && (kept || plan.places_first_home_alone())) {
    const DispatchMessage& own = messages_.of(me);
    if (!kept && !plan.place_first_home(own.records, own.counts)) throw messages_.contradiction(me);
    bring(me);
    own_rows_taken_ = true;
  }
  for (const Rank home : lane_.relays.receive_order())
    if (home != me) messages_.receive(home);
  messages_.check_groups();
  arriving_bytes_ = 0;
  for (Rank home = 0; home < lane_.ranks; ++home)
    arriving_bytes_ += messages_.of(home).records.size() * lane_.layout.expert_row_bytes;
  if (kept) return;
  plan.build([this](Rank home) { return messages_.of(home).counts; });
  // Columns of a row come from all ranks to one place.
  if (columns && !plan.place(0, messages_.of(0).records)) throw messages_.contradiction(0);
}

void RowReceiver::take(Rank home) {
  if (home == lane_.rank && own_rows_taken_) return;
  if (lane_.kept == nullptr && !lane_.options.exchange.hidden_partition &&
      !lane_.built_receive_plan.place(home, messages_.of(home).records))
    throw messages_.contradiction(home);
  bring(home);
}

/// Waits for the rows of `home`, whose records have their places, and takes them there.
void RowReceiver::bring(Rank home) {
  const DispatchMessage& message = messages_.of(home);
  std::uint64_t& expected = rows_expected_[static_cast<std::size_t>(home)];
  expected += message.payload_puts;
  if (message.payload_puts && !link_.await(home, ExchangeSignal::dispatch_rows, expected)) {
    // The results of what stands in these places will go nowhere; but it must be memory.
    if (points()) point_at_nothing(home);
    messages_.forget(home);
    return;
  }
  lane_.sources[static_cast<std::size_t>(home)].rows_received += message.records.size();
  pass_on(home);
  copy(home, rows_from(home));
}

/// The records of `home`, with the places that they have.
ArrivedRows RowReceiver::rows_from(Rank home) const {
  const DispatchMessage& message = messages_.of(home);
  // Only rows pushed for each expert lie record by record; all others lie where the token lay.
  const bool by_record = !link_.reads(home) &&
                         lane_.options.exchange.send_per == ExchangeOptions::SendPer::token_expert;
  return {.rows = link_.rows_of(home),
          .row_bytes = lane_.layout.dispatch_row_bytes,
          .by_record = by_record,
          .records = message.records,
          .places = lane_.receive_plan().places(lane_.source_of(home)),
          .weights = message.row_weights,
          .weights_to = weights_->as<float>()};
}

void RowReceiver::copy(Rank home, const ArrivedRows& rows) {
  const Rank read_from = link_.reads(home) ? home : lane_.relays.taker(home, lane_.rank);
  if (read_from != lane_.rank) lane_.stats.bytes_wire += rows.records.size() * rows.row_bytes;
  if (points()) {
    plane_.point(rows, pointers_->as<const std::byte*>());
    return;
  }
  // Ranks that send columns fill each row together.
  std::size_t first_byte = 0;
  if (lane_.options.exchange.hidden_partition) {
    first_byte = static_cast<std::size_t>(home) *
                 wire_row_bytes(lane_.options.expert_type, lane_.layout.columns);
  }
  plane_.gather({.arrived = rows,
                 .to = input_->data() + first_byte,
                 .to_bytes = lane_.layout.expert_row_bytes,
                 .wire = lane_.options.dispatch_wire,
                 .expert_type = lane_.options.expert_type,
                 .columns = lane_.layout.columns,
                 .streams = arriving_bytes_ >= kStreamedBytes});
}

void RowReceiver::point_at_nothing(Rank home) {
  plane_.point({.rows = no_row_->data(),
                .records = messages_.of(home).records,
                .places = lane_.receive_plan().places(home)},
               pointers_->as<const std::byte*>());
}

void RowReceiver::publish() {
  if (!plane_.runs_later()) return;
  std::ranges::copy(lane_.receive_plan().counts(), counts_->as<std::int32_t>());
  std::ranges::copy(lane_.receive_plan().offsets(), offsets_->as<std::int64_t>());
}

ExpertRows RowReceiver::rows() const {
  const bool later = plane_.runs_later();
  const auto slots = static_cast<std::size_t>(lane_.options.slots_per_rank);
  const auto weights =
      lane_.options.row_weights ? static_cast<std::size_t>(lane_.layout.expert_rows) : 0;
  return {.format = lane_.options.exchange.format,
          .place = plane_.place(),
          .counts = later ? std::span(reinterpret_cast<const std::int32_t*>(counts_->seen()), slots)
                          : lane_.receive_plan().counts(),
          .offsets = later
                         ? std::span(reinterpret_cast<const std::int64_t*>(offsets_->seen()), slots)
                         : lane_.receive_plan().offsets(),
          .in = {input_->seen(),
                 static_cast<std::ptrdiff_t>(lane_.layout.expert_row_bytes),
                 reinterpret_cast<const std::byte* const*>(pointers_->seen())},
          .in_type = lane_.options.expert_type,
          .weights = {reinterpret_cast<const float*>(weights_->seen()), weights},
          .out_type = lane_.options.output_type(),
          .hidden = lane_.options.hidden};
}

// --- Rows that came for all of a host
// -------------------------------------------------------------

/// The rows of `home` are here: its neighbours' wait for them is over, where this rank takes them.
void RowReceiver::pass_on(Rank home) {
  std::uint64_t& passed = passed_[static_cast<std::size_t>(home)];
  if (!lane_.relays.relays(home) || passed == lane_.epoch) return;
  passed = lane_.epoch;
  for (const Rank neighbour : lane_.relays.neighbours())
    link_.raise(neighbour, home, ExchangeSignal::dispatch_rows);
}

/// Whether the message of `home` and the rows that it announces are here.
bool RowReceiver::rows_arrived(Rank home) {
  if (!link_.arrived(home, ExchangeSignal::dispatch_message, lane_.epoch)) return false;
  const std::uint64_t rows =
      rows_expected_[static_cast<std::size_t>(home)] + messages_.header_of(home).payload_puts;
  return link_.arrived(home, ExchangeSignal::dispatch_rows, rows);
}

/// For ranks that poll: two that wait for each other's relaying would wait for ever.
void RowReceiver::pass_on_what_arrived() {
  for (const Rank home : lane_.relays.receive_order())
    if (lane_.relays.relays(home) && rows_arrived(home)) pass_on(home);
}

bool RowReceiver::arrived() {
  pass_on_what_arrived();
  for (Rank home = 0; home < lane_.ranks; ++home)
    if (!rows_arrived(home)) return false;
  return true;
}

}  // namespace ferry
