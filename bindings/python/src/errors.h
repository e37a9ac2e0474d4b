// The library's errors as Python exceptions (tokenferry/errors.py has the classes).
#pragma once

#include <nanobind/nanobind.h>

#include "ferry/core/error.h"

namespace ferry::python {

/// Rows were used after they had been given back.
class StaleRows : public BrokenContract {
 public:
  using BrokenContract::BrokenContract;
};

void register_errors();

}  // namespace ferry::python
