#include "exchange_harness.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "sum_bounds.h"
#include "support/queued_plane.h"

namespace ferry::testing {

namespace {

/// An engine that depends on its arguments alone.
std::mt19937 engine_of(std::uint64_t seed, Rank rank, int what) {
  std::seed_seq seeds{seed & 0xFFFFFFFFU,
                      seed >> 32,
                      static_cast<std::uint64_t>(rank),
                      static_cast<std::uint64_t>(what)};
  return std::mt19937(seeds);
}

std::byte* bytes_of(float* values) { return reinterpret_cast<std::byte*>(values); }

const std::byte* bytes_of(const float* values) {
  return reinterpret_cast<const std::byte*>(values);
}

/// n values as they are after a journey in `wire`.
void travel(WireType wire, const float* in, float* out, int n) {
  std::vector<std::byte> row(wire_row_bytes(wire, n));
  kernels().encode(bytes_of(in), DType::f32, row.data(), wire, n);
  kernels().decode(row.data(), wire, bytes_of(out), DType::f32, n);
}

void round_to(WireType type, float* values, int n) {
  if (!is_quantized(type)) travel(type, values, values, n);
}

float fake_expert(SlotId slot, float x) { return static_cast<float>(slot + 2) * x + 1; }

/// What the expert in `slot` returns for a delivered row, as it writes it: the last columns of a
/// row, where it has not all.
std::vector<float> result_row(const ExchangeCase& exchange, SlotId slot, const float* row) {
  const int columns = exchange.options.columns_of_results();
  const float* end = row + exchange.options.hidden;
  std::vector<float> result(end - columns, end);
  for (float& x : result) x = fake_expert(slot, x);
  round_to(wire_type(exchange.options.output_type()), result.data(), columns);
  return result;
}

}  // namespace

Rank ExchangeCase::holder(Rank rank) const {
  return options.exchange.hidden_partition ? 0 : rank / options.tp * options.tp;
}

int ExchangeCase::tokens(Rank rank) const {
  auto engine = engine_of(seed, holder(rank), 0);
  const unsigned kind = engine() % 6;
  if (kind == 0) return 0;
  if (kind == 1) return options.max_tokens;
  return static_cast<int>(engine() % static_cast<unsigned>(options.max_tokens + 1));
}

std::vector<SlotId> ExchangeCase::slots(Rank rank) const {
  auto engine = engine_of(seed, holder(rank), 1);
  const auto num_slots = static_cast<unsigned>(ranks * options.slots_per_rank);
  const auto k = static_cast<unsigned>(options.topk);
  std::vector<SlotId> all(static_cast<std::size_t>(tokens(rank)) * k);
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i] = static_cast<SlotId>(engine() % num_slots);
    if (routing == Routing::one_expert) all[i] = static_cast<SlotId>(num_slots - 1);
    if (routing == Routing::masked && engine() % 3 == 0) all[i] = -1;
    if (routing == Routing::duplicates && i % k != 0 && engine() % 2 == 0) all[i] = all[i - 1];
    const auto of_token = all.begin() + static_cast<std::ptrdiff_t>(i / k * k);
    const auto here = all.begin() + static_cast<std::ptrdiff_t>(i);
    if (options.row_weights && std::find(of_token, here, all[i]) != here) all[i] = -1;
  }
  return all;
}

std::vector<float> ExchangeCase::weights(Rank rank) const {
  auto engine = engine_of(seed, holder(rank), 2);
  std::vector<float> all(static_cast<std::size_t>(tokens(rank)) *
                         static_cast<std::size_t>(options.topk));
  for (float& w : all) w = static_cast<float>(engine() % 1000) / 997.0F;
  return all;
}

std::vector<float> ExchangeCase::row_weights(Rank rank) const {
  if (!options.row_weights) return {};
  auto engine = engine_of(seed, holder(rank), 5);
  std::vector<float> all(weights(rank).size());
  for (float& w : all) w = static_cast<float>(1 + engine() % 100'000) / 977.0F;
  return all;
}

std::vector<float> ExchangeCase::rows(Rank rank) const {
  auto engine = engine_of(seed + rows_seed, holder(rank), 3);
  const auto width = static_cast<std::size_t>(options.hidden);
  std::vector<float> all(static_cast<std::size_t>(tokens(rank)) * width);
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i] = static_cast<float>(engine() % 128);
    if (i % width == 0) all[i] = static_cast<float>(holder(rank));
    if (i % width == 1) all[i] = static_cast<float>(i / width % 128);
  }
  return all;
}

