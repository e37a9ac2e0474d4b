// Python's operators on numbers, strings and lists.
#pragma once

#include "ferry/text/jinja/value.h"

namespace ferry {

/// left op right, for op of + - * / % and d, which stands for //. Throws JinjaFailure for types
/// that do not go together, division by zero, and integers beyond 64 bits.
JinjaValue jinja_arithmetic(JinjaBudget& budget,
                            char op,
                            const JinjaValue& left,
                            const JinjaValue& right);

JinjaValue jinja_minus(const JinjaValue& value);

/// value[begin:end:step]; none for what is left out. Throws JinjaFailure for what cannot be sliced.
JinjaValue jinja_slice(JinjaBudget& budget,
                       const JinjaValue& value,
                       const JinjaValue& begin,
                       const JinjaValue& end,
                       const JinjaValue& step);

}  // namespace ferry
