#include "ferry/choose_backend.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace ferry {

namespace {

constexpr double kMemoryBytesPerUs = 10e3;
constexpr double kNetworkBytesPerUs = 1.2e3;
constexpr double kNetworkMessageUs = 20;
constexpr double kSharedMessageUs = 1;

using ReduceAt = ExchangeOptions::ReduceAt;
using SendPer = ExchangeOptions::SendPer;

/// Ranks that a token's K experts fall on, other than its own, if they fall evenly.
double remote_ranks(const BackendSituation& s) {
  const double others = s.ranks - 1;
  return others * (1 - std::pow(1 - 1.0 / s.ranks, s.topk));
}

double cost_of(const ExchangeOptions& row, const BackendSituation& s) {
  const double tokens = s.tokens;
  const double rows = tokens * s.topk;  // received by a rank, and computed, on average
  const double out_bytes = static_cast<double>(wire_row_bytes(s.dispatch_wire, s.hidden));
  const double back_bytes = static_cast<double>(wire_row_bytes(s.combine_wire, s.hidden));
  const double ranks_of_token = remote_ranks(s);
  const double remote_share = s.ranks == 1 ? 0 : (s.ranks - 1.0) / s.ranks;
  const bool sums = row.reduce_at == ReduceAt::rank_then_home;
  const bool copies = row.format != DispatchFormat::row_pointers;

  // In memory: copies to where experts read, results read for the sum; with sums per rank, those
  // are read and written once more.
  double memory = copies ? 2 * rows * out_bytes : 0;
  memory += rows * back_bytes;
  // Experts write f32 for a quantised wire, which is read again to be encoded.
  if (is_quantized(s.combine_wire)) memory += rows * static_cast<double>(sizeof(float)) * s.hidden;
  if (sums) memory += 2 * tokens * (ranks_of_token + 1) * back_bytes;
  const double phases = 2.0 * (s.ranks - 1);
  if (s.load_store) return memory / kMemoryBytesPerUs + phases * kSharedMessageUs;

  double sent = tokens * ranks_of_token;
  if (row.send_per == SendPer::rank) sent = tokens * (s.ranks - 1);
  if (row.send_per == SendPer::token_expert) sent = rows * remote_share;
  const double returned = sums ? tokens * ranks_of_token : rows * remote_share;
  const double wire = sent * out_bytes + returned * back_bytes;
  // Tiles hide a part of the wire behind the experts' arithmetic, which is not counted here.
  const double hidden = row.pipeline == ExchangeOptions::Pipeline::tiles ? 0.9 : 1;
  return memory / kMemoryBytesPerUs + hidden * wire / kNetworkBytesPerUs + 2 * kNetworkMessageUs;
}

std::string_view link_of(const BackendSituation& s) {
  if (s.ranks == 1) return "one rank";
  return s.load_store ? "ranks that read each other's memory" : "a network";
}

/// What is said about a combine wire that costs more than it saves here; empty if it does not.
std::string better_wire(const ExchangeOptions& row, BackendSituation s) {
  if (!is_quantized(s.combine_wire)) return {};
  const double as_asked = cost_of(row, s);
  const std::string_view asked = wire_type_name(s.combine_wire);
  s.combine_wire = WireType::bf16;
  const double as_bf16 = cost_of(row, s);
  if (as_bf16 >= as_asked) return {};
  return fmt::format("; with --combine-wire bf16 instead of {} {:.0f}", asked, as_bf16);
}

BackendChoice choose_mode(const BackendSituation& s) {
  const double normal = cost_of(exchange_options(MoeA2ABackend::deepep, DeepepMode::normal), s);
  const double low = cost_of(exchange_options(MoeA2ABackend::deepep, DeepepMode::low_latency), s);
  const bool sum_first = s.allow_prereduce && normal < low;
  std::string why = fmt::format(
      "deepep auto chose {}: {:.0f} against {:.0f} us an exchange over {} with {} tokens a rank{}",
      sum_first ? "normal" : "low_latency",
      sum_first ? normal : low,
      sum_first ? low : normal,
      link_of(s),
      s.tokens,
      !s.allow_prereduce && normal < low ? "; --allow-prereduce would let it sum on each rank first"
                                         : "");
  return {MoeA2ABackend::deepep,
          sum_first ? DeepepMode::normal : DeepepMode::low_latency,
          std::move(why)};
}

}  // namespace

std::string BackendCost::name() const {
  if (backend != MoeA2ABackend::deepep) return std::string(backend_name(backend));
  return fmt::format("deepep {}", deepep_mode_name(mode));
}

std::vector<BackendCost> backend_costs(const BackendSituation& situation) {
  std::vector<BackendCost> costs;
  const auto consider = [&](MoeA2ABackend backend, DeepepMode mode) {
    const ExchangeOptions row = exchange_options(backend, mode);
    if (row.reduce_at == ReduceAt::rank_then_home && !situation.allow_prereduce) return;
    if (row.format == DispatchFormat::row_pointers && !situation.experts_take_pointers) return;
    costs.push_back({backend, mode, cost_of(row, situation)});
  };
  // Of rows that cost the same the first stands; those that mask dead ranks are asked for by name.
  for (const MoeA2ABackend backend : {MoeA2ABackend::pplx,
                                      MoeA2ABackend::ascend_fuseep,
                                      MoeA2ABackend::alltoallv,
                                      MoeA2ABackend::none})
    consider(backend, DeepepMode::low_latency);
  consider(MoeA2ABackend::deepep, DeepepMode::low_latency);
  consider(MoeA2ABackend::deepep, DeepepMode::normal);
  std::stable_sort(costs.begin(), costs.end(), [](const BackendCost& a, const BackendCost& b) {
    return a.us < b.us;
  });
  return costs;
}

BackendChoice choose_backend(MoeA2ABackend asked,
                             DeepepMode mode,
                             const BackendSituation& situation) {
  if (asked == MoeA2ABackend::deepep && mode == DeepepMode::automatic)
    return choose_mode(situation);
  if (asked != MoeA2ABackend::automatic) return {asked, mode, ""};
  const std::vector<BackendCost> costs = backend_costs(situation);
  const BackendCost& best = costs.front();
  return {best.backend,
          best.mode,
          fmt::format("auto chose {}: {:.0f} us an exchange over {} with {} tokens a rank, next {} "
                      "with {:.0f}{}",
                      best.name(),
                      best.us,
                      link_of(situation),
                      situation.tokens,
                      costs[1].name(),
                      costs[1].us,
                      better_wire(exchange_options(best.backend, best.mode), situation))};
}

}  // namespace ferry
