// What lies where in the region of one lane, and the messages that travel: docs/wire_format.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ferry/core/types.h"
#include "ferry/exchange/dispatch_plan.h"

namespace ferry {

struct DispatcherOptions;

/// Head of a dispatch message. Behind it: the records; where ranks sum before home does, the reduce
/// entries; with row weights, an f32 for each record. Nothing where the routing repeats one that
/// both sides have kept.
struct DispatchHeader {
  std::uint64_t epoch = 0;   // exchange number of the lane, for diagnosis and checking
  std::uint32_t tokens = 0;  // of the sender
  std::uint32_t chunks = 1;  // exchanges the sender still needs, this one included
  std::uint32_t records = 0;
  std::uint32_t payload_puts = 0;  // puts that carry rows; 0 where the receiver pulls
  std::uint32_t reduce_entries = 0;
  std::uint32_t repeats = 0;      // 1: the routing is a kept one
  std::uint32_t row_weights = 0;  // as many as records, or none
  std::uint32_t reserved = 0;
};

/// One (token, k) of a home rank with a record here, in order of (token, k). `record` counts from
/// the message's first.
struct ReduceEntry {
  std::uint32_t token = 0;
  std::uint32_t record = 0;
  float weight = 0;
};

/// What a dispatch message says, wherever that stands: in an inbox, or kept from earlier.
struct DispatchMessage {
  std::uint32_t payload_puts = 0;
  std::span<const std::uint32_t> counts = {};  // [L] records for each slot, counted on arrival
  std::span<const Record> records = {};
  std::span<const ReduceEntry> entries = {};
  std::span<const float> row_weights = {};
};

/// Head of a combine message. Behind it, for each member of the receiver's group: i64, the number
/// of the sender's slots with records of that member, and an i64 for each, the row of the first.
struct CombineHeader {
  std::uint64_t epoch = 0;
  std::uint32_t payload_puts = 0;
  std::uint32_t chunks = 0;  // greatest number that the sender heard of in this exchange
};

/// Offsets into a rank's part of the lane's region; the same on all ranks. Everything starts at a
/// multiple of 64 bytes, row areas at a page.
struct ExchangeLayout {
  ExchangeLayout(const DispatcherOptions& options, int ranks, bool load_store);

  int columns = 0;         // of a row that one rank sends: H, or its part of H
  int result_columns = 0;  // of what it gets back for that: those of results, or its part of H
  std::size_t dispatch_row_bytes = 0;      // `columns` in wire type
  std::size_t expert_row_bytes = 0;        // whole rows, as experts receive them,
  std::size_t output_row_bytes = 0;        // as they write them,
  std::size_t combine_row_bytes = 0;       // and as those lie in the results
  std::size_t combine_slice_bytes = 0;     // `result_columns` of a result
  std::size_t dispatch_message_bytes = 0;  // room for one message
  std::size_t combine_message_bytes = 0;
  std::size_t max_records = 0;     // that a rank may have for another
  std::int64_t slot_capacity = 0;  // rows of a slot in the padded format: every token of all ranks
  std::int64_t expert_rows = 0;    // rows that experts may receive and write
  std::size_t dispatch_slab_rows = 0;  // rows that one peer may push: its tokens, or its records
  std::size_t combine_slab_rows = 0;   // rows that one peer may push: its records, or its sums

  std::size_t dispatch_inbox = 0;   // [R] messages
  std::size_t dispatch_outbox = 0;  // [R] messages
  std::size_t combine_inbox = 0;    // [R] messages
  std::size_t combine_outbox = 0;   // [R] messages
  std::size_t stage = 0;            // [max_tokens] rows: this rank's tokens in wire type, by token
  std::size_t results = 0;          // [expert_rows] rows, or [R][max_tokens] sums per home rank
  std::size_t dispatch_slab = 0;    // [R][dispatch_slab_rows] rows, where rows are pushed
  std::size_t combine_slab = 0;     // [R][tp][combine_slab_rows] slices
  // Where ranks sum before home does, for each home rank of another host:
  std::size_t has_sum = 0;       // [R][max_tokens] bytes, 1 where this rank has a sum of the token
  std::size_t has_host_sum = 0;  // [R][max_tokens] bytes, 1 where its host has
  std::size_t host_sums = 0;     // [R][max_tokens] rows, sums of the host's ranks' sums
  std::size_t bytes = 0;         // of the whole part
};

/// Signals of a lane, one set per source rank.
enum class ExchangeSignal : int {
  dispatch_message,
  dispatch_rows,
  combine_message,
  combine_rows,
  rank_sums,  // the source's sums for other hosts are written (neighbours)
  masked      // the source goes on without this rank
};

inline constexpr int kExchangeSignals = 6;

}  // namespace ferry
