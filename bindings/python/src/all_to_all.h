// The four phases and moe_forward for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace ferry::python {

void bind_all_to_all(nanobind::module_& module);

}  // namespace ferry::python
