#include "ferry/moe/backend.h"

#include <array>
#include <span>
#include <string>

#include "ferry/core/error.h"

namespace ferry {

namespace {

using SendPer = ExchangeOptions::SendPer;
using ReduceAt = ExchangeOptions::ReduceAt;

struct BackendRow {
  MoeA2ABackend value;
  std::string_view name;
  ExchangeOptions options;
};

struct ModeRow {
  DeepepMode value;
  std::string_view name;
  ExchangeOptions options;
};

constexpr std::array kModes{
    ModeRow{DeepepMode::normal,
            "normal",
            {SendPer::token_rank, DispatchFormat::ragged, ReduceAt::rank_then_home}},
    ModeRow{DeepepMode::low_latency,
            "low_latency",
            {SendPer::token_rank, DispatchFormat::padded, ReduceAt::home}},
};

constexpr std::array kBackends{
    BackendRow{MoeA2ABackend::none,
               "none",
               {SendPer::rank, DispatchFormat::ragged, ReduceAt::rank_then_home}},
    BackendRow{MoeA2ABackend::alltoallv,
               "alltoallv",
               {SendPer::token_expert, DispatchFormat::ragged, ReduceAt::home}},
    BackendRow{
        MoeA2ABackend::pplx, "pplx", {SendPer::token_rank, DispatchFormat::padded, ReduceAt::home}},
    BackendRow{MoeA2ABackend::deepep, "deepep", kModes[1].options},
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

}  // namespace

ExchangeOptions exchange_options(MoeA2ABackend backend, DeepepMode mode) {
  if (backend == MoeA2ABackend::deepep) return row_of(kModes, mode).options;
  return row_of(kBackends, backend).options;
}

std::string_view backend_name(MoeA2ABackend backend) { return row_of(kBackends, backend).name; }

std::string_view deepep_mode_name(DeepepMode mode) { return row_of(kModes, mode).name; }

MoeA2ABackend parse_backend(std::string_view name) {
  return row_named(kBackends, "--moe-a2a-backend", name).value;
}

DeepepMode parse_deepep_mode(std::string_view name) {
  return row_named(kModes, "--deepep-mode", name).value;
}

}  // namespace ferry
