// Backends: names for rows of one table of exchange options. Users know them from pplx-kernels,
// DeepEP, Mooncake, SGLang and vLLM; docs/all_to_all.md says what each of theirs is here.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "ferry/expert_rows.h"
#include "ferry/export.h"

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
  enum class Pipeline : std::uint8_t {
    phases,  ///< all rows, then the experts, then all results
    tiles    ///< experts start on rows that are there; results leave as tiles finish
  };
  enum class OnDeadRank : std::uint8_t {
    fail,  ///< every rank gets an error that names it
    mask   ///< the others go on without it; tokens that needed its experts are reported
  };

  SendPer send_per = SendPer::token_rank;
  DispatchFormat format = DispatchFormat::padded;
  ReduceAt reduce_at = ReduceAt::home;
  Pipeline pipeline = Pipeline::phases;
  OnDeadRank on_dead_rank = OnDeadRank::fail;
  /// All ranks hold the same tokens; each sends its H / R columns of every row and gets those of
  /// the results. The computing rank puts full rows together. Source: dlinfer's alltoallv.
  bool hidden_partition = false;
  /// Padded rows are reserved for the worst case, which costs nothing only where memory that nobody
  /// touches is free: elsewhere (pinned, or on a device) `padded` means ragged, unless this is set.
  bool fixed_format = false;

  bool operator==(const ExchangeOptions&) const = default;
};

/// The format of such an exchange where reserved memory costs as much as used memory, or not.
FERRY_API DispatchFormat format_for(const ExchangeOptions& options, bool reserved_costs);

/// Backends that combine per expert (reduce_at = home) give the same bits as each other, for any
/// number of ranks; `none` and deepep's normal mode are bit-stable at a fixed number, on the same
/// hosts. `automatic` ("auto") stands for one of the others: choose_backend.h picks it.
enum class MoeA2ABackend : std::uint8_t {
  none,
  alltoallv,
  pplx,
  deepep,
  mooncake,
  ascend_fuseep,
  automatic
};

/// DeepEP's two protocols: normal sums on each rank first (prefill), low_latency sends a row per
/// expert home (decode); `automatic` ("auto") stands for one of them.
enum class DeepepMode : std::uint8_t { normal, low_latency, automatic };

/// Whether there is something to choose: backend `automatic`, or mode `automatic` of deepep.
constexpr bool leaves_choice(MoeA2ABackend backend, DeepepMode mode) {
  return backend == MoeA2ABackend::automatic ||
         (backend == MoeA2ABackend::deepep && mode == DeepepMode::automatic);
}

/// The row of a backend; `mode` matters to deepep alone. Throws BrokenContract for what is still
/// automatic.
FERRY_API ExchangeOptions exchange_options(MoeA2ABackend backend,
                                           DeepepMode mode = DeepepMode::low_latency);

/// All of them, in the order of the table.
FERRY_API std::span<const MoeA2ABackend> all_backends();
FERRY_API std::span<const DeepepMode> all_deepep_modes();

FERRY_API std::string_view backend_name(MoeA2ABackend backend);
FERRY_API std::string_view deepep_mode_name(DeepepMode mode);
FERRY_API std::string_view format_name(DispatchFormat format);

/// From --moe-a2a-backend, --deepep-mode and --layout. Throw ConfigError that lists the known
/// names.
FERRY_API MoeA2ABackend parse_backend(std::string_view name);
FERRY_API DeepepMode parse_deepep_mode(std::string_view name);
FERRY_API DispatchFormat parse_format(std::string_view name);

}  // namespace ferry
