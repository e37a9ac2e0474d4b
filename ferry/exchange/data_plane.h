// The data plane of an exchange: who does the work on memory, and when.
//
// An exchange is taken apart by responsibility. The protocol says who sends what where; it is the
// same for every machine and stands in these files, from the caller down:
//
//   dispatcher.h        the four phases that a caller sees; their order is checked on the caller's
//                       thread, what they do is handed to the plane as steps
//   lane_state.h        what all parts of a lane know: options, layout, plans, exchange number
//   peer_link.h         messages and rows to peers, waits for theirs, ranks that are gone
//   dispatch_message.h  which tokens go where: written, read, checked
//   token_sender.h      out: stage the tokens, push what peers cannot read
//   row_receiver.h      in: a place for every row, then the rows
//   tile_pipeline.h     experts on what is there while the rest is on its way
//   result_sender.h     back: experts' rows, encoded, pushed where home cannot read them
//   partial_sums.h      where ranks sum before home does: sums of a rank and of a host
//   combine_message.h   where results stand: written, read, checked
//   home_sums.h         each token's sum
//
// A plane has three parts. *Steps*: submit() runs a step of the protocol (index arithmetic: plans,
// messages, prefix sums) in the plane's order; the CPU plane runs it at once, a plane with a queue
// when the queue gets there. *Batches*: rows are staged, gathered, encoded and added up by one call
// for many rows, over index arrays. *Signals*: puts and waits, in the same order.
// The protocol decides nothing on the caller's thread by what a step computes: between
// dispatch_send and the end of combine_recv the host need not be asked. docs/all_to_all.md says how
// another plane is added, and what one on a device does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "ferry/core/types.h"
#include "ferry/exchange/dispatch_plan.h"
#include "ferry/function_ref.h"
#include "ferry/memory_kind.h"
#include "ferry/transport.h"
#include "ferry/wire.h"

namespace ferry {

/// Tokens into the stage, in wire type: tokens `first`, `first` + `step`, ... below `tokens`.
struct StageRows {
  RowsView from;
  DType type = DType::f32;
  bool encoded = false;  ///< `from` is in wire type already
  MutableRowsView to;
  WireType wire = WireType::f32;
  int columns = 0;
  std::int64_t tokens = 0;
  int first = 0;
  int step = 1;
};

/// The records of one home rank and the places of their rows. Record i's row is row
/// records[i].token of `rows`, or with by_record row i.
struct ArrivedRows {
  const std::byte* rows = nullptr;
  std::size_t row_bytes = 0;
  bool by_record = false;
  std::span<const Record> records;
  std::span<const std::int64_t> places;
  std::span<const float> weights;  ///< one a record, or empty
  float* weights_to = nullptr;     ///< each goes to its record's place

  const std::byte* row(std::size_t i) const {
    return rows + (by_record ? i : std::size_t{records[i].token}) * row_bytes;
  }
};

/// Copies rows to where experts want them: place p is at to + p * to_bytes. Types that differ are
/// converted; neighbouring records of one token are decoded once.
struct GatherRows {
  ArrivedRows arrived;
  std::byte* to = nullptr;
  std::size_t to_bytes = 0;
  WireType wire = WireType::f32;
  WireType expert_type = WireType::f32;
  int columns = 0;       ///< of a row that arrives
  bool streams = false;  ///< more than caches hold: experts will read it from memory
};

/// Results from what experts write to what travels: rows [offsets[l], offsets[l] + counts[l]).
struct EncodeRows {
  const std::byte* from = nullptr;
  std::size_t from_bytes = 0;  ///< of a row
  DType type = DType::f32;
  std::byte* to = nullptr;
  std::size_t to_bytes = 0;
  WireType wire = WireType::f32;
  std::int64_t columns = 0;
  std::span<const std::int32_t> counts;
  std::span<const std::int64_t> offsets;
};

/// Index arrays of some weighted sums. Owns them; reused from block to block.
class SumList {
 public:
  struct Sum {
    std::byte* out = nullptr;
    std::size_t first = 0;  // of the terms below
    std::size_t terms = 0;
  };

  void reserve(std::size_t sums, std::size_t terms) {
    sums_.reserve(sums);
    rows_.reserve(terms);
    weights_.reserve(terms);
  }

  void clear() {
    sums_.clear();
    rows_.clear();
    weights_.clear();
  }

  /// A sum that goes to `out`; the terms that are added next are its own, in this order.
  void begin(std::byte* out) { sums_.push_back({out, rows_.size(), 0}); }

  void add(const std::byte* row, float weight) {
    rows_.push_back(row);
    weights_.push_back(weight);
    ++sums_.back().terms;
  }

  std::span<const Sum> sums() const { return sums_; }

  const std::byte* const* rows_of(const Sum& sum) const { return rows_.data() + sum.first; }

  const float* weights_of(const Sum& sum) const { return weights_.data() + sum.first; }