int ExchangeCase::columns() const {
  return options.exchange.hidden_partition ? options.hidden / ranks : options.hidden;
}

int ExchangeCase::result_columns() const {
  return options.exchange.hidden_partition ? columns() : options.columns_of_results();
}

int ExchangeCase::first_column(Rank rank) const {
  return options.exchange.hidden_partition ? rank * columns() : 0;
}

std::vector<float> ExchangeCase::delivered(Rank rank) const {
  std::vector<float> all = rows(rank);
  const auto part = static_cast<std::size_t>(columns());
  for (std::size_t i = 0; i < all.size(); i += part) {
    travel(options.dispatch_wire, all.data() + i, all.data() + i, columns());
    round_to(options.expert_type, all.data() + i, columns());
  }
  return all;
}

FakeExperts::FakeExperts(const ExchangeCase& exchange, Rank rank)
    : exchange_(exchange), rank_(rank) {
  const DispatcherOptions& o = exchange.options;
  const auto num_slots = static_cast<std::size_t>(o.slots_per_rank);
  expected_.resize(num_slots);
  const bool columns = o.exchange.hidden_partition;
  // A slot's rows stand home rank by home rank, from this rank on.
  for (int i = 0; i < (columns ? 1 : exchange.ranks); ++i) {
    const Rank home = columns ? 0 : (rank + i) % exchange.ranks;
    const std::vector<SlotId> slots = exchange.slots(home);
    const std::vector<float> weights = exchange.row_weights(home);
    for (int t = 0; t < exchange.tokens(home); ++t) {
      if (!columns && t % o.tp != home % o.tp) continue;
      for (std::size_t slot = 0; slot < num_slots; ++slot) {
        const auto global = static_cast<SlotId>(rank * o.slots_per_rank + static_cast<int>(slot));
        const auto first = slots.begin() + static_cast<std::ptrdiff_t>(t) * o.topk;
        const auto found = std::find(first, first + o.topk, global);
        if (found == first + o.topk) continue;
        const auto entry = static_cast<std::size_t>(found - slots.begin());
        expected_[slot].push_back({home, t, weights.empty() ? 0.0F : weights[entry]});
      }
    }
    delivered_[home] = exchange.delivered(home);
  }
  for (const auto& rows : expected_) seen_.emplace_back(rows.size(), 0);
}

void FakeExperts::compute(const ExchangeCase& exchange, Rank rank, const ExpertRows& rows) {
  const DispatcherOptions& o = exchange.options;
  std::vector<float> in(static_cast<std::size_t>(o.hidden));
  for (std::size_t slot = 0; slot < rows.counts.size(); ++slot) {
    const auto global = static_cast<SlotId>(rank * o.slots_per_rank + static_cast<int>(slot));
    for (std::int64_t i = 0; i < rows.counts[slot]; ++i) {
      const std::int64_t row = rows.offsets[slot] + i;
      kernels().decode(rows.in.row(row), rows.in_type, bytes_of(in.data()), DType::f32, o.hidden);
      const std::vector<float> result = result_row(exchange, global, in.data());
      kernels().convert(bytes_of(result.data()),
                        DType::f32,
                        rows.out.row(row),
                        rows.out_type,
                        o.columns_of_results());
    }
  }
}

