// The rows that experts read and write, as Python sees them.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>

#include "arrays.h"
#include "ferry/expert_rows.h"

namespace ferry::python {

class Lane;

/// What one exchange has brought. Valid until the lane's combine_send(): after that every attribute
/// raises StaleRows. Arrays that were taken before keep the memory, whose contents then belong to
/// the next exchange.
class HeldRows {
 public:
  HeldRows(std::shared_ptr<Lane> lane, const ExpertRows& rows, std::int64_t rows_per_slot);

  /// Throws StaleRows where they are no longer valid.
  const ExpertRows& rows() const;

  nb::object in() const;
  nb::object out() const;
  nb::object scales() const;
  nb::object row_weights() const;
  nb::object counts() const;
  nb::object offsets() const;
  nb::object slots() const;

 private:
  std::vector<std::size_t> shape(std::size_t columns) const;
  nb::object strided(std::byte* base,
                     std::int64_t row_bytes,
                     std::size_t columns,
                     Element type,
                     bool writable) const;

  std::shared_ptr<Lane> lane_;
  ExpertRows rows_;
  std::int64_t rows_per_slot_;  // padded; else 0
  std::uint64_t exchange_;
};

void bind_expert_rows(nb::module_& module);

}  // namespace ferry::python
