// Backends: names for rows of one table of exchange options. Users know them from pplx-kernels,
// DeepEP, SGLang and vLLM; docs/all_to_all.md says what each of theirs is here.
#pragma once

#include <cstdint>
#include <string_view>

#include "ferry/moe/experts.h"

namespace ferry {

/// What an exchange does.
struct ExchangeOptions {
  enum class SendPer : std::uint8_t {
    rank,         ///< every token once to every rank (all-gather)
    token_rank,   ///< a token once to each rank that holds one of its experts
    token_expert  ///< a token once to each of its experts
  };
  enum class ReduceAt : std::uint8_t {
    home,           ///< one row per (token, expert) comes home; weighted sum there, in top-k order
    rank_then_home  ///< each rank sums its experts' rows in f32, home sums ranks in order
  };

  SendPer send_per = SendPer::token_rank;
  DispatchFormat format = DispatchFormat::padded;
  ReduceAt reduce_at = ReduceAt::home;
};

/// Backends that combine per expert (reduce_at = home) give the same bits as each other, for any
/// number of ranks; `none` and deepep's normal mode are bit-stable at a fixed number.
enum class MoeA2ABackend : std::uint8_t { none, alltoallv, pplx, deepep };

/// DeepEP's two protocols: normal sums on each rank first (prefill), low_latency sends a row per
/// expert home (decode).
enum class DeepepMode : std::uint8_t { normal, low_latency };

/// The row of a backend; `mode` matters to deepep alone.
ExchangeOptions exchange_options(MoeA2ABackend backend, DeepepMode mode = DeepepMode::low_latency);

std::string_view backend_name(MoeA2ABackend backend);
std::string_view deepep_mode_name(DeepepMode mode);

/// From --moe-a2a-backend and --deepep-mode. Throw ConfigError that lists the known names.
MoeA2ABackend parse_backend(std::string_view name);
DeepepMode parse_deepep_mode(std::string_view name);

}  // namespace ferry