void FakeExperts::operator()(const ExpertRows& rows) {
  const DispatcherOptions& o = exchange_.options;
  const auto width = static_cast<std::size_t>(o.hidden);
  if (first_rows_.empty()) first_rows_.assign(rows.offsets.begin(), rows.offsets.end());
  std::vector<float> in(width);
  for (std::size_t slot = 0; slot < rows.counts.size(); ++slot) {
    for (std::int64_t i = 0; i < rows.counts[slot]; ++i) {
      const std::int64_t row = rows.offsets[slot] + i;
      const auto place = static_cast<std::size_t>(row - first_rows_[slot]);
      FERRY_CHECK(place < expected_[slot].size() && !seen_[slot][place],
                  "rank {} slot {}: row {} of {} is not due",
                  rank_,
                  slot,
                  place,
                  expected_[slot].size());
      seen_[slot][place] = 1;
      kernels().decode(rows.in.row(row), rows.in_type, bytes_of(in.data()), DType::f32, o.hidden);
      const auto [home, token, weight] = expected_[slot][place];
      const float with = rows.weights.empty() ? 0.0F : rows.weights[static_cast<std::size_t>(row)];
      FERRY_CHECK(with == weight,
                  "rank {} slot {} row {}: weight {}, expected {}",
                  rank_,
                  slot,
                  place,
                  with,
                  weight);
      const float* expected = delivered_.at(home).data() + static_cast<std::size_t>(token) * width;
      FERRY_CHECK(std::memcmp(in.data(), expected, width * sizeof(float)) == 0,
                  "rank {} slot {} row {}: not token {} of rank {} (says rank {}, token {})",
                  rank_,
                  slot,
                  place,
                  token,
                  home,
                  in[0],
                  in[1]);
    }
  }
  compute(exchange_, rank_, rows);
}

void FakeExperts::finish() const {
  for (std::size_t slot = 0; slot < seen_.size(); ++slot)
    FERRY_CHECK(std::count(seen_[slot].begin(), seen_[slot].end(), 0) == 0,
                "rank {} slot {}: rows are missing",
                rank_,
                slot);
}

bool ExchangeCase::sums_per_host(Rank rank, Rank peer) const {
  if (hosts.empty() || options.tp > 1 ||
      options.exchange.on_dead_rank == ExchangeOptions::OnDeadRank::mask ||
      options.exchange.send_per == ExchangeOptions::SendPer::token_expert)
    return false;
  return hosts[static_cast<std::size_t>(rank)] != hosts[static_cast<std::size_t>(peer)];
}

bool needs_rank(const ExchangeCase& exchange, Rank rank, int token, Rank peer) {
  const DispatcherOptions& o = exchange.options;
  const std::vector<SlotId> slots = exchange.slots(rank);
  for (int k = 0; k < o.topk; ++k) {
    const SlotId slot = slots[static_cast<std::size_t>(token * o.topk + k)];
    if (slot >= 0 && slot / o.slots_per_rank == peer) return true;
  }
  return false;
}

std::vector<float> expected_sums(const ExchangeCase& exchange,
                                 Rank rank,
                                 const std::vector<char>& gone) {
  const DispatcherOptions& o = exchange.options;
  const std::vector<float> delivered = exchange.delivered(rank);
  const std::vector<SlotId> slots = exchange.slots(rank);
  const std::vector<float> weights = exchange.weights(rank);
  const auto hidden = static_cast<std::size_t>(o.hidden);
  const auto width = static_cast<std::size_t>(o.columns_of_results());
  const auto topk = static_cast<std::size_t>(o.topk);
  const auto tokens = static_cast<std::size_t>(exchange.tokens(rank));
  const auto columns = static_cast<std::size_t>(exchange.result_columns());
  const auto first_column = static_cast<std::size_t>(exchange.first_column(rank));
  const auto counts = [&](SlotId slot, Rank peer) {
    if (slot < 0 || slot / o.slots_per_rank != peer) return false;
    return gone.empty() || !gone[static_cast<std::size_t>(peer)];
  };
  std::vector<float> out;
  for (std::size_t t = 0; t < tokens; ++t) {
    std::vector<float> sum(width);
    const auto add = [&](std::vector<float>& to, std::size_t k, bool through_wire) {
      const SlotId slot = slots[t * topk + k];
      std::vector<float> row = result_row(exchange, slot, delivered.data() + t * hidden);
      if (through_wire) travel(o.combine_wire, row.data(), row.data(), o.columns_of_results());
      for (std::size_t h = 0; h < width; ++h)
        to[h] = std::fmaf(weights[t * topk + k], row[h], to[h]);
    };
    if (o.exchange.reduce_at == ExchangeOptions::ReduceAt::home) {
      for (std::size_t k = 0; k < topk; ++k) {
        const SlotId slot = slots[t * topk + k];
        if (slot >= 0 && counts(slot, slot / o.slots_per_rank)) add(sum, k, true);
      }
    } else {
      const auto rank_sum = [&](Rank peer) -> std::optional<std::vector<float>> {
        std::vector<float> part(width);
        bool any = false;
        for (std::size_t k = 0; k < topk; ++k) {
          if (!counts(slots[t * topk + k], peer)) continue;
          add(part, k, false);
          any = true;
        }
        if (!any) return std::nullopt;
        travel(o.combine_wire, part.data(), part.data(), o.columns_of_results());
        return part;
      };
      const auto add_part = [&](std::vector<float>& to, const std::vector<float>& part) {
        for (std::size_t h = 0; h < width; ++h) to[h] = std::fmaf(1.0F, part[h], to[h]);
      };
      std::set<int> done;
      for (Rank peer = 0; peer < exchange.ranks; ++peer) {
        if (!exchange.sums_per_host(rank, peer)) {
          if (const auto part = rank_sum(peer)) add_part(sum, *part);
          continue;
        }
        const int host = exchange.hosts[static_cast<std::size_t>(peer)];
        std::vector<std::vector<float>> parts;
        for (Rank near = 0; near < exchange.ranks; ++near) {
          if (exchange.hosts[static_cast<std::size_t>(near)] != host) continue;
          if (auto part = rank_sum(near)) parts.push_back(std::move(*part));
        }
        if (parts.empty() || !done.insert(host).second) continue;
        std::vector<float> host_sum(width);
        for (const auto& part : parts) add_part(host_sum, part);
        if (parts.size() > 1)
          travel(o.combine_wire, host_sum.data(), host_sum.data(), o.columns_of_results());
        add_part(sum, host_sum);
      }
    }
    out.insert(out.end(),
               sum.begin() + static_cast<std::ptrdiff_t>(first_column),
               sum.begin() + static_cast<std::ptrdiff_t>(first_column + columns));
  }
  return out;
}

