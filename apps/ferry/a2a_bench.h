// The measurement behind `ferry bench a2a`: one shape on one transport.
#pragma once

#include "apps/ferry/a2a_case.h"

namespace ferry {

/// Verifies the data, then measures. Throws when a row is wrong.
A2aResult measure_a2a(const A2aCase& a2a);

}  // namespace ferry
