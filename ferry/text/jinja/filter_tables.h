// The tables behind find_jinja_filter(). For the filter .cpp files only.
#pragma once

#include <functional>
#include <map>
#include <string_view>

#include "ferry/text/jinja/builtins.h"

namespace ferry {

using JinjaFilterTable = std::map<std::string_view, JinjaFilter, std::less<>>;

const JinjaFilterTable& jinja_value_filters();  // filters.cpp
const JinjaFilterTable& jinja_list_filters();   // list_filters.cpp

/// A number of spaces, or the string itself.
std::string jinja_indention(JinjaBudget& budget, const JinjaValue& width);

}  // namespace ferry
