// A whole model in the caller's process, for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace ferry::python {

void bind_engine(nanobind::module_& module);

}  // namespace ferry::python