namespace {

/// One exchange, phase by phase, so that several can be told apart and interleaved.
class LiveExchange {
 public:
  static constexpr int kPhases = 4;

  /// `cached`: its routing is sent again instead of the case's slots.
  LiveExchange(const ExchangeCase& exchange,
               const CachedRouting* cached,
               Dispatcher& dispatcher,
               const MemoryPlace& place,
               Rank rank,
               int number)
      : exchange_(exchange),
        cached_(cached),
        dispatcher_(dispatcher),
        place_(place),
        rank_(rank),
        number_(number),
        rows_(exchange.rows(rank)),
        slots_(exchange.slots(rank)),
        weights_(exchange.weights(rank)),
        row_weights_(exchange.row_weights(rank)),
        experts_(exchange_, rank) {}

  /// Returns the number of phases that are done.
  int next_phase() {
    switch (++phases_done_) {
      case 1:
        send();
        break;
      case 2:
        compute();
        break;
      case 3:
        dispatcher_.combine_send();
        break;
      default:
        finish();
    }
    return phases_done_;
  }

 private:
  void send() {
    const auto stride = static_cast<std::ptrdiff_t>(sizeof(float)) * exchange_.options.hidden;
    const float* first = rows_.data() + exchange_.first_column(rank_);
    dispatcher_.dispatch_send({.place = place_,
                               .rows = {bytes_of(first), stride},
                               .type = DType::f32,
                               .tokens = exchange_.tokens(rank_),
                               .slots = cached_ ? std::span<const SlotId>() : slots_,
                               .weights = cached_ ? std::span<const float>() : weights_,
                               .row_weights = cached_ ? std::span<const float>() : row_weights_,
                               .layer = number_,
                               .cached = cached_});
  }

  void compute() {
    if (number_ % 3 == 1) wait_by_polling();
    dispatcher_.dispatch_recv([this](const ExpertRows& rows) {
      FERRY_CHECK(rows.place == place_, "rows on another plane than the tokens");
      if (place_.queue == nullptr) {
        experts_(rows);
      } else {
        static_cast<QueuedPlane*>(place_.queue)->run(rows, [this](const ExpertRows& queued) {
          experts_(queued);
        });
      }
    });
  }

