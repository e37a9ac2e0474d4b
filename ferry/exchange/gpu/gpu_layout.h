// What lies where in the device memory of an exchange whose steps are kernels, and what its kernels
// know of it.
//
// Every rank has a part that its peers read and write, at the same offsets on all ranks, and some
// memory of its own. A home tells each peer, for each of its slots, which tokens it sends there:
// a list with room for all tokens, in order of the tokens. So no list's place depends on another's
// length, and one warp writes one list in one pass. The rows themselves stay in the home's stage;
// the peer reads them from there. It answers with the row at which the results of each list begin,
// and the home reads those. Signals are counters that hold the number of the exchange.
//
// Of a group of ranks that hold the same tokens each sends a share (token % tp == its place in the
// group), and every member reads all results: the peer tells each where those of every share begin,
// and where a token stands in another member's list a member works out from the ids, which it has.
//
// Where ranks sum before homes do, the peer adds up its results of each token, and its results are
// these sums, by home and token. What belongs to which sum it reads from the home's ids, weights
// and places in lists, which lie in the home's part: so these ranks share a host.
//
// A rank of another host cannot be read from there: what it is told, and what it tells, lies in
// boxes that the network carries between (gpu_boxes.h). Kernels know where to write for a peer and
// where to read from it (GpuLink, GpuSource), and nothing of what lies between.
//
// With hidden_partition all ranks hold the same tokens, and each some columns of them. A rank then
// needs no other's lists: it makes those of its own slots, and puts rows together from all stages.
//
// Why nothing is overwritten too early: a rank sends its tokens of exchange e + 1 behind its sums
// of e, for which it waited until all peers had sent their results of e; and those have taken its
// tokens, and its lists, before. A rank's experts write results of e + 1 behind the wait for all
// peers' tokens of e + 1, which these sent after they had read the results of e. Of boxes too:
// gpu_boxes.h adds what a network asks for.
//
// Where dead ranks are masked, a rank that waits in vain masks who did not come, tells it, should
// it live, and goes on: nothing of it is read any more, and nothing is written to it. What it may
// still read is then overwritten; it finds that out, and its exchange has failed. One block decides
// for all, since another may see a signal that this one has given up.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "ferry/kernels/gpu/thread.h"
#include "ferry/types.h"
#include "ferry/wire.h"

namespace ferry {

struct DispatcherOptions;

namespace gpu {

/// What a source rank signals in another's part, or box. The first two hold the number of the
/// exchange.
enum class GpuSignal : int {
  tokens,
  results,
  masked  ///< not 0: the source goes on without this rank
};

/// Of an exchange, in order: each is a kernel, beside those for other hosts.
enum class GpuPhase : int { dispatch_send, dispatch_recv, combine_send, combine_recv };

/// In a signal of the first two: what carries this source's words has failed.
inline constexpr std::uint64_t kLinkFailed = ~std::uint64_t{0};

inline constexpr int kGpuWaits = 2;
inline constexpr int kGpuSignals = 3;

/// In result_rows: of results that there are not, since the peer has masked the share's rank.
inline constexpr std::uint32_t kNoResults = ~std::uint32_t{0};

/// Of a block of every kernel. So many blocks fit on a multiprocessor by their registers, which the
/// compiler is told.
inline constexpr int kGpuBlockThreads = 256;
inline constexpr int kGpuBlocksAtOnce = 4;

/// What went wrong first in an exchange. A kernel that finds one here does nothing.
struct GpuFaultRecord {
  enum Kind : std::uint32_t {
    none,
    no_tokens,    ///< of `rank`, within the time
    no_results,   ///< of `rank`, within the time
    bad_count,    ///< `value` tokens, where there is room for `where`
    bad_id,       ///< entry `where` of the slot ids is `value`
    bad_message,  ///< of `rank`: slot `where`, number `value`
    left_behind,  ///< by `rank`, which has masked this one
    no_link,      ///< to `rank` any more
    out_of_turn,  ///< phase `where`
  };

