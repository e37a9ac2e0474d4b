#include "ferry/backend.h"

#include <algorithm>
#include <array>
#include <string>

#include "ferry/core/error.h"

namespace ferry {

namespace {

using SendPer = ExchangeOptions::SendPer;
using ReduceAt = ExchangeOptions::ReduceAt;
using Pipeline = ExchangeOptions::Pipeline;
using OnDeadRank = ExchangeOptions::OnDeadRank;

template <class Value>
struct Row {
  Value value;
  std::string_view name;
  ExchangeOptions options = {};
};

constexpr std::array kModes{
    Row<DeepepMode>{DeepepMode::normal,
                    "normal",
                    {.format = DispatchFormat::ragged, .reduce_at = ReduceAt::rank_then_home}},
    Row<DeepepMode>{DeepepMode::low_latency, "low_latency", {}},
    Row<DeepepMode>{DeepepMode::automatic, "auto"},
};

constexpr std::array kBackends{
    Row<MoeA2ABackend>{MoeA2ABackend::none,
                       "none",
                       {.send_per = SendPer::rank,
                        .format = DispatchFormat::ragged,
                        .reduce_at = ReduceAt::rank_then_home}},
    Row<MoeA2ABackend>{MoeA2ABackend::alltoallv,
                       "alltoallv",
                       {.send_per = SendPer::token_expert, .format = DispatchFormat::ragged}},
    Row<MoeA2ABackend>{MoeA2ABackend::pplx, "pplx", {}},
    Row<MoeA2ABackend>{MoeA2ABackend::deepep, "deepep"},
    Row<MoeA2ABackend>{MoeA2ABackend::mooncake, "mooncake", {.on_dead_rank = OnDeadRank::mask}},
    Row<MoeA2ABackend>{MoeA2ABackend::ascend_fuseep,
                       "ascend_fuseep",
                       {.format = DispatchFormat::row_pointers, .pipeline = Pipeline::tiles}},
    Row<MoeA2ABackend>{MoeA2ABackend::automatic, "auto"},
};

constexpr std::array kFormats{
    Row<DispatchFormat>{DispatchFormat::padded, "padded"},
    Row<DispatchFormat>{DispatchFormat::ragged, "ragged"},
    Row<DispatchFormat>{DispatchFormat::row_pointers, "row_pointers"},
};

template <class Rows, class Value>
const auto& row_of(const Rows& rows, Value value) {
  for (const auto& row : rows)
    if (row.value == value) return row;
  fail<ConfigError>("no row number {} in the table of backends", static_cast<int>(value));
}

template <class Rows>
const auto& row_named(const Rows& rows, std::string_view option, std::string_view name) {
  std::string known;
  for (const auto& row : rows) {
    if (row.name == name) return row;
    known += known.empty() ? "" : ", ";
    known += row.name;
  }
  fail<ConfigError>("unknown {} '{}'; known: {}", option, name, known);
}

template <class Value, std::size_t N>
constexpr std::array<Value, N> values_of(const std::array<Row<Value>, N>& rows) {
  std::array<Value, N> values{};
  std::transform(
      rows.begin(), rows.end(), values.begin(), [](const auto& row) { return row.value; });
  return values;
}

}  // namespace

ExchangeOptions exchange_options(MoeA2ABackend backend, DeepepMode mode) {
  FERRY_CHECK(backend != MoeA2ABackend::automatic, "backend auto must be chosen first");
  if (backend != MoeA2ABackend::deepep) return row_of(kBackends, backend).options;
  FERRY_CHECK(mode != DeepepMode::automatic, "deepep mode auto must be chosen first");
  return row_of(kModes, mode).options;
}

DispatchFormat format_for(const ExchangeOptions& options, bool reserved_costs) {
  const bool padded_for_free = options.fixed_format || !reserved_costs;
  return options.format == DispatchFormat::padded && !padded_for_free ? DispatchFormat::ragged
                                                                      : options.format;
}

std::span<const MoeA2ABackend> all_backends() {
  static constexpr auto kValues = values_of(kBackends);
  return kValues;
}

std::span<const DeepepMode> all_deepep_modes() {
  static constexpr auto kValues = values_of(kModes);
  return kValues;
}

std::string_view backend_name(MoeA2ABackend backend) { return row_of(kBackends, backend).name; }

std::string_view deepep_mode_name(DeepepMode mode) { return row_of(kModes, mode).name; }

std::string_view format_name(DispatchFormat format) { return row_of(kFormats, format).name; }

MoeA2ABackend parse_backend(std::string_view name) {
  return row_named(kBackends, "--moe-a2a-backend", name).value;
}

DeepepMode parse_deepep_mode(std::string_view name) {
  return row_named(kModes, "--deepep-mode", name).value;
}

DispatchFormat parse_format(std::string_view name) {
  return row_named(kFormats, "--layout", name).value;
}

}  // namespace ferry
