// A lane's link to the other ranks: its region, puts and waits, and ranks that are gone.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/exchange/data_plane.h"
#include "ferry/exchange/exchange_layout.h"
#include "ferry/exchange/lane_state.h"

namespace ferry {

/// Owns the lane's region. Construction is collective. Used by steps alone. Errors: TransportError
/// that says what this rank was doing; where dead ranks are masked, calls go on without them.
class PeerLink {
 public:
  PeerLink(LaneState& lane, Transport& transport, DataPlane& plane);

  /// In this rank's part of the region.
  template <class T>
  T* at(std::size_t offset) const {
    return reinterpret_cast<T*>(region_->local().data() + offset);
  }

  /// Whether this rank reads that one's memory.
  bool reads(Rank rank) const { return reads_[static_cast<std::size_t>(rank)] != 0; }

  /// A rank's part of the region. REQUIRES: reads(rank).
  const std::byte* part_of(Rank rank) const;
  /// Where the rows of `home` can be read: its stage, or the slab they were pushed to.
  const std::byte* rows_of(Rank home) const;
  /// Where the results of `peer` can be read.
  const std::byte* results_of(Rank peer) const;

  void put(Rank peer, std::size_t offset, std::span<const std::byte> source, ExchangeSignal signal);
  /// Raises at `peer` what `source` raises there, in its name.
  void raise(Rank peer, Rank source, ExchangeSignal signal);
  /// Most rows that one put carries.
  std::size_t rows_per_put(std::size_t row_bytes) const;
  /// False: `peer` is masked, now or since earlier.
  bool await(Rank peer, ExchangeSignal signal, std::uint64_t count);
  /// The same without a wait, before the deadline.
  bool arrived(Rank peer, ExchangeSignal signal, std::uint64_t count);
  void progress();

  void mask(Rank peer);
  /// Another rank has masked it, so that it ends, if it has not yet.
  void mask_as_others(Rank peer);

  /// As errors name it.
  Rank known_as(Rank peer) const { return transport_.known_as(peer); }

  bool is_masked(Rank peer) const { return masked_[static_cast<std::size_t>(peer)] != 0; }

  void throw_if_masked_by_others();

 private:
  friend class RowPushes;

  template <class Call>
  auto in_context(Call call);
  WaitResult timed_wait(Rank peer, ExchangeSignal signal, std::uint64_t count);
  void put_all(std::span<const Put> puts);
  bool mask_after(const TransportError& error);
  void mask_and_tell(Rank peer);
  static int signal_index(Rank source, ExchangeSignal signal);

  LaneState& lane_;
  Transport& transport_;
  DataPlane& plane_;
  std::unique_ptr<Region> region_;
  std::vector<std::uint8_t> reads_;   // [R]
  std::vector<std::uint8_t> masked_;  // [R]
};

/// Rows of one kind that go to one peer: runs of neighbouring rows are put, many by one call of the
/// plane.
class RowPushes {
 public:
  RowPushes(PeerLink& link, Rank peer, std::size_t row_bytes, ExchangeSignal signal);

  /// `rows` rows of our part at `from` go to the peer's part at `to`.
  void add(std::size_t to, std::size_t from, std::size_t rows);
  /// Starts what has not been; returns how many puts all took.
  std::uint32_t finish();

 private:
  void start();

  PeerLink& link_;
  const Rank peer_;
  const std::size_t row_bytes_;
  const std::size_t most_;  // rows of a put
  const int signal_;
  std::array<Put, 16> puts_;
  std::size_t waiting_ = 0;  // of puts_
  std::uint32_t started_ = 0;
  std::size_t rows_ = 0;
};

}  // namespace ferry