  std::uint32_t kind = none;
  std::uint32_t rank = 0;
  std::uint64_t exchange = 0;
  std::int64_t where = 0;
  std::int64_t value = 0;
};

/// Memory of one rank that peers do not see.
struct GpuState {
  std::uint64_t exchange = 0;  ///< the one that has begun last
  // And those whose later phases were run last. The host checks the order of calls and of captures,
  // but not when a graph is launched.
  std::uint64_t received = 0;
  std::uint64_t combined = 0;
  std::uint64_t summed = 0;
  std::uint32_t blocks_done = 0;
  std::uint32_t has_fault = 0;  ///< who raises it from 0 writes the record
  /// Of each signal that is waited for, the exchange whose masks block 0 has decided on.
  std::uint64_t decided[kGpuWaits] = {};
  GpuFaultRecord fault;
};

/// Where a rank writes what it tells another: into that rank's part, or a box.
struct GpuLink {
  std::uint64_t* signals = nullptr;      ///< [kGpuSignals]
  std::uint32_t* counts = nullptr;       ///< [slots] tokens for each,
  std::uint32_t* tokens = nullptr;       ///< [slots][list_tokens] and which,
  float* weights = nullptr;              ///< likewise, with row_weights
  std::uint32_t* result_rows = nullptr;  ///< [tp][slots] of each share: where its results begin
  std::uint32_t* num_tokens = nullptr;   ///< with sums: how many there are
  std::uint32_t is_far = 0;              ///< not 0: by a box
};

/// Where a rank reads what another tells it, and that one's rows.
struct GpuSource {
  GpuLink told;
  const std::byte* stage = nullptr;    ///< [max_tokens] rows in dispatch wire
  const std::byte* results = nullptr;  ///< [num_results] rows in combine wire
  std::uint32_t num_results = 0;

  // With sums: its routing, [max_tokens, topk].
  const SlotId* slots = nullptr;
  const std::uint32_t* places = nullptr;  ///< as GpuExchangeArgs::in_slot
  const float* weights = nullptr;
};

/// Offsets of arrays behind each other, each on a line of its own. On the host.
class GpuPlaces {
 public:
  static std::size_t lines(std::size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

  std::size_t take(std::size_t bytes) { return std::exchange(end_, end_ + lines(bytes)); }

  std::size_t end() const { return end_; }

 private:
  static constexpr std::size_t kLine = 256;

  std::size_t end_ = 0;
};

/// Numbers that all kernels of an exchange share. Plain: travels with each launch.
struct GpuLayout {
  GpuLayout() = default;
  /// REQUIRES: options that check_gpu_options() takes.
  GpuLayout(const DispatcherOptions& options, int ranks);

  int ranks = 0;
  int slots = 0;  ///< of a rank
  int topk = 0;
  int max_tokens = 0;
  int tp = 1;           ///< ranks that hold the same tokens
  int list_tokens = 0;  ///< of a share, at most
  int hidden = 0;
  int column_ranks = 1;    ///< each of so many sends, and gets, its columns of the same rows
  int columns = 0;         ///< of a row that one rank sends
  int result_columns = 0;  ///< of a result that one rank gets
  WireType dispatch_wire = WireType::f32;
  WireType expert_type = WireType::f32;
  WireType combine_wire = WireType::f32;
  DType output_type = DType::f32;
  bool padded = false;
  bool pointers = false;  ///< rows are not copied: experts get where they lie, in homes' stages
  bool row_weights = false;
  bool masks = false;              ///< ranks that do not come, rather than fail
  bool sums = false;               ///< a rank's results of a token are one row: their sum
  std::int64_t slot_capacity = 0;  ///< padded: rows of a slot
  std::int64_t alignment = 1;      ///< ragged: a slot's first row is a multiple of it
  std::int64_t expert_rows = 0;
  std::int64_t share_results = 0;  ///< of one share's tokens, at most, of one peer

