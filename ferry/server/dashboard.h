// The dashboard: one page, built into the program, that draws what /dashboard/state says.
#pragma once

#include <string_view>

namespace ferry {

std::string_view dashboard_html();

}  // namespace ferry