 private:
  std::vector<Sum> sums_;
  std::vector<const std::byte*> rows_;
  std::vector<float> weights_;
};

/// Weighted sums: each a chain over its terms in their order, rounded once.
struct ReduceRows {
  std::int64_t items = 0;  ///< tokens, or entries
  std::int64_t grain = 1;  ///< items of a block
  /// Appends the sums of the items [begin, end). Any split of the items into blocks, on any
  /// threads, gives the same sums.
  FunctionRef<void(std::int64_t begin, std::int64_t end, SumList& list)> terms;
  WireType in_type = WireType::f32;
  std::int64_t columns = 0;
  DType out_type = DType::f32;
  bool accumulate = false;
  /// Quantised: the sum is rounded to out_type, then encoded.
  std::optional<WireType> encode_as = {};
  /// A sum of a single term is that row as it is, so many bytes. 0: like any other.
  std::size_t single_bytes = 0;
};

/// How large the blocks of a lane's sums are.
struct ReduceLimits {
  std::size_t sums = 0;     ///< of a block
  std::size_t terms = 0;    ///< of a block
  std::size_t columns = 0;  ///< of a sum that is encoded
};

/// Memory of a plane that a lane owns. Steps and batches use data(); views that callers get say
/// seen(), which on a host is the same.
class PlaneMemory {
 public:
  virtual ~PlaneMemory() = default;
  PlaneMemory(const PlaneMemory&) = delete;
  PlaneMemory& operator=(const PlaneMemory&) = delete;

  std::byte* data() const { return data_; }

  std::byte* seen() const { return seen_; }

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 protected:
  PlaneMemory(std::byte* data, std::byte* seen) : data_(data), seen_(seen) {}

 private:
  std::byte* data_;
  std::byte* seen_;
};

/// Does the work of any number of lanes of one rank, in the order in which they ask for it.
/// Threads: the caller's thread submits and synchronises, one at a time; everything else is called
/// by steps. The transport is used by steps alone, so that it, too, sees one thread at a time.
/// Errors of a step are thrown by submit() where the plane runs steps at once, else by the next
/// submit() or synchronise().
class DataPlane {
 public:
  DataPlane() = default;
  virtual ~DataPlane() = default;
  DataPlane(const DataPlane&) = delete;
  DataPlane& operator=(const DataPlane&) = delete;

  virtual std::string_view name() const = 0;

  /// Where experts' rows, their counts and offsets lie, and for which queue.
  virtual MemoryPlace place() const = 0;

  /// Throws ConfigError that names `what` where the plane cannot reach memory of this place.
  virtual void check(const MemoryPlace& place, std::string_view what) const = 0;

  /// Whether steps run after submit() has returned.
  virtual bool runs_later() const { return false; }

  /// Runs `step()` behind everything submitted before. It is copied where it runs later.
  template <class Step>
  void submit(Step step) {
    if (runs_later()) {
      enqueue(std::function<void()>(std::move(step)));
    } else {
      step();
    }
  }

  /// Returns when everything submitted is done; what steps computed may then be read.
  virtual void synchronise() {}

  /// Whether nothing has been submitted since the last synchronise().
  virtual bool synchronised() const { return true; }

  /// Zeroed memory for experts' rows and index arrays. Kinds where reserving costs nothing may keep
  /// `sparse` memory uncommitted until it is touched.
  virtual std::unique_ptr<PlaneMemory> allocate(std::size_t bytes, bool sparse) = 0;

  /// Threads, or what comes near them: work for so many blocks at a time keeps the plane busy.
  virtual std::size_t width() const = 0;

  /// Called when a lane is made: sums will need scratch of this size.
  virtual void reserve(const ReduceLimits& limits) = 0;

  // Batches. Called by steps.
  virtual void stage(const StageRows& work) = 0;
  virtual void gather(const GatherRows& work) = 0;
  /// pointers[place] = the record's row: nothing is copied.
  virtual void point(const ArrivedRows& work, const std::byte** pointers) = 0;
  virtual void encode(const EncodeRows& work) = 0;
  virtual void reduce(const ReduceRows& work) = 0;

  // Signals. Called by steps; as the functions of the transport, in the plane's order.

  /// Starts the puts from `done` on, which counts those that have started: after an exception the
  /// rest can be tried again.
  virtual void put(Transport& transport, std::span<const Put> puts, std::size_t& done) {
    for (; done < puts.size(); ++done) transport.put(puts[done]);
  }

  virtual WaitResult wait(
      Transport& transport, Region& region, int signal, std::uint64_t count, Deadline deadline) {
    return transport.wait(region, signal, count, deadline);
  }

  virtual std::uint64_t signal_value(Transport& transport, Region& region, int signal) {
    return transport.signal_value(region, signal);
  }

 protected:
  /// Where steps run later: keeps the step for its turn.
  virtual void enqueue(std::function<void()>&& step) { step(); }
};

}  // namespace ferry