  std::int64_t dispatch_row_bytes = 0;
  std::int64_t expert_row_bytes = 0;  ///< as they are read
  std::int64_t input_row_bytes = 0;   ///< of this rank's memory for one: itself, or its address
  std::int64_t output_row_bytes = 0;
  std::int64_t combine_row_bytes = 0;

  // Offsets into a part.
  std::size_t signals = 0;      ///< [ranks] what each tells: a GpuLink's arrays,
  std::size_t counts = 0;       ///< likewise,
  std::size_t tokens = 0;       ///< likewise,
  std::size_t weights = 0;      ///< likewise,
  std::size_t result_rows = 0;  ///< and likewise
  std::size_t stage = 0;        ///< [max_tokens] rows in dispatch wire
  std::size_t results = 0;      ///< [expert_rows] rows in combine wire; sums: [ranks][list_tokens]
  std::size_t part_bytes = 0;

  // With sums: how many tokens each home holds, and this rank's routing, which peers read.
  std::size_t homes_tokens = 0;    ///< [ranks] likewise
  std::size_t routed_slots = 0;    ///< SlotId [max_tokens, topk]
  std::size_t routed_places = 0;   ///< u32 likewise: in_slot
  std::size_t routed_weights = 0;  ///< f32 likewise

  /// Whether experts write what homes read.
  bool results_as_written() const { return !sums && !is_quantized(combine_wire); }

  /// Where `source` writes in a part.
  GpuLink link(std::byte* part, int source) const;
  /// What this rank reads of a peer of its host, whose part is `part`.
  GpuSource source(std::byte* part, const GpuLink& told) const;

  /// Entries before a slot's list in a link's tokens and weights.
  FERRY_GPU std::size_t list(int slot) const {
    return static_cast<std::size_t>(slot) * static_cast<std::size_t>(list_tokens);
  }

  /// Ranks whose rows are told apart in a slot.
  FERRY_GPU int sources() const { return ranks / column_ranks; }

  /// In a row of expert_type or of results, which has `bytes`, the columns of a rank.
  FERRY_GPU std::int64_t columns_at(int rank, std::int64_t bytes) const {
    return rank % column_ranks * (bytes / column_ranks);
  }

  /// In a rank's results, the sum for a home's token.
  FERRY_GPU std::int64_t sum_at(int home, std::int64_t token) const {
    return (std::int64_t{home} * list_tokens + token / tp) * combine_row_bytes;
  }

  /// Of tokens that a group holds, those of a share.
  FERRY_GPU int tokens_of(int share, int held) const { return (held - share + tp - 1) / tp; }
};

/// What goes to ranks of other hosts, where there are any.
struct GpuFar {
  std::byte* stage = nullptr;  ///< as the stage: the rows that go there; null: no such rank
  std::byte* const* results = nullptr;  ///< [ranks] of each home: [share_results] rows in combine
                                        ///< wire; null: of those hosts no rank reads its results
  std::uint32_t* result_counts = nullptr;  ///< [ranks] how many there are
  std::uint32_t* home_rows = nullptr;  ///< [slots][ranks] where homes' rows begin among a slot's
  std::uint32_t* box_rows = nullptr;   ///< [ranks][slots] where a list's results begin in `results`
};

/// What a rank's kernels are given: the numbers, and where memory lies.
struct GpuExchangeArgs {
  GpuLayout layout;
  int rank = 0;
  std::uint64_t timeout_ns = 0;
  std::byte* part = nullptr;        ///< this rank's
  const GpuLink* to = nullptr;      ///< [ranks]
  const GpuSource* from = nullptr;  ///< [ranks]
  GpuFar far;
  GpuState* state = nullptr;
  std::uint32_t* masked = nullptr;   ///< [ranks] not 0: this rank goes on without it
  std::uint32_t* in_slot = nullptr;  ///< [max_tokens, topk] place in its share's list, of the first
                                     ///< k that names the slot
  const int* tokens = nullptr;       ///< how many this rank has, read when a kernel runs; null:
  int count = 0;                     ///< all that there is room for
  const SlotId* slots = nullptr;     ///< [tokens, topk]
};

}  // namespace gpu
}  // namespace ferry
