// Stores by which ranks meet: ours, and a caller's Python object.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "ferry/store.h"

namespace ferry::python {

namespace nb = nanobind;

/// A store that Python handed over: one of ours, or any object with set, wait, add and remove as
/// tokenferry.Store has them. Threads: made and destroyed with the GIL held, used without.
class HeldStore {
 public:
  explicit HeldStore(nb::handle object);

  Store& store() { return *store_; }

 private:
  nb::object held_;
  std::unique_ptr<Store> own_;
  Store* store_ = nullptr;
};

}  // namespace ferry::python