  void finish() {
    if (number_ % 3 == 2) wait_by_polling();
    const bool accumulate = number_ % 2 == 1;
    const std::vector<float> sums = expected_sums(exchange_, rank_);
    const auto columns = static_cast<std::size_t>(exchange_.result_columns());
    std::vector<float> out(sums.size(), accumulate ? 0.5F : -1.0F);
    dispatcher_.combine_recv(
        {.place = place_,
         .weights = weights_,
         .rows = {bytes_of(out.data()), static_cast<std::ptrdiff_t>(sizeof(float) * columns)},
         .accumulate = accumulate});
    dispatcher_.synchronise();
    experts_.finish();
    const BoundedSums bounded = bounded_sums(exchange_, rank_);
    for (std::size_t i = 0; i < out.size(); ++i) {
      FERRY_CHECK(std::abs(double{sums[i]} - bounded.exact[i]) <= bounded.bound[i],
                  "exchange {} rank {}: {} is further from {} than {}",
                  number_,
                  rank_,
                  sums[i],
                  bounded.exact[i],
                  bounded.bound[i]);
      const float expected = accumulate ? 0.5F + sums[i] : sums[i];
      FERRY_CHECK(std::bit_cast<std::uint32_t>(out[i]) == std::bit_cast<std::uint32_t>(expected),
                  "exchange {} rank {} token {} column {}: got {}, expected {}",
                  number_,
                  rank_,
                  i / columns,
                  i % columns,
                  out[i],
                  expected);
    }
  }

  void wait_by_polling() {
    while (!dispatcher_.poll()) std::this_thread::yield();
  }

  const ExchangeCase exchange_;
  const CachedRouting* cached_;
  Dispatcher& dispatcher_;
  const MemoryPlace place_;
  const Rank rank_;
  const int number_;
  const std::vector<float> rows_;
  const std::vector<SlotId> slots_;
  const std::vector<float> weights_;
  const std::vector<float> row_weights_;
  FakeExperts experts_;
  int phases_done_ = 0;
};

/// Which lane goes on, phase after phase: any order, the same on all ranks.
std::vector<std::size_t> interleaving(std::size_t lanes, std::uint64_t seed) {
  std::vector<std::size_t> order;
  for (std::size_t lane = 0; lane < lanes; ++lane)
    order.insert(order.end(), LiveExchange::kPhases, lane);
  auto engine = engine_of(seed, 0, 4);
  std::shuffle(order.begin(), order.end(), engine);
  return order;
}

std::unique_ptr<DataPlane> make_plane(HarnessOptions::Plane plane, ThreadPool& pool) {
  switch (plane) {
    case HarnessOptions::Plane::queued:
      return std::make_unique<QueuedPlane>(pool, QueuedPlane::Start::at_once);
    case HarnessOptions::Plane::captured:
      return std::make_unique<QueuedPlane>(pool, QueuedPlane::Start::at_synchronise);
    default:
      return std::make_unique<CpuPlane>(pool);
  }
}

}  // namespace

void run_exchanges(const HarnessOptions& options, Transport& transport, ThreadPool& pool) {
  const std::unique_ptr<DataPlane> plane = make_plane(options.plane, pool);
  std::vector<std::unique_ptr<Dispatcher>> lanes;
  for (int lane = 0; lane < options.lanes; ++lane)
    lanes.push_back(std::make_unique<Dispatcher>(options.dispatcher, transport, *plane));
  ExchangeCase exchange{
      .options = options.dispatcher, .ranks = transport.size(), .routing = options.routing};
  for (Rank r = 0; r < transport.size(); ++r) exchange.hosts.push_back(transport.host_of(r));
  std::vector<std::unique_ptr<CachedRouting>> kept(lanes.size());
  for (int n = 0; n < options.count; n += options.lanes) {
    std::vector<LiveExchange> live;
    live.reserve(lanes.size());
    const bool keep = n / options.lanes % 4 == 2;
    const bool repeat = n / options.lanes % 4 == 3;
    for (std::size_t lane = 0; lane < lanes.size(); ++lane) {
      const std::uint64_t number = static_cast<std::uint64_t>(n) + lane;
      exchange.rows_seed = repeat ? 77 : 0;
      // A repeated exchange has the routing of the one before on its lane.
      const std::uint64_t routed = repeat ? number - lanes.size() : number;
      exchange.seed = options.seed * 1'000'003 + routed;
      live.emplace_back(exchange,
                        repeat ? kept[lane].get() : nullptr,
                        *lanes[lane],
                        plane->place(),
                        transport.rank(),
                        n + static_cast<int>(lane));
    }
    for (const std::size_t lane : interleaving(lanes.size(), exchange.seed)) {
      if (live[lane].next_phase() == 2 && keep) kept[lane] = lanes[lane]->keep_routing();
    }
  }
}

}  // namespace ferry::testing
