// What all-to-all and moe_forward share: options of an exchange, and rows for experts.
#pragma once

#include "ferry/c/all_to_all.h"
#include "ferry/c/arguments.h"
#include "ferry/dispatcher.h"
#include "ferry/placement.h"

struct ferry_placement {  // NOLINT(readability-identifier-naming): as C has it
  ferry::Placement placement;
};

namespace ferry::c {

/// The options of an exchange on such a transport, wherever it is to be; `slots_per_rank` and
/// `topk` may be 0. Throws ConfigError.
DispatcherOptions exchange_options(const ferry_all_to_all_options& given,
                                   int ranks,
                                   const Capabilities& transport);

/// Throws ConfigError unless what has no default is there.
void check_sizes(const DispatcherOptions& options);

/// Seconds of one call; none where they are negative. Throws for NaN.
std::optional<std::chrono::nanoseconds> timeout_of_call(double seconds);

/// The bytes of a row of the caller: values of H, or a rank's part of them.
std::size_t row_bytes(const DispatcherOptions& options, int ranks, DType type);

/// Throws ConfigError for rows that no such exchange takes.
void check_row_type(const DispatcherOptions& options, DType type, bool encoded);

ferry_expert_rows expert_rows(const ExpertRows& rows);

ferry_exchange_stats exchange_stats(const ExchangeStats& stats);

/// Calls the caller's experts in the caller's mode. Throws CallbackFailed.
void call_experts(ferry_experts_fn experts, void* context, const ExpertRows& rows);

}  // namespace ferry::c
