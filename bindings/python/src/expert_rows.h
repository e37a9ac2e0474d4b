// The rows that experts read and write, as Python sees them.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "arrays.h"
#include "ferry/expert_rows.h"

namespace ferry::python {

/// Whose memory rows lie in: an all-to-all on the host or on a device.
class RowsOwner {
 public:
  virtual ~RowsOwner() = default;
  RowsOwner(const RowsOwner&) = delete;
  RowsOwner& operator=(const RowsOwner&) = delete;

  /// Counts up when rows stop to be valid.
  std::uint64_t exchange() const { return exchange_; }

  /// Of the arrays that the caller gets.
  Framework framework() const { return framework_; }

 protected:
  RowsOwner() = default;

  std::uint64_t exchange_ = 0;
  Framework framework_ = Framework::numpy;
};

/// Rows that there is room for, where the shape of the arrays does not follow from the counts.
struct RowsRoom {
  std::int64_t of_slot = 0;  ///< padded
  std::int64_t all = 0;      ///< ragged on a device, whose counts the host does not read
};

/// What one exchange has brought. Valid until the owner's combine_send(): after that every
/// attribute raises StaleRows. Arrays that were taken before keep the memory, whose contents then
/// belong to the next exchange.
class HeldRows {
 public:
  HeldRows(std::shared_ptr<RowsOwner> owner, const ExpertRows& rows, const RowsRoom& room);

  /// Throws StaleRows where they are no longer valid.
  const ExpertRows& rows() const;

  nb::object in() const;
  nb::object out() const;
  nb::object scales() const;
  nb::object row_weights() const;
  nb::object counts() const;
  nb::object offsets() const;
  nb::object slots() const;
  std::int64_t num_rows() const;

 private:
  std::vector<std::size_t> shape(std::size_t columns) const;
  nb::object strided(std::byte* base,
                     std::int64_t row_bytes,
                     std::size_t columns,
                     Element type,
                     bool writable) const;

  bool on_device() const { return rows_.place.kind == MemoryKind::device; }

  template <class T>
  nb::object of_slots(std::span<const T> values, Element type) const;
  void check_host(std::string_view what) const;

  std::shared_ptr<RowsOwner> owner_;
  ExpertRows rows_;
  RowsRoom room_;
  std::uint64_t exchange_;
};

void bind_expert_rows(nb::module_& module);

}  // namespace ferry::python
