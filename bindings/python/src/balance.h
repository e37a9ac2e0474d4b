// Where experts should lie, for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace ferry::python {

void bind_balance(nanobind::module_& module);

}  // namespace ferry::python
